"""A folder that `amin export` wrote: what its manifest states, read back whole or refused in one line."""

import hashlib
from pathlib import Path

import numpy as np

from predictor.bounds.calibration import ConformalTable
from predictor.bounds.tail import MAX_TAIL, MIN_TAIL
from predictor.errors import InputError
from predictor.json_file import read_object
from predictor.spec import PredictorSpec

MANIFEST, MODEL, TOKENIZER = "manifest.json", "model.onnx", "tokenizer.json"
PRECISIONS = ("fp32", "int8")
MAX_PROMPT_TOKENS = 1 << 20


def read_export(folder: Path) -> PredictorSpec:
    """Return what the manifest in `folder` states, its files being those that it describes.

    Raises:
        InputError: a file is missing or is not the one that the manifest describes, the manifest is not whole, or of
            another format version.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise InputError(f"{manifest}: no such file; {folder} is not a folder written by `amin export`")
    value = read_object(manifest, "write the export again with `amin export`")
    try:
        spec = PredictorSpec.from_dict(value, str(manifest))
        check_spec(spec)
        _require(value["max_length"] == spec.bins.max_length, "max_length", value["max_length"])
        _require(value["precision"] in PRECISIONS, "precision", value["precision"])
        hashes = dict(value["sha256"])
    except InputError:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise not_whole(manifest, error) from None
    for name in (MODEL, TOKENIZER):
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: no such file; write the export again with `amin export`")
        if hashes.get(name) != sha256(file):
            raise InputError(f"{file}: not the file that {MANIFEST} describes; write the export again")
    return spec


def not_whole(file: Path, problem: object) -> InputError:
    """Return the error for a file with a `problem`, in one line."""
    line = " ".join(str(problem).split())[:200]
    return InputError(f"{file}: not whole: {line}; write the export again with `amin export`")


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_spec(spec: PredictorSpec) -> None:
    """Raise ValueError that names the field of a manifest with a value that no export has."""
    _require(0 < spec.max_prompt_tokens <= MAX_PROMPT_TOKENS, "max_prompt_tokens", spec.max_prompt_tokens)
    _require(spec.pad_token_id >= 0, "pad_token_id", spec.pad_token_id)
    names = all(isinstance(name, str) for name in spec.models) and len(set(spec.models)) == len(spec.models)
    _require(names and bool(spec.models), "models", spec.models)
    _require(spec.served_model in spec.choices, "served_model", spec.served_model)
    terms = all(type(term) is int and 0 <= term < 1 << 63 for term in spec.terms)
    _require(terms and list(spec.terms) == sorted(set(spec.terms)), "terms", "not increasing")
    for name in spec.choices:
        _require(name in spec.calibrations, "calibrations", f"none for {name}")
    for name, calibration in spec.calibrations.items():
        _check_table(calibration.pit, f"calibrations: {name}: pit", highest=1.0)
        _check_table(calibration.lengths, f"calibrations: {name}: lengths", highest=2.0**53)
        _require(MIN_TAIL <= calibration.tail <= MAX_TAIL, f"calibrations: {name}: tail", calibration.tail)


def _check_table(table: ConformalTable, field: str, highest: float) -> None:
    _require(table.num_prompts >= 1, f"{field}: num_prompts", table.num_prompts)
    _require(0 < len(table.scores) == len(table.cumulated), field, f"{len(table.scores)} scores")
    for name, values, top in (("scores", table.scores, highest), ("cumulated", table.cumulated, table.num_prompts + 1)):
        numbers = all(type(value) in (int, float) for value in values)
        _require(numbers, f"{field}: {name}", "one that is not a number")
        array = np.asarray(values, dtype=np.float64)
        if name == "cumulated":
            _require(abs(values[-1] - table.num_prompts) < 1e-3, f"{field}: num_prompts", table.num_prompts)
        is_sorted = bool((np.diff(array) >= 0).all()) and array[0] >= 0 and array[-1] <= top
        _require(is_sorted, f"{field}: {name}", f"not increasing from 0 to {top:g} at most")


def _require(holds: bool, field: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{field}: {value}")
