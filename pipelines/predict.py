"""Predict a lower bound and a median for every prompt of a file."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from predictor.distribution import FloatArray
    from predictor.records import Records
    from predictor.spec import LengthPredictorLike, Predictions

HELP = "predict lower bounds and medians of response length for the prompts of a file"
CHUNK_SIZE = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `amin predict`."""
    parser.add_argument("path", metavar="RUN_OR_EXPORT", type=Path, help="folder that amin train or amin export wrote")
    parser.add_argument("--data", type=Path, required=True, help="prompts (.parquet or .jsonl)")
    parser.add_argument("--tau", type=float, default=0.1, help="probability allowed below the bound")
    parser.add_argument("--split", help="only the rows of this split; default: all")
    parser.add_argument("--model", help="only the rows of this served model; default: all")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file; a line per row, lengths in tokens")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True, help="show a progress bar")


def run(args: argparse.Namespace) -> None:
    """Write a line per row, in order: index (row of the file, from 0), output_len_lower_bound, output_len_median.

    Raises:
        InputError: a file, row or option that the user can mend.
    """
    from pipelines.files import atomic_file
    from predictor.checkpoint import resolve_predictor
    from predictor.records import has_lengths, prompt_of, records_from_rows, select_rows

    rows = select_rows(args.data, args.model, args.split)
    prompts = [prompt_of(row) for row in rows]
    records = records_from_rows(rows) if has_lengths(rows) else None
    length_predictor = resolve_predictor(args.path)
    length_predictor.spec.calibration.level(args.tau)
    survival = survival_with_progress(length_predictor, [row.prompt for row in prompts], "predict", shown=args.progress)
    limits = [row.max_new_tokens for row in prompts]
    predictions = length_predictor.spec.predictions(survival, args.tau, limits)
    with atomic_file(args.out) as aside, aside.open("w", encoding="utf-8") as lines:
        for row, bound, middle in zip(prompts, predictions.lower_bounds, predictions.medians, strict=True):
            line = {"index": row.index, "output_len_lower_bound": int(bound), "output_len_median": int(middle)}
            lines.write(json.dumps(line) + "\n")
    print(f"{len(rows)} bounds at tau {args.tau}: {args.out}")
    if records is not None:
        print_quality(records, predictions, args.tau, length_predictor.bins.max_length)


def survival_with_progress(
    length_predictor: "LengthPredictorLike", prompts: Sequence[str], label: str, *, shown: bool
) -> "FloatArray":
    """Return the survival [N, K+1] of N prompts, with a progress bar while it takes."""
    import numpy as np
    from tqdm import tqdm

    parts = []
    with tqdm(total=len(prompts), desc=label, unit="prompt", disable=not shown) as progress:
        for start in range(0, len(prompts), CHUNK_SIZE):
            chunk = prompts[start : start + CHUNK_SIZE]
            parts.append(length_predictor.survival(chunk))
            progress.update(len(chunk))
    return np.concatenate(parts)


def print_quality(records: "Records", predictions: "Predictions", tau: float, max_length: int) -> None:
    """Print coverage and tightness of the bounds of `records`, where they are of one served model."""
    from predictor.metrics import bound_quality

    if len(set(records.models)) > 1:
        print("several served models in the data: choose one with --model to see coverage")
        return
    quality = bound_quality(
        predictions.lower_bounds, predictions.medians, records.output_lens, records.datasets, tau, max_length
    )
    print(f"coverage {quality.coverage:.3f} (target {1 - tau:.2f}), tightness {quality.tightness:.3f}")
