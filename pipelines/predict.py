"""Predict a lower bound and a median for every prompt of a file."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipelines.files import atomic_file, write_json
from pipelines.outputs import check_output
from pipelines.settings.predict import PredictSettings
from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.distribution import FloatArray
from predictor.errors import InputError
from predictor.prompts.request_features import Contexts
from predictor.quality import MeasuredBounds
from predictor.records.records import Records, has_lengths, prompt_of, records_from_rows, select_rows
from predictor.records.rows import Row
from predictor.resolve import resolve_predictor
from predictor.spec import LengthPredictorLike, PredictorSpec

CHUNK_SIZE = 128


def run(settings: PredictSettings) -> None:
    """Write a line per row, in order: index (row of the file, from 0), output_len_lower_bound, output_len_median.

    Raises:
        InputError: a file, row or option that the user can mend.
    """
    if settings.workload is not None:
        check_output(settings.workload, "--workload", is_folder=False, inputs=[settings.data, settings.out])
    length_predictor = resolve_predictor(settings.path)
    spec = length_predictor.spec
    rows = select_rows(settings.data, None, settings.split)
    if settings.model is not None:
        spec.choose(settings.model)
        rows = [row for row in rows if row.text("model") == settings.model] or rows
    prompts = [prompt_of(row, spec.chat_options) for row in rows]
    records = records_from_rows(rows) if has_lengths(rows) else None
    if settings.workload is not None:
        _check_servable(settings.data, rows, records)
    choices = [settings.model or (row.model if row.model in spec.models else spec.choose()) for row in prompts]
    for choice in set(choices):
        spec.calibration(choice).level(settings.tau)
    survivals = survivals_with_progress(
        length_predictor, [row.prompt for row in prompts], "predict", shown=settings.progress
    )
    bounds, medians = predict_each(spec, survivals, choices, settings.tau, [row.max_new_tokens for row in prompts])
    with atomic_file(settings.out) as aside, aside.open("w", encoding="utf-8") as lines:
        for row, bound, middle in zip(prompts, bounds, medians, strict=True):
            line = {"index": row.index, "output_len_lower_bound": int(bound), "output_len_median": int(middle)}
            lines.write(json.dumps(line) + "\n")
    print(f"{len(rows)} bounds at tau {settings.tau}: {settings.out}")
    if settings.workload is not None and records is not None:
        survival = [spec.survival_of(survivals[i : i + 1], choice)[0] for i, choice in enumerate(choices)]
        write_workload(settings.workload, rows, records, (bounds, medians), survival, spec.bins)
    if records is not None:
        print_quality(MeasuredBounds(records, bounds, medians), settings.tau, spec.bins.max_length)


def _check_servable(data: Path, rows: Sequence[Row], records: Records | None) -> None:
    if records is None:
        raise InputError(f"--workload: {data} has no lengths to serve")
    for row in rows:
        if not isinstance(row.fields.get("num_prompt_tokens"), int):
            row.fail("num_prompt_tokens", "must be a whole number for --workload")


def write_workload(
    path: Path,
    rows: Sequence[Row],
    records: Records,
    predicted: tuple[IntArray, IntArray],
    survival: Sequence[FloatArray],
    bins: LengthBins,
) -> None:
    """Write a line for each draw of each row, arriving at 0, and the edges of the field survival beside it.

    Lengths, and the limit max_new_tokens where a row has none, end at the last edge.
    """
    lower, middle = predicted
    with atomic_file(path) as aside, aside.open("w", encoding="utf-8") as lines:
        for i, row in enumerate(rows):
            limit = min(
                (records.max_new_tokens[i] if records.max_new_tokens else None) or bins.max_length, bins.max_length
            )
            facts = {
                "num_prompt_tokens": row.fields.get("num_prompt_tokens"),
                "max_new_tokens": limit,
                "output_len_lower_bound": min(int(lower[i]), limit),
                "output_len_prediction": min(int(middle[i]), limit),
                "survival": survival[i].round(6).tolist(),
            }
            for k, length in enumerate(records.output_lens[i].tolist()):
                line = {"request_id": f"{records.prompt_ids[i]}.{k}", "output_len": min(length, limit), **facts}
                lines.write(json.dumps(line) + "\n")
    write_json(path.with_name(path.name + ".bins.json"), bins.to_list())


def predict_each(
    spec: PredictorSpec, survivals: FloatArray, choices: Sequence[str], tau: float, limits: Sequence[int | None]
) -> tuple[IntArray, IntArray]:
    """Return the lower bounds and medians [N] of N prompts, each for its own choice of served model."""
    bounds, medians = np.zeros(len(choices), dtype=np.int64), np.zeros(len(choices), dtype=np.int64)
    for choice in set(choices):
        rows = np.flatnonzero(np.asarray(choices) == choice)
        survival = spec.survival_of(survivals[rows], choice)
        predictions = spec.predictions(survival, tau, [limits[int(row)] for row in rows], choice)
        bounds[rows], medians[rows] = predictions.lower_bounds, predictions.medians
    return bounds, medians


def survivals_with_progress(
    length_predictor: LengthPredictorLike,
    prompts: Sequence[str],
    label: str,
    contexts: Contexts = None,
    *,
    shown: bool,
) -> FloatArray:
    """Return the survival [N, M, K+1] of N requests for every served model, with a progress bar while it takes."""
    parts = []
    with tqdm(total=len(prompts), desc=label, unit="prompt", disable=not shown) as progress:
        for start in range(0, len(prompts), CHUNK_SIZE):
            rows = slice(start, start + CHUNK_SIZE)
            chunk = prompts[rows]
            known = {} if contexts is None else {"contexts": contexts[rows]}
            parts.append(length_predictor.survivals(chunk, **known))
            progress.update(len(chunk))
    return np.concatenate(parts)


def print_quality(measured: MeasuredBounds, tau: float, max_length: int) -> None:
    """Print coverage and tightness of bounds, where they are of one served model."""
    if len(set(measured.records.models)) > 1:
        print("several served models in the data: choose one with --model to see coverage")
        return
    quality = measured.quality(tau, max_length)
    print(f"coverage {quality.coverage:.3f} (target {1 - tau:.2f}), tightness {quality.tightness:.3f}")
