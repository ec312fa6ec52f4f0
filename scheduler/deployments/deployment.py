"""What a served model runs on, as a JSON file: memory, limits, the time of an iteration, and where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from scheduler.cost_model import CostModel
from scheduler.errors import InputError
from scheduler.json_file import read_json

_BUNDLED = resources.files("scheduler.deployments") / "bundled"
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class ClockError:
    """How far a clock is from the iterations that it was fitted on; shares of their measured time.

    Attributes:
        num_iterations: How many there were.
        median: Median of the absolute errors.
        p90: Their 0.9 quantile.
        worst: The largest.
    """

    num_iterations: int
    median: float
    p90: float
    worst: float


@dataclass(frozen=True, slots=True)
class Deployment:
    """One replica of a served model, and how many of them there are.

    Attributes:
        model: As its publisher names it.
        hardware: The card.
        engine: What the clock was measured under.
        tensor_parallel: Cards of a replica.
        kv_tokens: Tokens that the KV cache of a replica holds.
        block_size: Tokens of a KV block.
        max_running: Most requests that run at once in a replica (slots, vLLM's `max_num_seqs`).
        max_batch_tokens: Most tokens of one iteration (vLLM's `max_num_batched_tokens`).
        prefix_caching: Whether the engine keeps the blocks of what has ended, for requests with the same prefix.
        clock: What an iteration takes.
        source: Where clock, memory and limits come from.
        date: When that was.
        clock_error: Of the clock's fit; None where the clock was not fitted.
        replicas: How many serve side by side.
    """

    model: str
    hardware: str
    engine: str
    tensor_parallel: int
    kv_tokens: int
    block_size: int
    max_running: int
    max_batch_tokens: int
    prefix_caching: bool
    clock: CostModel
    source: str
    date: str
    clock_error: ClockError | None = None
    replicas: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: A field is out of its range; the message names it.
        """
        for name in ("model", "hardware", "engine", "source", "date"):
            if not isinstance(value := getattr(self, name), str) or not value:
                raise InputError(f"{name} is {value!r}, must be a text")
        for name in ("tensor_parallel", "kv_tokens", "block_size", "max_running", "max_batch_tokens", "replicas"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}, must be a whole number >= 1")
        if self.kv_tokens < self.block_size:
            raise InputError(f"kv_tokens is {self.kv_tokens}, must hold a block of {self.block_size}")
        if not isinstance(self.prefix_caching, bool):
            raise InputError(f"prefix_caching is {self.prefix_caching!r}, must be true or false")

    @property
    def num_cards(self) -> int:
        """Cards of all replicas."""
        return self.tensor_parallel * self.replicas

    def to_json(self) -> dict[str, Any]:
        """Return the value that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Deployment":
        """Return the deployment of a JSON object with these fields.

        Raises:
            InputError: A field is unknown, missing or out of its range.
        """
        values = dict(_object(value, cls, "a deployment"))
        # A term left out would be free, and what is simulated too good.
        values["clock"] = CostModel(**_object(values["clock"], CostModel, "clock", is_whole=True))
        if values.get("clock_error") is not None:
            values["clock_error"] = ClockError(**_object(values["clock_error"], ClockError, "clock_error"))
        return cls(**values)


def bundled_names() -> Sequence[str]:
    """Return the names of the deployments that come with the package, sorted."""
    names = (entry.name for entry in _BUNDLED.iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def read_deployment(name_or_file: str) -> Deployment:
    """Return a deployment by the name of a bundled one, or from a JSON file.

    Raises:
        InputError: It is neither, or the file is malformed: names the file and the field.
    """
    names = bundled_names()
    if name_or_file in names:
        path = Path(str(_BUNDLED / (name_or_file + _SUFFIX)))
    else:
        path = Path(name_or_file)
        if not path.is_file():
            raise InputError(f"deployment {name_or_file!r} is neither a file nor one of {', '.join(names)}")
    try:
        return Deployment.from_json(read_json(path))
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _object(value: Any, of: type[Any], name: str, *, is_whole: bool = False) -> Mapping[str, Any]:
    """Return a JSON object whose keys are the fields of a dataclass, all of them where `is_whole`; else InputError."""
    known = {field.name: field for field in fields(of)}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object with {', '.join(known)}")
    if unknown := sorted(set(value) - set(known)):
        raise InputError(f"unknown field {unknown[0]!r} of {name}; the fields are {', '.join(known)}")
    required = [field.name for field in fields(of) if is_whole or field.default is MISSING]
    if missing := [each for each in required if each not in value]:
        raise InputError(f"{name} lacks the field {missing[0]!r}")
    return value
