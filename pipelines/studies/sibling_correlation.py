"""How alike the lengths of siblings are, seen through their forecasts: what `scheduler.policies.siblings` is told.

    amin predict PREDICTOR --data RECORDS --model NAME --out bounds.jsonl --workload workload.jsonl
    python -m pipelines.studies.sibling_correlation workload.jsonl

Each draw of a record is a request, and all draws of a record are a group. The correlation is that of a one-way
random-effects model of the normal scores (Fisher's intraclass correlation, from the variances between and within
groups); its interval is that of 200 draws of groups with replacement.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.simulate.workload_file import read_with_bins
from scheduler.errors import InputError
from scheduler.forecast import Floats
from scheduler.policies.siblings.shared_factor import score, survival_at
from scheduler.workload import Workload

RESAMPLES = 200


def scores_by_group(workload: Workload) -> list[Floats]:
    """Return the normal scores of the requests of each group of two or more; answers that were cut are left out.

    Raises:
        InputError: A request has no forecast, or there are fewer than two such groups.
    """
    groups: dict[str, list[float]] = {}
    for request, output_len in zip(workload.requests, workload.output_lens, strict=True):
        if request.forecast is None:
            raise InputError(f"request {request.request_id!r} has no forecast; amin predict --workload gives them")
        if request.group and output_len < request.max_new_tokens:
            groups.setdefault(request.group, []).append(score(survival_at(request.forecast, output_len - 0.5)))
    found = [np.array(scores) for scores in groups.values() if len(scores) > 1]
    if len(found) < 2:
        raise InputError("fewer than two groups of several requests; several draws of a record are a group")
    return found


def correlation(groups: Sequence[Floats]) -> float:
    """Return the intraclass correlation of k groups of n_i scores, by analysis of variance."""
    sizes, means = np.array([len(group) for group in groups]), np.array([group.mean() for group in groups])
    total, count = sizes.sum(), len(groups)
    within = sum(float(((group - mean) ** 2).sum()) for group, mean in zip(groups, means, strict=True)) / (
        total - count
    )
    between = float(sizes @ (means - sizes @ means / total) ** 2) / (count - 1)
    size = (total - (sizes**2).sum() / total) / (count - 1)
    return float((between - within) / (between + (size - 1) * within))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the correlation of a workload's groups."""
    parser = argparse.ArgumentParser(description="correlation of siblings' lengths, seen through their forecasts")
    parser.add_argument("workload", type=Path, help="of amin predict --workload")
    path = parser.parse_args(argv).workload
    groups = scores_by_group(read_with_bins(path))
    rng = np.random.default_rng(0)
    drawn = [correlation([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    scores = np.concatenate(groups)
    print(
        f"{len(groups)} groups, {len(scores)} requests: correlation {correlation(groups):.3f} ({low:.3f} to {high:.3f})"
    )
    print(
        f"scores: mean {scores.mean():.2f}, standard deviation {scores.std():.2f} (0 and 1 where forecasts are right)"
    )


if __name__ == "__main__":
    main()
