"""What of the records reaches training."""

import numpy as np

from pipelines.train.data import without_constant_contexts
from predictor.prompts.context import RequestContext
from predictor.records.records import Records


def records_of(contexts: tuple[RequestContext, ...] | None) -> Records:
    """Four records: two prompts, each answered by models a and b."""
    draws = tuple(np.array([5]) for _ in range(4))
    flags = tuple(np.array([False]) for _ in range(4))
    prompts, models = ("p", "q", "p", "q"), ("a", "a", "b", "b")
    return Records(prompts, draws, flags, ("1", "2", "3", "4"), models, ("",) * 4, contexts=contexts)


def test_what_a_served_model_always_says_is_left_out() -> None:
    """A temperature that is fixed for each model, so that the prompt is one request again."""
    fixed = tuple(RequestContext(temperature=value) for value in (1.0, 1.0, 0.7, 0.7))
    assert without_constant_contexts(records_of(fixed)).contexts is None
    assert without_constant_contexts(records_of(None)).contexts is None


def test_what_varies_within_a_served_model_stays() -> None:
    """Also where another model always says the same; the fixed fields next to it go."""
    given = tuple(RequestContext(temperature=1.0, num_tools=count) for count in (0, 3, 1, 1))
    kept = without_constant_contexts(records_of(given)).contexts
    assert kept == tuple(RequestContext(num_tools=count) for count in (0, 3, 1, 1))
