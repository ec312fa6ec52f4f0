"""What `amin export` is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipelines.settings.option import Positional
from predictor.ranges import LARGEST, Probability, Range, check_ranges


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """Settings of `amin export`."""

    run_folder: Annotated[Path, Positional("RUN")]
    """Folder that amin train wrote, also of a probe, or a predictor folder."""
    out: Path
    """Folder of the export."""
    precision: Literal["fp32", "int8"] = "fp32"
    """Precision of the weights; int8 is smaller and faster."""
    max_prompt_tokens: Annotated[int, Range(4, LARGEST)] | None = None
    """Read fewer tokens of a prompt than in training: faster, a little worse; default: as many."""
    model: str | None = None
    """Only this served model of several: a prediction takes up to a fifth less time; default: all that it knows."""
    tau: Probability = 0.1
    """Probability allowed below the bound, for the measures."""
    license: str = "other"
    """Licence of the weights, as Hugging Face names it, for README.md."""
    force: bool = False
    """Replace the export that is there."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
