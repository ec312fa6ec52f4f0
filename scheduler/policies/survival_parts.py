"""The numbers of `AminSurvival`, what it keeps of a request, and the rules that a study may exchange."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import inf

from scheduler.errors import InputError
from scheduler.forecast import Forecast
from scheduler.policies.expected_work import ExpectedWork
from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Levels:
    """The numbers of `AminSurvival`.

    Attributes:
        pack_level: Quantile to pack by, in (0, 1).
        reserve_sd: Standard deviations of the sum of the running lengths that an admission leaves free, at least 0.
        max_reserve: Share of the cache that an admission leaves free at most, in [0, 1).
        tail: Between the mean (0: least work first) and the tail: as a multiple of the rate that is tail-optimal in the
            light-tailed M/G/1, at least 0. Large values are first come first served.
        adaptation: Step by which the level of first bounds follows how many answers end below them; 0 keeps it.
    """

    pack_level: float = 0.25
    reserve_sd: float = 0.6
    max_reserve: float = 0.075
    tail: float = 0.01
    adaptation: float = 0.01

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: A field is out of its range; the message names it.
        """
        below = {"reserve_sd": inf, "tail": inf}
        for field in fields(self):
            value, limit = getattr(self, field.name), below.get(field.name, 1.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < limit:
                raise InputError(f"{field.name} is {value!r}, must be a number from 0 to below {limit:g}")
        if not self.pack_level:
            raise InputError("pack_level is 0, must be above 0")


DEFAULT = Levels()


@dataclass(slots=True)
class Entry:
    """What `AminSurvival` keeps of a request.

    Attributes:
        request: Its facts.
        limit: The most tokens that it can generate.
        work: Its forecast, as work to come.
        variance: Of the length.
        arrival: Iteration in which it was first seen, or None.
        bound: Length that it is packed by, 0 before its first admission.
        estimate: Length that it was last looked at with before its first admission.
        first_bound: The bound at its first admission.
        start: Clock minus generated tokens, while it runs.
        shared: Tokens of its prompt that it holds together with others, while it runs.
        known: Tokens that it had before an eviction, the most of several.
        kept: Tokens that it keeps while it waits.
    """

    request: Request
    limit: int
    work: ExpectedWork
    variance: int
    arrival: int | None = None
    bound: int = 0
    estimate: int = 0
    first_bound: int = 0
    start: int | None = None
    shared: int = 0
    known: int = 0
    kept: int = 0

    def to_come(self, generated: int) -> tuple[float, float]:
        """Return tokens and token-iterations after `generated` tokens; once it had more, it will have them again."""
        if self.known <= generated:
            return self.work.remaining(generated)
        known = self.known
        tokens, memory = self.work.remaining(known)
        return known - generated + tokens, self.work.spent(known) - self.work.spent(generated) + memory


NextBound = Callable[[Entry, int, float], int]
"""The bound of an entry that has generated so many tokens, and has outlived the present one; the level is the last."""
Worth = Callable[[Entry, int, bool], float]
"""What evicting an entry with so many tokens costs; the last says whether it would keep them. The least goes first."""


def next_quantile(entry: Entry, generated: int, level: float) -> int:
    """Return the same quantile of the length, given that it exceeds the bounds that are outlived."""
    bound = entry.bound
    while bound <= generated < entry.limit:
        bound = max(bound + 1, int(entry.work.quantile(level, bound)))
    return bound


def progress(entry: Entry, generated: int, resume: bool) -> float:
    """Return memory to be spent again over memory to come: the least work is lost for the most that is put off.

    What it holds together with others is not freed, nor lost.
    """
    kept, shared = generated if resume else 0, entry.shared
    tokens, memory = entry.work.remaining(generated) if entry.known <= generated else entry.to_come(generated)
    count = generated + 1 - kept
    spent = count * (entry.request.num_prompt_tokens - shared + (generated + kept + 2) / 2)
    return spent / (memory - shared * tokens)


def predicted(request: Request, forecast: Forecast) -> tuple[ExpectedWork, int]:
    """Return the work and the variance of the length that a forecast means for a request."""
    cap = request.max_new_tokens
    return ExpectedWork(forecast, request.num_prompt_tokens, cap), round(forecast.variance(cap))
