"""States of a served model on disk: safetensors shards and one JSON file that says what they are of."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from predictor.bounds.bins import IntArray
from predictor.errors import InputError
from predictor.json_file import read_object

FORMAT = 1
SOURCE_FILE = "states.json"
HalfArray = npt.NDArray[np.float16]
POSITIONS = (0, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Tokens out when a state is kept: log-spaced, as lengths are."""
WINDOW = 16
"""States whose mean is kept along with the last one: it clearly improves the order of remaining lengths."""


@dataclass(frozen=True, slots=True)
class StateSource:
    """What states are of; a probe works for this and nothing else.

    Attributes:
        served_model: Its name.
        revision: Hash of its weights.
        template: Hash of its chat template.
        layers: Which hidden states: 0 is the embedding, k what layer k gives out, before any norm that follows.
        hidden_size: Width of a state.
        window: How many of the last states the mean is over.
    """

    served_model: str
    revision: str
    template: str
    layers: tuple[int, ...]
    hidden_size: int
    window: int = WINDOW

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], path: Path) -> "StateSource":
        """Return what `to_dict` wrote; InputError naming the first field that is missing or of the wrong type."""
        kinds = {
            "served_model": str,
            "revision": str,
            "template": str,
            "layers": list,
            "hidden_size": int,
            "window": int,
        }
        for name, kind in kinds.items():
            if not isinstance(value.get(name), kind):
                raise InputError(f"{path}: {name}: must be a {kind.__name__}, not {value.get(name)!r}")
        known = {field.name: value[field.name] for field in fields(cls)}
        return cls(**{**known, "layers": tuple(int(layer) for layer in value["layers"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the source for JSON."""
        return {**asdict(self), "layers": list(self.layers)}

    def require(self, other: "StateSource", path: Path) -> None:
        """Raise InputError, naming the field, where `other` is another model, layer or template."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs:
                raise InputError(
                    f"{path}: {field.name}: made for {ours!r}, this is {theirs!r}; collect and train again"
                )


@dataclass(frozen=True, slots=True)
class States:
    """States of answers, a row each; half precision.

    The state after t generated tokens is the one at the t-th of them, when the model reads it to write the next; for
    t = 0 it is the one at the prompt's last token. It exists where the answer has more than t tokens.

    Attributes:
        prompt: Row of the prompt in the records, [S].
        draw: Which of its answers, [S].
        generated: Tokens that were out, [S]; 0 is the prompt's last token.
        last: The state at the last token, [S, L, H].
        recent: Mean of the last `window` states from the prompt's last token on (fewer at the start), [S, L, H].
        prompt_mean: Mean of the prompt's states, [S, L, H].
    """

    prompt: IntArray
    draw: IntArray
    generated: IntArray
    last: HalfArray
    recent: HalfArray
    prompt_mean: HalfArray

    def __len__(self) -> int:
        return len(self.prompt)

    def select(self, rows: npt.NDArray[Any]) -> "States":
        """Return the rows at these places, or where a mask is true."""
        return States(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence["States"]) -> "States":
        """Return the rows of all parts, one after the other; at least one part."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def write_shard(path: Path, states: States) -> None:
    """Write one shard; the caller renames it into place."""
    arrays = {field.name: np.ascontiguousarray(getattr(states, field.name)) for field in fields(states)}
    path.write_bytes(save(arrays))  # save_file keeps others from reading it


def write_source(folder: Path, source: StateSource, records_sha256: str) -> None:
    """Write what the shards of `folder` are of, and the hash of the records whose answers they are."""
    value = {"format": FORMAT, "records_sha256": records_sha256, **source.to_dict()}
    (folder / SOURCE_FILE).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_source(folder: Path) -> tuple[StateSource, str]:
    """Return what the shards of `folder` are of, and the hash of their records; InputError where that is unknown."""
    path = folder / SOURCE_FILE
    value = read_object(path, "give a folder of amin collect --states")
    if value.get("format") != FORMAT:
        raise InputError(f"{path}: format: must be {FORMAT}; collect the states again")
    return StateSource.from_dict(value, path), str(value.get("records_sha256"))


def read_states(folder: Path, source: StateSource) -> Iterator[States]:
    """Yield the shards of `folder` in order.

    Raises:
        InputError: There is none, one is damaged, or its arrays do not fit `source` or one another.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InputError(f"{folder}: no shard (*.safetensors); collect the states again")
    for path in paths:
        try:
            arrays = load_file(path)
            states = States(*(arrays[field.name] for field in fields(States)))
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{path}: damaged or not of states ({error}); collect the states again") from None
        _check_shapes(path, states, source)
        yield states


def _check_shapes(path: Path, states: States, source: StateSource) -> None:
    wide = (len(states.prompt), len(source.layers), source.hidden_size)
    for name in ("last", "recent", "prompt_mean"):
        if getattr(states, name).shape != wide:
            raise InputError(f"{path}: {name}: shape {getattr(states, name).shape}, must be {wide}")
    for name in ("draw", "generated"):
        if getattr(states, name).shape != wide[:1]:
            raise InputError(f"{path}: {name}: {len(getattr(states, name))} values, must be {wide[0]}")
