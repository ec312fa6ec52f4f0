"""The rules by which llm-d's router calls an answer LONG or SHORT, next to what predictors say.

The rules (`outlen-bucket`, llm-d-router pull request 2309) read four fields of a request and no text. `make` writes
made-up agent traffic, since no records at hand have these fields; `measure` takes your own log as well.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.files import atomic_file
from pipelines.studies.predictor.check import chosen, measured
from pipelines.studies.predictor.tables import markdown
from predictor.bounds.metrics import CLIPPED_AT, bound_quality
from predictor.prompts.context import UNKNOWN, RequestContext
from predictor.records.records import Records
from predictor.resolve import resolve_predictor
from predictor.splits.near_duplicates import near_duplicate_clusters
from predictor.splits.splits import FRACTIONS, split_clusters

SHORT_BELOW, LONG_FROM = 500, 2000
LONG_BUDGET = 4000
SHORT, NEITHER, LONG = 100, 1000, 4096
"""Tokens that llm-d's router takes an answer of each bucket for."""
TITLES = ("by", "LONG: precision", "recall", "SHORT: precision", "recall", "tau-b", "error", "within 100")


def main() -> None:
    """Parse; make traffic or measure."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.predictor.bucket_rules", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    make = steps.add_parser("make", help="write made-up agent traffic")
    make.add_argument("--prompts", type=Path, required=True, help="records whose prompts and lengths it is made of")
    make.add_argument("--out", type=Path, required=True, help="records.parquet to write")
    measure = steps.add_parser("measure", help="print how well rules and predictors tell LONG and SHORT")
    measure.add_argument("predictors", nargs="*", help="runs, predictor folders or exports")
    measure.add_argument("--data", type=Path, required=True, help="records with tools, thinking or max_new_tokens")
    measure.add_argument("--split", default="test", help="test, or all for every row (default: test)")
    args = parser.parse_args()
    if args.step == "make":
        with atomic_file(args.out) as aside:
            pq.write_table(pa.Table.from_pylist(agent_rows(pq.read_table(args.prompts).to_pylist())), aside)
        return
    records = chosen(args.data, args.split, [], [])
    rows = [["llm-d's rules", *cells([bucket(context) for context in contexts_of(records)], records)]]
    for path in args.predictors:
        found = measured(resolve_predictor(path), records)
        rows.append([Path(path).name, *cells(found.medians, found.records)])
    print(markdown(TITLES, rows))


def bucket(context: RequestContext) -> int:
    """Return `SHORT`, `LONG` or `NEITHER`, as llm-d's four rules have it."""
    if context.thinking or (context.thinking is None and (context.thinking_budget or 0) > LONG_BUDGET):
        return LONG
    is_capped = context.max_new_tokens is not None and 0 < context.max_new_tokens < SHORT_BELOW
    return SHORT if context.num_tools or is_capped else NEITHER


def contexts_of(records: Records) -> Sequence[RequestContext]:
    """Return what each request says apart from its prompt."""
    return records.contexts or (UNKNOWN,) * len(records)


def cells(medians: Sequence[float] | Any, records: Records) -> list[str]:
    """Return precision and recall of LONG and SHORT, tau-b, error and Acc-100 of `medians` as text.

    Each draw counts; one that was cut before it was LONG is neither, since nobody knows what it would have become.
    """
    tokens = np.asarray(medians, dtype=np.float64)
    found = bound_quality(tokens, tokens, records.output_lens, records.datasets, 0.1, CLIPPED_AT, records.is_truncated)
    lengths, flags = np.concatenate(records.output_lens), np.concatenate(records.is_truncated)
    known = ~flags | (lengths >= LONG_FROM)
    called = np.repeat(tokens, [len(draws) for draws in records.output_lens])[known]
    lengths = lengths[known]
    shares = [
        f"{share:.3f}"
        for calls, is_so in (
            (called >= LONG_FROM, lengths >= LONG_FROM),
            (called < SHORT_BELOW, lengths < SHORT_BELOW),
        )
        for share in (_share(is_so, calls), _share(calls, is_so))
    ]
    return [*shares, f"{found.kendall_tau:.3f}", f"{found.mean_absolute_error:.1f}", f"{found.within_100:.3f}"]


def _share(what: np.ndarray, among: np.ndarray) -> float:
    return float(np.mean(what[among])) if among.any() else math.nan


def agent_rows(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Return three requests of each prompt, with tools and thinking or without, and lengths that a rule makes of them.

    A third think: their reasoning has a median of 4,000 tokens, more where the prompt's own answer is long. Half offer
    tools: without thinking they are called, in a median of 41 tokens, but by the quarter of prompts with the longest
    answers. Both medians are those that llm-d published.
    """
    rng = np.random.default_rng(seed)
    prompts = {row["prompt"]: float(np.median(row["output_lens"])) for row in rows}
    clusters = near_duplicate_clusters(list(prompts), seed=seed)
    splits = dict(zip(clusters.tolist(), split_clusters(clusters, seed, FRACTIONS), strict=True))
    middle, many = np.quantile(list(prompts.values()), [0.5, 0.75])
    made: list[dict[str, Any]] = []
    for (prompt, own), cluster in zip(prompts.items(), clusters.tolist(), strict=True):
        for thinking in (True, False, None):
            num_tools = int(rng.integers(1, 13)) if rng.random() < 0.5 else 0
            is_call = bool(num_tools) and not thinking and own < many
            length = rng.lognormal(math.log(41), 0.5) if is_call else own * rng.lognormal(0.0, 0.3)
            if thinking:
                length += rng.lognormal(math.log(4000 * math.sqrt(own / middle)), 0.6)
            made.append(
                {
                    "prompt_id": f"agent:{len(made)}",
                    "dataset": "agent",
                    "model": "made-up",
                    "prompt": prompt,
                    "output_lens": [max(2, round(length))],
                    "is_truncated": [False],
                    "split": splits[cluster],
                    "num_tools": num_tools,
                    "thinking": thinking,
                }
            )
    return made


if __name__ == "__main__":
    main()
