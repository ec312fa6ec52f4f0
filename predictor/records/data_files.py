"""The files that a name of data means: a file, a folder of them, a pattern, or a folder that `datasets` saved."""

from dataclasses import dataclass, field
from pathlib import Path

from predictor.errors import InputError
from predictor.records.row_files import SUFFIXES
from predictor.records.text_files import COMPRESSIONS, kind_of

MAGIC = frozenset("*?[")
_ASIDE = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})  # what `datasets` writes next to the rows


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows, and the columns that its folders name, as in day=1/part-0.parquet."""

    path: Path
    partition: dict[str, str] = field(default_factory=dict)


def data_files(data: str) -> list[DataFile]:
    """Return the files that `data` names, in order of name.

    Of a folder those of the first kind in `SUFFIXES` that it holds. Names that begin with a dot are no data.

    Raises:
        InputError: there is none.
    """
    path = Path(data)
    if path.is_dir():
        found = _in_folder(path)
    elif path.exists() or not set(data) & MAGIC:
        return [DataFile(path)]
    else:
        first = next(place for place, part in enumerate(path.parts) if set(part) & MAGIC)
        root = Path(*path.parts[:first])
        found = [DataFile(file, _partition(file.relative_to(root))) for file in _visible(root, path.parts[first:])]
    if not found:
        raise InputError(
            f"{data}: no such file; give a .parquet or .jsonl file, a folder of them or a pattern in quotes"
        )
    return found


def is_hub_name(data: str) -> bool:
    """Return whether `data` looks like owner/name and not like a path."""
    is_file = kind_of(Path(data)) in SUFFIXES or Path(data).suffix.lower() in COMPRESSIONS
    looks_local = data.startswith((".", "/", "~")) or is_file or set(data) & MAGIC
    return data.count("/") <= 1 and not looks_local


def _in_folder(folder: Path) -> list[DataFile]:
    by_kind: dict[str, list[Path]] = {}
    for file in _visible(folder, ("**", "*")):
        if file.name not in _ASIDE:
            by_kind.setdefault(kind_of(file), []).append(file)
    files = next((by_kind[suffix] for suffix in SUFFIXES if suffix in by_kind), [])
    return [DataFile(file, _partition(file.relative_to(folder))) for file in files]


def _visible(root: Path, pattern: tuple[str, ...]) -> list[Path]:
    found = sorted(file for file in root.glob("/".join(pattern)) if file.is_file())
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(root).parts)]


def _partition(inside: Path) -> dict[str, str]:
    pairs = (part.split("=", 1) for part in inside.parts[:-1] if "=" in part)
    return {name: value for name, value in pairs if value != "__HIVE_DEFAULT_PARTITION__"}
