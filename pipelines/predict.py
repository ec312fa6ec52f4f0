"""Predict a lower bound and a median for every prompt of a file."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipelines.files import atomic_file
from pipelines.output.claim import check_output
from pipelines.request_bounds import UPPER_LEVEL, with_bounds
from pipelines.settings.predict import PredictSettings
from pipelines.simulate.workload_file import bins_file, write_workload
from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.distribution import FloatArray, quantile
from predictor.errors import InputError
from predictor.prompts.request_features import Contexts
from predictor.quality import MeasuredBounds
from predictor.records.records import Records, has_lengths, prompt_of, records_from_rows, select_rows
from predictor.records.rows import Row
from predictor.resolve import resolve_predictor
from predictor.spec import LengthPredictorLike, PredictorSpec
from scheduler.forecast import Forecast
from scheduler.request import Request
from scheduler.workload import Workload

CHUNK_SIZE = 128
LINES = (".jsonl", ".ndjson", "")
"""What the name of a file of JSON lines may end with."""


def run(settings: PredictSettings) -> None:
    """Write a line per row, in order: index (row of the file, from 0), output_len_lower_bound, output_len_median.

    Raises:
        InputError: a file, row or option that the user can fix.
    """
    _check_outputs(settings)
    length_predictor = resolve_predictor(settings.path)
    spec = length_predictor.spec
    rows = select_rows(settings.data, None, settings.split)
    if settings.model is not None:
        spec.choose(settings.model)
        rows = [row for row in rows if row.text("model") == settings.model] or rows
    prompts = [prompt_of(row, spec.chat_options) for row in rows]
    records = records_from_rows(rows) if has_lengths(rows) else None
    num_prompt_tokens = None if settings.workload is None else _num_prompt_tokens(settings.data, rows, records)
    choices = [settings.model or (row.model if row.model in spec.models else spec.choose()) for row in prompts]
    for choice in set(choices):
        spec.calibration(choice).level(settings.tau)
    texts = [row.prompt for row in prompts]
    survivals = survivals_with_progress(length_predictor, texts, "predict", shown=settings.progress)
    bounds, medians = predict_each(spec, survivals, choices, settings.tau, [row.max_new_tokens for row in prompts])
    with ExitStack() as together:
        with together.enter_context(atomic_file(settings.out)).open("w", encoding="utf-8") as lines:
            for row, bound, middle in zip(prompts, bounds, medians, strict=True):
                line = {"index": row.index, "output_len_lower_bound": int(bound), "output_len_median": int(middle)}
                lines.write(json.dumps(line) + "\n")
        if settings.workload is not None and records is not None and num_prompt_tokens is not None:
            survival = [spec.survival_of(survivals[i : i + 1], choice)[0] for i, choice in enumerate(choices)]
            predicted = (bounds, medians, np.asarray(survival), [spec.calibration(choice).tail for choice in choices])
            write_workload(settings.workload, as_workload(records, num_prompt_tokens, predicted, spec.bins))
    print(f"{len(rows)} bounds at tau {settings.tau}: {settings.out}")
    if records is not None:
        print_quality(MeasuredBounds(records, bounds, medians), settings.tau, spec.bins.max_length)


def _check_outputs(settings: PredictSettings) -> None:
    """Refuse, before the work, what claims only `--out` do not: the form of its name, and the workload's files."""
    if settings.out.suffix.lower() not in LINES:
        name = settings.out.with_suffix(".jsonl")
        raise InputError(f"--out: {settings.out} would be JSON lines under that name; call it {name}")
    if settings.workload is None:
        return
    for file in (settings.workload, bins_file(settings.workload)):
        check_output(file, "--workload", is_folder=False, inputs=[settings.data, settings.out])
        if file.exists() and not settings.force:
            raise InputError(f"--workload: {file} is there already; replace it with --force, or give another name")


def _num_prompt_tokens(data: Path, rows: Sequence[Row], records: Records | None) -> list[int]:
    """Return what a workload needs of each row; InputError for the first that lacks it."""
    if records is None:
        raise InputError(f"--workload: {data} has no lengths to serve")
    counts = []
    for row in rows:
        count = row.token_count("num_prompt_tokens")
        if count is None:
            row.fail("num_prompt_tokens", "missing; --workload needs the tokens of every prompt")
        counts.append(count)
    return counts


def as_workload(
    records: Records,
    num_prompt_tokens: Sequence[int],
    predicted: tuple[IntArray, IntArray, FloatArray, Sequence[float]],
    bins: LengthBins,
) -> Workload:
    """Return a request for each draw of each row, arriving at 0; several draws of a row are a group.

    Lengths, and the limit max_new_tokens where a row has none, end at the last edge.

    Args:
        records: N rows with their draws.
        num_prompt_tokens: Of each row.
        predicted: Lower bounds [N], medians [N], survival [N, K+1] and the indices of the tails [N].
        bins: Those of the survival.
    """
    edges, uppers = bins.as_array(), quantile(bins, predicted[2], UPPER_LEVEL)
    requests, lengths = [], []
    for i, (lower, median, survival, tail) in enumerate(zip(*predicted, strict=True)):
        stated = records.max_new_tokens[i] if records.max_new_tokens else None
        limit = min(stated or bins.max_length, bins.max_length)
        bounds = (int(lower), int(median), int(uppers[i]))
        own_group = records.groups[i] if records.groups else ""
        group = records.prompt_ids[i] if len(records.output_lens[i]) > 1 else own_group
        kind = records.classes[i] if records.classes else ""
        for k, length in enumerate(records.output_lens[i].tolist()):
            name = f"{records.prompt_ids[i]}.{k}"
            request = Request(name, num_prompt_tokens[i], limit, group=group, service_class=kind)
            requests.append(with_bounds(request, bounds, Forecast(edges, survival, tail)))
            lengths.append(min(length, limit))
    return Workload(requests, lengths)


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
