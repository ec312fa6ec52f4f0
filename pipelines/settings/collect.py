"""What `amin collect` is asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pipelines.settings.option import Metavar
from pipelines.settings.sampling import Sampling
from predictor.errors import InputError
from predictor.ranges import Count, CountOrNone, Range, Seed, check_ranges


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """Settings of `amin collect`; lengths in tokens.

    Examples:
      amin collect --prompts prompts.jsonl --out records.parquet          # the bundled SmolLM2, here
      amin collect --served-model model.gguf --prompts prompts.jsonl --temperature 0.8 --out records.parquet
      amin collect --states 16,20 --prompts prompts.jsonl --out records.parquet   # and records.parquet.states
      amin collect --endpoint http://gpu1:8000/v1,http://gpu2:8000/v1 --served-model NAME ...   # any OpenAI server
    An interrupted call continues where it stopped.
    """

    prompts: Path
    """JSONL or parquet with prompt or messages."""
    out: Path
    """Records (parquet)."""
    served_model: str = "smollm2"
    """Folder, GGUF file or hub name of a causal language model; smollm2 is the one that the set-up installs. With
    --endpoint its name on the server."""
    endpoint: Annotated[str | None, Metavar("URL[,URL...]")] = None
    """Ask these OpenAI-compatible servers (http://HOST:PORT/v1) instead of generating here."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the servers' key, if they want one."""
    retries: CountOrNone = 6
    """How often a request is repeated after an overload, a failure or a lost connection of the server."""
    timeout: Annotated[float, Range(0, 86_400, (True, False))] = 600.0
    """Seconds that a server may be silent."""
    draws: Count = 4
    """Sampled answers per prompt."""
    max_new_tokens: Count = 512
    """Cap of an answer; a cut one is censored."""
    states: Annotated[str | None, Metavar("LAYER[,LAYER]")] = None
    """Also keep what these layers of the served model say while it answers (0: the embedding, k: layer k), in a folder
    named as --out with .states behind it; amin train --states learns from it. Not from a server."""
    sampling: Sampling = field(default_factory=Sampling)
    model: str | None = None
    """Served model whose rows of --prompts are read, where they name several."""
    split: str | None = None
    """Only the prompts of this split."""
    limit: Count | None = None
    """Only the first so many prompts."""
    max_running: Count = 32
    """Answers generated at a time."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to compute; default: cuda where there is one."""
    trust_remote_code: bool = False
    """Run Python code that the served model brings; read it first."""
    seed: Seed = 0
    """Of the sampling."""
    force: bool = False
    """Replace the records that are there."""
    resume: bool = True
    """Go on with what an earlier call collected; finished records are left alone."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
        if self.endpoint is not None and not self.endpoints:
            raise InputError("--endpoint: give the address of a server, such as http://localhost:8000/v1")
        for url in self.endpoints:
            if not url.startswith(("http://", "https://")):
                raise InputError(f"--endpoint: {url!r} is not an address; write http://HOST:PORT/v1")

        if self.layers and self.endpoints:
            raise InputError("--states: a server hands out no states; leave --endpoint out and generate here")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose states are kept."""
        named = [] if self.states is None else [layer.strip() for layer in self.states.split(",")]
        if not all(layer.isdecimal() for layer in named) or len(set(named)) < len(named):
            raise InputError(f"--states: must name layers, each once, as in 12,16, not {self.states!r}")
        return tuple(int(layer) for layer in named)

    @property
    def endpoints(self) -> list[str]:
        """The servers' addresses."""
        return [url.strip().rstrip("/") for url in (self.endpoint or "").split(",") if url.strip()]
