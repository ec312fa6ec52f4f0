"""From named data to audited splits, with an account of every row."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from predictor.errors import InputError
from predictor.records.chats import LoadedData
from predictor.records.left_out import describe
from predictor.records.records import SPLITS
from predictor.splits.near_duplicates import near_duplicate_clusters
from predictor.splits.split_audit import count_crossing_pairs
from predictor.splits.splits import split_by_time, split_clusters
from predictor.splits.templates import without_templates


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of the rows: counts of rows, of prompts by split, and of pairs found by the audit."""

    num_rows: int
    dropped: dict[str, int]
    first_dropped: dict[str, str]
    """Where the first row of each reason stands."""
    num_kept: int
    num_prompts: dict[str, int]
    num_clusters: int | None
    """Near-duplicate clusters; None where the data brought its own splits."""
    num_crossing_pairs: int
    """Pairs of prompts in different splits whose character 5-grams, templates aside, have Jaccard similarity >= 0.9."""
    is_recorded: bool
    """Whether the lengths come from chat logs and not from the served model."""
    is_by_time: bool = False
    """Whether the splits follow one another in time."""

    def line(self) -> str:
        """Return the report as one line for the terminal."""
        reasons = describe(self.dropped, self.first_dropped)
        splits = ", ".join(f"{name} {self.num_prompts[name]}" for name in SPLITS)
        clusters = "splits as given" if self.num_clusters is None else f"{self.num_clusters} clusters"
        clusters = "splits by time" if self.is_by_time else clusters
        return (
            f"data: {self.num_rows} rows, {sum(self.dropped.values())} dropped{f' ({reasons})' if reasons else ''}, "
            f"{self.num_kept} kept{' (recorded answers)' if self.is_recorded else ''}; {splits}; {clusters}, "
            f"{self.num_crossing_pairs} near-duplicate pairs cross splits"
        )

    def warning(self) -> str | None:
        """Return what is wrong with the splits, or None."""
        if not self.num_crossing_pairs or self.is_by_time:  # what comes again later is part of such traffic
            return None
        advice = "leave the field split out to have splits made by cluster"
        if self.num_clusters is not None:
            advice = "try another --seed and please report this"
        found = f"{self.num_crossing_pairs} near-duplicate pairs of prompts cross splits"
        return f"split: {found}, so measures on the test split look too good; {advice}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)


def split_and_audit(
    loaded: LoadedData, seed: int, *, by_time: bool = False, shown: bool = False
) -> tuple[list[str], DataReport]:
    """Return the split of each prompt and the audited report.

    The splits are the data's own or made by near-duplicate cluster; with `by_time` by when the requests arrived.

    Raises:
        InputError: they are to be made by time, and the data has none.
    """
    records, num_clusters = loaded.records, None
    texts = without_templates(records.prompts)
    if by_time and records.arrival_times is None:
        raise InputError("--split-by time: the data has no times; give arrival_time (or timestamp) in every row")
    names = split_by_time(records.arrival_times or ()) if by_time else list(records.splits or ())
    if not names:
        clusters = near_duplicate_clusters(texts, seed=seed, shown=shown)
        names, num_clusters = split_clusters(clusters, seed), int(clusters.max()) + 1
    crossing = count_crossing_pairs(texts, names, shown=shown)
    sizes = Counter(names)
    report = DataReport(
        loaded.num_rows,
        {reason: count for reason, count in loaded.dropped.items() if count},
        loaded.first_dropped,
        len(records),
        {name: sizes[name] for name in SPLITS},
        num_clusters,
        crossing,
        records.recorded,
        by_time,
    )
    return names, report
