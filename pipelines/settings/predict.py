"""What `amin predict` is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pipelines.settings.option import Positional
from predictor.ranges import Probability, check_ranges


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """Settings of `amin predict`; lengths in tokens."""

    path: Annotated[Path, Positional("RUN_OR_EXPORT")]
    """Folder that amin train or amin export wrote."""
    data: Path
    """Prompts (.parquet or .jsonl)."""
    out: Path
    """JSONL file; a line per row, lengths in tokens."""
    tau: Probability = 0.1
    """Probability allowed below the bound."""
    split: str | None = None
    """Only the rows of this split; default: all."""
    model: str | None = None
    """Served model to predict for; only its rows where the data has some. Default: each row's own where the predictor
    knows it, else the predictor's default; average stands for one it does not know, like:NAME for one of that name."""
    workload: Path | None = None
    """Also write records as a workload for amin simulate, a line per draw (JSONL; the edges of its field survival, for
    --bins, go to WORKLOAD.bins.json)."""
    force: bool = False
    """Replace the files that are there."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
