"""How long an iteration takes."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from scheduler.errors import InputError
from scheduler.json_file import read_json

TICKS_PER_SECOND = 10**15
MOST_SECONDS = 1e6


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of an iteration, linear in what it computes and reads.

    Recomputation after an eviction is charged: the tokens prefilled again are prefill tokens.

    Attributes:
        seconds_per_iteration: Of an iteration whatever it does: the weights are read once.
        seconds_per_prefill_token: Per prompt token (or recomputed one) that is processed.
        seconds_per_decoding_request: Per request that gets a token without prefill.
        seconds_per_kv_token: Per token in the KV cache at the end of the iteration.
        seconds_per_prefill: Of an iteration that prefills at all, once: it runs without the graph of a decoding one.
    """

    seconds_per_iteration: float
    seconds_per_prefill_token: float = 0.0
    seconds_per_decoding_request: float = 0.0
    seconds_per_kv_token: float = 0.0
    seconds_per_prefill: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: A field is negative or not a number, or an iteration would take no time.
        """
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_SECONDS:
                raise InputError(f"{name} is {value!r}, must be a number of seconds from 0 to {MOST_SECONDS:g}")
        if self.seconds_per_iteration * TICKS_PER_SECOND < 1:
            raise InputError(f"seconds_per_iteration is {self.seconds_per_iteration}, must be above 0")

    @classmethod
    def read(cls, path: Path) -> "CostModel":
        """Return the cost model of a JSON file with these fields.

        Raises:
            InputError: The file is missing, not JSON, or a field is unknown, missing or out of its range.
        """
        values = read_json(path)
        names = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or "seconds_per_iteration" not in values:
            raise InputError(f"{path}: must be an object with seconds_per_iteration and, if needed, {names[1:]}")
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise InputError(f"{path}: unknown field {unknown[0]!r}; the fields are {', '.join(names)}")
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Clock:
    """A cost model in whole ticks, so that many iterations at once take exactly what they take one by one."""

    ticks_per_unit: int
    iteration: int
    prefill_token: int = 0
    decoding_request: int = 0
    kv_token: int = 0
    prefill: int = 0
    is_constant: bool = False
    """Whether every iteration takes the same, whatever it does."""

    @classmethod
    def of(cls, cost_model: CostModel | None) -> "Clock":
        """Return the clock of a cost model, in femtoseconds; of none, the iteration clock: every iteration takes 1."""
        if cost_model is None:
            return cls(1, 1, is_constant=True)
        return cls(TICKS_PER_SECOND, *(round(value * TICKS_PER_SECOND) for value in asdict(cost_model).values()))

    def first(self, prefill_tokens: int, num_decoding: int, kv_tokens: int) -> int:
        """Return the ticks of one iteration; `kv_tokens` are in the cache at its end."""
        if self.is_constant:
            return self.iteration
        work = self.prefill_token * prefill_tokens + self.decoding_request * num_decoding
        return self.iteration + work + self.kv_token * kv_tokens + (self.prefill if prefill_tokens else 0)

    def decode(self, num_iterations: int, num_decoding: int, kv_tokens: int) -> int:
        """Return the ticks of iterations that only decode; `kv_tokens` are in the cache before the first."""
        if self.is_constant:
            return self.iteration * num_iterations
        each = self.iteration + self.decoding_request * num_decoding + self.kv_token * kv_tokens
        return num_iterations * each + self.kv_token * num_decoding * num_iterations * (num_iterations + 1) // 2
