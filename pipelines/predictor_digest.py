"""What a predictor is known by: a hash of all that its predictions depend on, and of nothing else."""

import hashlib
import json
from pathlib import Path

from pipelines.files import content_sha256
from predictor.export_folder import MANIFEST, MODEL, TOKENIZER
from predictor.json_file import read_object
from predictor.training.checkpoint import REMEDY, SPEC_FILE, WEIGHTS_FILE, predictor_folder

NOTES = {"versions", "measured", "sha256"}
"""What the JSON file says of how the predictor was made and measured, and of the card's contents."""


def predictor_sha256(path: Path) -> str:
    """Return the SHA-256 of graph or weights, tokenizer, bins, calibrations and the rest of what the JSON file states.

    The card, levels that were tuned, measures and versions do not count: predictions stay the same without them.

    Args:
        path: An export, a predictor folder, or the folder of a run.

    Raises:
        InputError: There is no predictor, or its JSON file is no object.
    """
    is_export = (path / MANIFEST).is_file()
    folder = path if is_export else predictor_folder(path)
    facts = read_object(folder / (MANIFEST if is_export else SPEC_FILE), REMEDY)
    stated = json.dumps({name: value for name, value in facts.items() if name not in NOTES}, sort_keys=True)
    hashed = hashlib.sha256(stated.encode())
    for name in (MODEL, TOKENIZER) if is_export else (WEIGHTS_FILE, "config.json", TOKENIZER):
        hashed.update(bytes.fromhex(content_sha256(folder / name)))
    return hashed.hexdigest()
