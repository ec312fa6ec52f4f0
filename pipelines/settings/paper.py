"""What `amin paper` is asked."""

from dataclasses import dataclass
from pathlib import Path

from predictor.ranges import Count, check_ranges


@dataclass(frozen=True, slots=True)
class PaperSettings:
    """Settings of `amin paper`."""

    out: Path
    """Folder for paper.json and the figures (PNG)."""
    lengths: Path | None = None
    """File that lengths are drawn from, as amin simulate reads it; bare output lengths get made-up prompts; default:
    made up like chats of LMSYS-Chat-1M."""
    seeds: Count = 5
    """Samples of the lengths; the figures have 95 % intervals."""
    quick: bool = False
    """A tenth of the requests: a trial, not a measurement."""
    force: bool = False
    """Replace the results that are there."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
