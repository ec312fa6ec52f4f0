"""From named data to audited splits, with an account of every row."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from predictor.records.chats import LoadedData
from predictor.records.left_out import describe
from predictor.records.records import SPLITS
from predictor.splits.near_duplicates import near_duplicate_clusters
from predictor.splits.split_audit import count_crossing_pairs
from predictor.splits.splits import split_clusters
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

    def line(self) -> str:
        """Return the report as one line for the terminal."""
        reasons = describe(self.dropped, self.first_dropped)
        splits = ", ".join(f"{name} {self.num_prompts[name]}" for name in SPLITS)
        clusters = "splits as given" if self.num_clusters is None else f"{self.num_clusters} clusters"
        return (
            f"data: {self.num_rows} rows, {sum(self.dropped.values())} dropped{f' ({reasons})' if reasons else ''}, "
            f"{self.num_kept} kept{' (recorded answers)' if self.is_recorded else ''}; {splits}; {clusters}, "
            f"{self.num_crossing_pairs} near-duplicate pairs cross splits"
        )

    def warning(self) -> str | None:
        """Return what is wrong with the splits, or None."""
        if not self.num_crossing_pairs:
            return None
        advice = "leave the field split out to have splits made by cluster"
        if self.num_clusters is not None:
            advice = "try another --seed and please report this"
        found = f"{self.num_crossing_pairs} near-duplicate pairs of prompts cross splits"
        return f"split: {found}, so measures on the test split look too good; {advice}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)


def split_and_audit(loaded: LoadedData, seed: int, *, shown: bool = False) -> tuple[list[str], DataReport]:
    """Return the split of each prompt, the data's own or made by near-duplicate cluster, and the audited report."""
    records, num_clusters = loaded.records, None
    texts = without_templates(records.prompts)
    names = list(records.splits or ())
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
    )
    return names, report
