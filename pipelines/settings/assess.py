"""What `amin assess` is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pipelines.settings.option import Positional
from pipelines.settings.worker import WorkerSettings
from predictor.ranges import Count, Range, Seed, check_ranges
from scheduler.errors import InputError


@dataclass(frozen=True, slots=True)
class AssessSettings:
    """Settings of `amin assess`.

    Examples:
      amin assess logs.jsonl --deployment llama-3.1-8b-h100 --out assessment
    """

    logs: Annotated[Path, Positional("LOGS")]
    """Your requests: lengths, and times and prompts where the log has them (docs/data-formats.md)."""
    worker: WorkerSettings
    """what serves them"""
    out: Path
    """Folder for assess.html and assess.json."""
    skill: Annotated[float, Range(0, 1)] | None = None
    """Share of the variance of log length that predictions explain; default: measured by a quick fit where the log has
    prompts, otherwise 0.4 (what our predictors reach on chats; 0: no idea, 1: perfect)."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """What numbers in the log's column of times count; default: as found and printed."""
    policy: str = "amin-survival"
    """The policy to assess."""
    requests: Annotated[int, Range(100, 1_000_000)] = 8_000
    """Requests to simulate at most; of a longer log the busiest stretch counts."""
    seeds: Count = 3
    """Runs per policy; they differ in predictions and ties."""
    seed: Seed = 0
    """First of them."""
    grow: bool = True
    """Take more replicas than the deployment has where the log asks for more than 1.2 times what they can serve."""
    force: bool = False
    """Replace the assessment that is there."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        for each in (self, self.worker):
            check_ranges(each)
        if self.worker.deployment is None:
            raise InputError("--deployment is missing; give the one nearest to yours (a wrong name lists them)")

    def defaults(self) -> Mapping[str, Any]:
        """Return what the deployment gives where no option does."""
        return self.worker.defaults()
