"""What `amin proxy` is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipelines.settings.option import Metavar
from predictor.errors import InputError
from predictor.ranges import Count, Probability, Range, check_ranges


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Settings of `amin proxy`."""

    upstream: Annotated[str, Metavar("URL")]
    """The engine, with or without /v1 at its end: http://localhost:8000."""
    predictor: Annotated[Path, Metavar("SERVING")]
    """Folder that amin export wrote."""
    engine: Literal["vllm", "dynamo", "llm-d", "other"] = "other"
    """How the engine is told: vllm by vllm_xargs (our plug-in), dynamo by nvext.agent_hints.osl, llm-d by a header with
    its bins; x-amin-output-len-lower-bound and x-amin-output-len-median go to all."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Range(0, 65535)] = 8081
    """Port; 0 takes a free one and prints it."""
    tau: Probability = 0.1
    """Probability allowed below the bound."""
    deadline_ms: Annotated[float, Range(1, 60_000)] = 10.0
    """Milliseconds that a request may wait for its prediction; then it passes without a hint."""
    max_queue: Count = 256
    """Most requests that wait for a prediction; others pass without a hint."""
    workers: Annotated[int, Range(1, 4096)] = 2
    """Inferences at the same time, each on a core of its own."""
    threads: Annotated[int, Range(0, 4096)] = 1
    """Threads of onnxruntime in an inference; 0: its own choice."""
    max_connections: Count = 4096
    """Most open connections; idle ones end first."""
    silence: Annotated[float, Range(0.1, 3600)] = 60.0
    """Seconds in which a connection must send a request."""
    connect_timeout: Annotated[float, Range(0.1, 3600)] = 10.0
    """Seconds in which the engine must take a connection; for its answer there is no limit."""
    like: Annotated[str, Metavar("NAME")] | None = None
    """Read a model that the predictor does not know by this name's family, size and thinking (Qwen/Qwen3-8B); request:
    by the name that the request gives; default: as the average of all."""
    adapt: Literal["off", "lower", "both"] = "both"
    """What the answers that pass may do to the bounds: nothing, lower them, or follow the traffic both ways."""
    state: Path | None = None
    """File that keeps what is learnt over a restart; it belongs to one predictor."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
        if not self.upstream.startswith(("http://", "https://")):
            raise InputError(f"--upstream: must be a URL, http://HOST:PORT, not {self.upstream}")
