"""Running servers that `amin evaluate` measures from outside."""

from dataclasses import dataclass
from typing import Annotated

from pipelines.settings.option import Metavar
from predictor.errors import InputError
from predictor.ranges import Range, check_ranges


@dataclass(frozen=True, slots=True)
class Servers:
    """Options that only apply with `--endpoint`."""

    endpoint: Annotated[str | None, Metavar("URL")] = None
    """An OpenAI-compatible server (http://HOST:PORT/v1): its answers are streamed and timed, none is generated here."""
    endpoint_b: Annotated[str | None, Metavar("URL")] = None
    """A second server, to compare with the first: the same requests at the same times, while the first is not asked."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the servers' key, if they want one."""
    timeout: Annotated[float, Range(0, 86_400, (True, False))] = 600.0
    """Seconds that a server may be silent before a request counts as failed."""
    ttft_target: Annotated[float, Range(0, 1e9, (True, False))] | None = None
    """Seconds to the first token that goodput counts."""
    tpot_target: Annotated[float, Range(0, 1e9, (True, False))] | None = None
    """Seconds per output token after the first that goodput counts."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
        for option, url in (("--endpoint", self.endpoint), ("--endpoint-b", self.endpoint_b)):
            if url is not None and not url.startswith(("http://", "https://")):
                raise InputError(f"{option}: {url!r} is not an address; write http://HOST:PORT/v1")

    @property
    def urls(self) -> dict[str, str]:
        """The addresses by the name that results give a server, "a" or "b"."""
        given = {"a": self.endpoint, "b": self.endpoint_b}
        return {name: url.strip().rstrip("/") for name, url in given.items() if url is not None}
