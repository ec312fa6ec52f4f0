"""Export a predictor for serving: an ONNX graph, calibrated as exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.files import atomic_directory
from pipelines.predict import survivals_with_progress
from pipelines.probe.export import export_probe, is_probe
from pipelines.scheduling import FILE_NAME
from pipelines.settings.export import ExportSettings
from pipelines.settings.train import stored_settings
from predictor.bounds.distribution import FloatArray
from predictor.bounds.metrics import CLIPPED_AT
from predictor.errors import InputError
from predictor.export_folder import MANIFEST, MODEL, TOKENIZER
from predictor.quality import bounds_by_model, pool
from predictor.records.prompt_table import PromptTable, prompt_table
from predictor.records.records import records_from_rows
from predictor.records.rows import read_rows
from predictor.serving import LengthPredictor
from predictor.spec import PredictorSpec
from predictor.training.checkpoint import load_for_models, load_predictor, load_spec, predictor_folder, versions
from predictor.training.export import write_graph, write_manifest
from predictor.training.network import TorchLengthPredictor


def run(settings: ExportSettings) -> None:
    """Write the export, whole or not at all, and print what was measured on the test split.

    Raises:
        InputError: the folder holds neither predictor nor probe, or not the served model, or int8 or fewer tokens are
            wanted without a calibration split.
    """
    if is_probe(settings.run_folder):
        export_probe(settings)
        return
    folder = predictor_folder(settings.run_folder)
    check_replaceable(settings.out)
    splits = folder.resolve().parent
    is_cut = settings.max_prompt_tokens is not None
    changed = "--max-prompt-tokens" if is_cut else "int8" if settings.precision == "int8" else None
    if changed and not (splits / "calibration.parquet").is_file():
        raise InputError(
            f"{splits / 'calibration.parquet'}: no such file; {changed} shifts the quantiles, which must be calibrated "
            "again: export the RUN folder, or as it was trained and with --precision fp32"
        )
    length_predictor = loaded(folder, settings.model)
    trained = length_predictor.spec.max_prompt_tokens
    max_tokens = settings.max_prompt_tokens or trained
    if not 4 <= max_tokens <= trained:
        raise InputError(f"--max-prompt-tokens: must lie between 4 and {trained}, not {max_tokens}")
    spec = replace(length_predictor.spec, versions=versions(), max_prompt_tokens=max_tokens)
    with atomic_directory(settings.out) as aside:
        write_graph(length_predictor, aside, settings.precision)
        write_manifest(aside, spec, settings.precision, None, settings.out.name, settings.license)
        spec = recalibrate(aside, spec, splits / "calibration.parquet", shown=settings.progress)
        write_manifest(aside, spec, settings.precision, None, settings.out.name, settings.license)
        measured = quality_on_test(aside, settings.tau, splits, shown=settings.progress)
        write_manifest(aside, spec, settings.precision, measured, settings.out.name, settings.license)
    size = (settings.out / "model.onnx").stat().st_size / 2**20
    print(f"{settings.out}: {settings.precision}, {size:.1f} MiB")
    if measured is not None:
        target = 1 - settings.tau
        print(f"coverage {measured['coverage']:.3f} (target {target:.2f}), tightness {measured['tightness']:.3f}")


def loaded(folder: Path, model: str | None) -> TorchLengthPredictor:
    """Return the predictor in `folder`, for `model` alone where one is named; InputError where it does not know it."""
    if model is None:
        return load_predictor(folder)
    spec, _ = load_spec(folder)
    if model not in spec.models:
        raise InputError(f"--model: {model!r} is not known to {folder}; it knows {', '.join(spec.models)}")
    one = load_for_models(folder, (model,), 0.0)
    one.spec = replace(one.spec, served_model=model, calibrations={model: spec.calibrations[model]})
    return one


def check_replaceable(out: Path) -> None:
    """Raise InputError unless `out` is missing, empty or an earlier export, which a new one replaces whole."""
    there = {file.name for file in out.iterdir()} if out.is_dir() else set()
    if MANIFEST in there and FILE_NAME in there:
        raise InputError(
            f"--out: {out / FILE_NAME} was tuned for the export that is there; use another --out, or remove it and "
            "run amin tune again"
        )
    if other := there - {MANIFEST, MODEL, TOKENIZER, "README.md"}:
        raise InputError(f"--out: {out} holds {min(other)}, which no export wrote; give a new folder")


def recalibrate(export: Path, spec: PredictorSpec, file: Path, *, shown: bool) -> PredictorSpec:
    """Return `spec` with the calibration of the exported graph on the records in `file`; as it is without the file."""
    if not file.is_file():
        return spec
    table, survivals = survivals_of(export, file, "calibrate", shown=shown)
    return spec.recalibrated(survivals, table)


def quality_on_test(export: Path, tau: float, run: Path, *, shown: bool) -> dict[str, Any] | None:
    """Return the measures of the export on the test split of a run, as `quality`; None without one."""
    if not (run / "test.parquet").is_file():
        return None
    cap = (stored_settings(run, "train the run again") or {}).get("length_cap")
    table, survivals = survivals_of(export, run / "test.parquet", "measure", shown=shown)
    return quality(LengthPredictor(export).spec, survivals, table, tau, cap)


def quality(
    spec: PredictorSpec, survivals: FloatArray, table: PromptTable, tau: float, length_cap: int | None = None
) -> dict[str, Any]:
    """Return the measures of survivals [P, M, K+1] on the records of `table`, pooled and by served model with any.

    Predictions and lengths end at `length_cap` tokens, where the run's lengths do.
    """
    parts = bounds_by_model(spec, survivals, table, tau)
    longest = min(spec.bins.max_length, CLIPPED_AT, length_cap or CLIPPED_AT)
    qualities = {model: part.quality(tau, longest).to_dict() for model, part in parts.items() if len(part.records)}
    return {**pool(parts, table).quality(tau, longest).to_dict(), "models": qualities}


def survivals_of(export: Path, file: Path, label: str, *, shown: bool) -> tuple[PromptTable, FloatArray]:
    """Return the records in `file` and what the export predicts for their prompts, [P, M, K+1]."""
    exported = LengthPredictor(export)
    records = records_from_rows(read_rows(file, one_model=False))
    known = np.flatnonzero(np.isin(records.models, exported.spec.models))
    table = prompt_table(records.select(known), exported.spec.models)
    return table, survivals_with_progress(exported, table.prompts, label, table.contexts, shown=shown)
