"""The folder of states next to the records: its name, its size, and what may be in it already."""

import shutil
from pathlib import Path

from pipelines.files import discard
from pipelines.output.aside import FOLDER
from pipelines.output.claim import check_output
from predictor.errors import InputError
from predictor.probe.states import POSITIONS, SOURCE_FILE, StateSource

KINDS = (".safetensors", FOLDER)
"""How the names of shards end, and of what a killed call was writing."""


def states_folder(out: Path) -> Path:
    """Return where the states of the answers to records `out` are."""
    return out.with_name(out.name + ".states")


def prepare_folder(out: Path, *, is_begun: bool, force: bool) -> None:
    """Remove states that are to be replaced; what an interrupted call left stays, but does not count as finished.

    Raises:
        InputError: States are there that belong to no answers that are there, or the folder cannot be written.
    """
    folder = states_folder(out)
    check_output(folder, "--states", is_folder=True)
    there = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    if foreign := [name for name in there if not (name == SOURCE_FILE or name.endswith(KINDS))]:
        raise InputError(f"--states: {folder} holds {min(foreign)}, which are no states; give another --out")
    if force and there:
        discard(folder)
        return
    if there and not is_begun:
        raise InputError(
            f"--states: {folder} has states of answers that are gone; remove it, or replace it with --force"
        )
    (folder / SOURCE_FILE).unlink(missing_ok=True)


def say_size(source: StateSource, num_answers: int, max_new_tokens: int, folder: Path) -> None:
    """Print how much the states may take, before any work.

    Raises:
        InputError: The disk has less room than that.
    """
    rows = sum(t < max_new_tokens for t in POSITIONS)
    most = num_answers * rows * (3 * len(source.layers) * source.hidden_size * 2 + 3 * 8)
    print(
        f"states: at most {most / 2**20:,.0f} MiB in {folder} ({rows} positions of {num_answers} answers, "
        f"{len(source.layers)} layers of {source.hidden_size}, half precision)"
    )
    there = sum(shard.stat().st_size for shard in folder.glob("*.safetensors"))
    free = shutil.disk_usage(folder.absolute().parent).free
    if most - there > free:
        raise InputError(
            f"--states: {folder} may need {most / 2**20:,.0f} MiB, {free / 2**20:,.0f} are free; name fewer layers, or "
            "lower --draws, --limit or --max-new-tokens"
        )
