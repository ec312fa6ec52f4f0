"""What `amin serve` is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipelines.settings.option import Metavar, Positional
from predictor.ranges import Count, Probability, Range, check_ranges


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of `amin serve`."""

    export: Annotated[Path, Positional("SERVING")]
    """Folder that amin export wrote."""
    host: str = "127.0.0.1"
    """Address to listen on; anyone who reaches it can use and steer the server, unless there is a key."""
    port: Annotated[int, Range(0, 65535)] = 8080
    """Port; 0 takes a free one and prints it."""
    tau: Probability = 0.1
    """Probability allowed below the bound, where a request names none."""
    deadline_ms: Annotated[float, Range(1, 60_000)] = 100.0
    """Milliseconds until the marginal bound is the answer."""
    max_wait_ms: Annotated[float, Range(0, 60_000)] = 2.0
    """Milliseconds that a prompt waits for others in its batch."""
    max_batch: Count = 8
    """Most prompts in one inference."""
    max_queue: Count = 256
    """Most prompts that wait; others get the marginal bound immediately."""
    workers: Annotated[int, Range(1, 4096)] = 2
    """Inferences at the same time, each on a core of its own."""
    threads: Annotated[int, Range(0, 4096)] = 1
    """Threads of onnxruntime in an inference; 0: its own choice."""
    max_body_bytes: Count = 1 << 20
    """Largest request body."""
    max_prompts: Annotated[int, Range(1, 4096)] = 256
    """Most prompts in one request."""
    max_prompt_chars: Count = 20_000
    """Longer prompts get the marginal bound immediately."""
    max_connections: Count = 512
    """Most requests that are answered at a time, others get 503; and most open connections, idle ones end first."""
    silence: Annotated[float, Range(0.1, 3600)] = 10.0
    """Seconds in which a connection must send a request, and a request its body."""
    allowed_hosts: str = ""
    """Names under which pages and clients may call the server besides the loopback ones, with commas; * for any."""
    like: Annotated[str, Metavar("NAME")] | None = None
    """Read a model that the predictor does not know by this name's family, size and thinking (Qwen/Qwen3-8B); request:
    by the name that the request gives; default: as the average of all."""
    api_key_file: Path | None = None
    """File with a key that callers must send (Authorization: Bearer KEY); default: AMIN_API_KEY in the environment."""
    adapt: Literal["off", "lower", "both"] = "both"
    """What feedback may do to the bounds: nothing, lower them, or follow the traffic both ways."""
    feedback: Literal["any", "asked"] = "any"
    """Whose reports count: any, or those alone that name the id of a prediction that was asked here."""
    max_client_share: Annotated[float, Range(0, 1, (True, False))] = 1.0
    """Most of any 100 answers that one client's address may report; below tau, its false reports do little."""
    state: Path | None = None
    """File that keeps what is learnt over a restart; it belongs to one predictor."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
