"""What a request says apart from the text of its prompt, as numbers that the network reads."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite, log1p
from typing import Any

import numpy as np

from predictor.errors import InputError
from predictor.prompts.features import FloatMatrix

# Enough for any request; a larger value says no more, and a feature must stay finite.
MAX_COUNT = 10_000_000
MAX_TEMPERATURE = 10.0


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a request says apart from its prompt. None means not known, which is not the same as 0 or False.

    Counts are checked when it is made: InputError names the field that is negative, not finite or of another type.
    """

    system_prompt: str | None = None
    """Text of the system (or developer) message, "" where there is none."""
    num_earlier_turns: int | None = None
    """Messages of the conversation before the prompt, the system's left out."""
    earlier_characters: int | None = None
    """Characters of these messages."""
    last_answer_characters: int | None = None
    """Characters of the last answer among them, 0 where there is none."""
    num_tools: int | None = None
    """Tools offered to the model."""
    max_new_tokens: int | None = None
    """The request's own cap on its answer, in tokens."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy."""
    thinking: bool | None = None
    """Whether the model is to reason before it answers."""
    thinking_budget: int | None = None
    """Tokens that it may spend on that."""
    is_json: bool | None = None
    """Whether the answer must be JSON (JSON mode, a schema or a grammar)."""
    num_answers: int | None = None
    """Answers asked for with this prompt (`n`)."""

    def __post_init__(self) -> None:
        """Raise InputError for a value that no request has, naming the field."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _check(field.name, value)


UNKNOWN = RequestContext()
"""A request of which nothing but its prompt is known."""

COUNTS = (
    "num_earlier_turns", "earlier_characters", "last_answer_characters", "num_tools", "max_new_tokens",
    "thinking_budget", "num_answers",
)  # fmt: skip
FLAGS = ("thinking", "is_json")
CONTEXT_NAMES = (
    "given:system_prompt",
    "log_system_characters",
    "given:temperature",
    "temperature",
    *(f"{kind}:{name}" for name in COUNTS for kind in ("given", "log")),
    *(f"{kind}:{name}" for name in FLAGS for kind in ("given", "is")),
)
"""Names of the columns of `context_features`."""


def context_features(contexts: Sequence[RequestContext]) -> FloatMatrix:
    """Return the features [N, C] of N requests in the order of `CONTEXT_NAMES`.

    Each value is followed by a column that is 1 where it is known; an unknown value is 0 in both.
    """
    rows = [_features(context) for context in contexts]
    return np.asarray(rows, dtype=np.float32).reshape(len(rows), len(CONTEXT_NAMES))


def _features(context: RequestContext) -> list[float]:
    system, temperature = context.system_prompt, context.temperature
    values = [
        float(system is not None),
        log1p(len(system or "")),
        float(temperature is not None),
        min(temperature or 0.0, MAX_TEMPERATURE),
    ]
    for name in COUNTS:
        count = getattr(context, name)
        values += [float(count is not None), log1p(min(count or 0, MAX_COUNT))]
    for name in FLAGS:
        flag = getattr(context, name)
        values += [float(flag is not None), float(bool(flag))]
    return values


def _check(name: str, value: Any) -> None:
    match name:
        case "system_prompt":
            right, wanted = isinstance(value, str), "text"
        case "thinking" | "is_json":
            right, wanted = isinstance(value, bool), "true or false"
        case "temperature":
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            right, wanted = is_number and isfinite(value) and value >= 0, "a number of at least 0"
        case _:
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            right, wanted = is_whole and value >= 0, "a whole number of at least 0"
    if not right:
        raise InputError(f"{name}: must be {wanted}, not {value!r}")
