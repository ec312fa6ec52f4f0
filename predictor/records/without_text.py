"""Logs whose text `amin reduce` left out, told from all others."""

from pathlib import Path

from predictor.errors import InputError

REDUCED, REDUCED_RECORDS = "reduced.json", "records.parquet"
"""What a log without its text consists of, next to the states: where it comes from, and its lengths."""


def refuse_reduced(data: str | Path, option: str) -> None:
    """Raise InputError where `data`, which `option` gives, is a log without text: its prompts are random names."""
    path = Path(data)
    if (path / REDUCED).is_file() or (path.name == REDUCED_RECORDS and (path.parent / REDUCED).is_file()):
        raise InputError(
            f"{option}: {path} has no text, since amin reduce left it out; only amin train reads its folder"
        )
