"""A progress bar that stays away from work of under two seconds."""

from collections.abc import Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")

SECONDS_WITHOUT = 2.0


def progress_bar(label: str, unit: str, total: int | None, *, shown: bool) -> Any:
    """Return a tqdm bar with rate and remaining time, a context manager; it writes to the terminal's stderr."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit=unit, disable=not shown, delay=SECONDS_WITHOUT, unit_scale=True)


def tracked(items: Iterable[Item], label: str, unit: str, total: int | None, *, shown: bool) -> Iterable[Item]:
    """Return `items` and show a progress bar meanwhile."""
    from tqdm import tqdm

    bar: Iterable[Item] = tqdm(
        items, total=total, desc=label, unit=unit, disable=not shown, delay=SECONDS_WITHOUT, unit_scale=True
    )
    return bar
