"""What `amin tune` is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pipelines.settings.option import Metavar, Positional
from pipelines.settings.worker import WorkerSettings
from predictor.ranges import Range, check_ranges


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """Settings of `amin tune`.

    Examples:
      amin tune serving --data records.parquet --split calibration --deployment llama-3.1-8b-h100 --load 0.9
    """

    path: Annotated[Path, Positional("SERVING")]
    """Folder that amin export or amin train wrote."""
    data: Path
    """Records with num_prompt_tokens (.parquet or .jsonl)."""
    worker: WorkerSettings
    """what they run on"""
    split: str | None = None
    """Whose prompts are served, not those you report on; default: calibration where the data has splits, or all."""
    model: str | None = None
    """Served model to predict for, and whose records count; default: the folder's."""
    load: Annotated[str, Metavar("X|at-once")] = "0.9"
    """Arrival rate as a share of what can be served, or at-once."""
    objective: Literal["mean", "p99", "goodput"] = "mean"
    """What is chosen by: mean latency, its 0.99 quantile, or requests a time that keep both targets."""
    ttft_target: Annotated[float, Range(0, 1e9, (True, False))] | None = None
    """Time to the first token that goodput counts, in the unit of the clock."""
    tpot_target: Annotated[float, Range(0, 1e9, (True, False))] | None = None
    """Time per output token after the first that goodput counts."""
    requests: Annotated[int, Range(2, 1_000_000)] = 1000
    """Requests of a run; drawn with replacement, by seed."""
    seeds: Annotated[int, Range(2, 1000)] = 10
    """Runs of each candidate, on the same requests."""
    force: bool = False
    """Replace the scheduling.json that is there."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        for each in (self, self.worker):
            check_ranges(each)

    def defaults(self) -> Mapping[str, Any]:
        """Return what the deployment gives where no option does, or else how engines evict."""
        return self.worker.defaults() or {"eviction": "resume"}
