"""The records that the bundled predictors learn from: several files, one split by near-duplicate cluster over all.

Answers in the file of pairs are counted in GPT-2 tokens, and each of its models keeps its own level. Its CASTILLO
answers are left out, since the records of CASTILLO hold ten lengths where it holds one.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipelines.files import atomic_file
from pipelines.studies.predictor.instruction_prompts import instructed_rows
from predictor.splits.near_duplicates import near_duplicate_clusters
from predictor.splits.splits import FRACTIONS, split_clusters

# A served model with fewer prompts has no level of its own that could be calibrated.
MIN_PROMPTS = 220
# Where a cluster has prompts of several published splits, the first of these wins: what tests is never trained on.
PRIORITY = ("test", "calibration", "validation", "train")

Rows = list[dict[str, Any]]


def main() -> None:
    """Parse, join, split, write."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.predictor.data", description=__doc__)
    parser.add_argument("--castillo", type=Path, required=True, help="castillo_records.parquet")
    parser.add_argument("--pairs", type=Path, required=True, help="chat_pairs.parquet: prompt, response, source, model")
    parser.add_argument("--tokenizer", type=Path, required=True, help="gpt2_tokenizer.json, counts the pairs' answers")
    parser.add_argument("--records", type=Path, nargs="*", default=[], help="further records, splits included")
    parser.add_argument("--without", nargs="*", default=["Alpaca"], help="data sets left out (default: Alpaca)")
    parser.add_argument("--instructed", type=int, default=0, help="written prompts that ask for a length (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="records.parquet to write")
    args = parser.parse_args()
    rows = record_rows(args.castillo)
    for file in args.records:
        rows += record_rows(file)
    rows = [row for row in rows if row["dataset"] not in args.without]
    rows += pair_rows(args.pairs, args.tokenizer)
    assign(rows)
    if args.instructed:
        rows += instructed_rows(sorted({row["model"] for row in record_rows(args.castillo)}), args.instructed)
    with atomic_file(args.out) as aside:
        pq.write_table(pa.Table.from_pylist(rows), aside)
    for key in ("split", "dataset"):
        print(", ".join(f"{name} {count:,}" for name, count in sorted(Counter(row[key] for row in rows).items())))
    print(f"{len(rows):,} rows, {len({row['prompt'] for row in rows}):,} prompts, {args.out}")


def record_rows(file: Path) -> Rows:
    """Return the rows of a file of records, with the fields that training reads."""
    names = ["prompt_id", "dataset", "model", "prompt", "output_lens", "is_truncated", "split"]
    rows = pq.read_table(file).select(names).to_pylist()
    return [{**row, "prompt_id": f"{file.stem}:{row['prompt_id']}"} for row in rows]


def pair_rows(file: Path, tokenizer: Path) -> Rows:
    """Return a row for each prompt and model of the pairs, its answers as draws; models with few prompts left out."""
    count = Tokenizer.from_file(str(tokenizer))
    pairs = [row for row in pq.read_table(file).to_pylist() if not row["source"].startswith("castillo-")]
    lengths = [
        len(ids) + 1 for ids in (encoding.ids for encoding in count.encode_batch([row["response"] for row in pairs]))
    ]
    draws: dict[tuple[str, str], list[int]] = {}
    sources: dict[tuple[str, str], str] = {}
    for row, length in zip(pairs, lengths, strict=True):
        key = row["prompt"], row["model"].rsplit("/", 1)[-1]
        draws.setdefault(key, []).append(length)
        sources[key] = row["source"]
    known = Counter(model for _, model in draws)
    return [
        {
            "prompt_id": f"{file.stem}:{number}",
            "dataset": sources[prompt, model],
            "model": model,
            "prompt": prompt,
            "output_lens": found,
            "is_truncated": [False] * len(found),
            "split": None,
        }
        for number, ((prompt, model), found) in enumerate(draws.items())
        if known[model] >= MIN_PROMPTS
    ]


def assign(rows: Rows, seed: int = 0) -> None:
    """Give each row the split of its cluster, in place: the published one where there is one, else a random one."""
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    clusters = near_duplicate_clusters(prompts, seed=seed)
    cluster_of = dict(zip(prompts, clusters.tolist(), strict=True))
    published = published_splits(rows, cluster_of)
    drawn = split_clusters(clusters, seed, FRACTIONS)
    split_of = dict(zip(clusters.tolist(), drawn, strict=True)) | published
    split_of |= dict.fromkeys(clusters_to_test(rows, cluster_of, split_of), "test")
    for row in rows:
        row["split"] = split_of[cluster_of[row["prompt"]]]


def clusters_to_test(
    rows: Sequence[Mapping[str, Any]], cluster_of: Mapping[str, int], split_of: Mapping[int, str]
) -> list[int]:
    """Return half of the clusters that would calibrate only served models whose test split is kept elsewhere."""
    tested = {row["model"] for row in rows if row["split"] == "test"}
    published = {row["model"] for row in rows if row["split"]} - tested
    others = {cluster_of[row["prompt"]] for row in rows if row["model"] in tested}
    own = {cluster_of[row["prompt"]] for row in rows if row["model"] in published}
    return sorted(cluster for cluster in own - others if split_of[cluster] == "calibration")[::2]


def published_splits(rows: Sequence[Mapping[str, Any]], cluster_of: Mapping[str, int]) -> dict[int, str]:
    """Return the split of each cluster that has a row with one."""
    found: dict[int, str] = {}
    for row in sorted((row for row in rows if row["split"]), key=lambda row: -PRIORITY.index(row["split"])):
        found[cluster_of[row["prompt"]]] = row["split"]
    return found


if __name__ == "__main__":
    main()
