"""What was left out of data, counted by reason, with the place of the first row of each."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class LeftOut:
    """Counts of rows by reason, and where the first of each stands."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        """Count a row that stands at `place`."""
        self.counts[reason] += 1
        self.first.setdefault(reason, place)

    def __str__(self) -> str:
        """Return the reasons, the most frequent first, in one line."""
        return describe(self.counts, self.first)


def describe(counts: dict[str, int], first: dict[str, str]) -> str:
    """Return counts by reason as one line: `3 empty (first: row 7), 1 model`."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(
        f"{count} {reason}" + (f" (first: {first[reason]})" if reason in first else "")
        for reason, count in ordered
        if count
    )
