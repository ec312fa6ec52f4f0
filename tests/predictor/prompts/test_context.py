"""What a request says apart from its prompt."""

import dataclasses

import numpy as np
import pytest

from predictor.errors import InputError
from predictor.prompts.context import CONTEXT_NAMES, UNKNOWN, RequestContext, context_features


def test_what_is_unknown_is_marked_as_such() -> None:
    """A request of which nothing is known has zeros; 0 and False are something known."""
    unknown, known = context_features([UNKNOWN, RequestContext(num_tools=0, thinking=False)])
    assert not unknown.any()
    given = {name for name, value in zip(CONTEXT_NAMES, known, strict=True) if value}
    assert given == {"given:num_tools", "given:thinking"}


def test_every_field_changes_the_features() -> None:
    """No field is left out of what the network reads."""
    values = {
        "system_prompt": "Be brief.", "num_earlier_turns": 4, "earlier_characters": 900, "last_answer_characters": 300,
        "num_tools": 3, "max_new_tokens": 256, "temperature": 0.7, "thinking": True, "thinking_budget": 4096,
        "is_json": True, "num_answers": 2,
    }  # fmt: skip
    assert set(values) == {field.name for field in dataclasses.fields(RequestContext)}
    rows = context_features([UNKNOWN, *(RequestContext(**{name: value}) for name, value in values.items())])  # type: ignore[arg-type]
    assert len(np.unique(rows, axis=0)) == len(values) + 1
    assert np.isfinite(rows).all()


def test_no_requests_give_no_rows() -> None:
    """The width stays."""
    assert context_features([]).shape == (0, len(CONTEXT_NAMES))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_tools", -1), ("max_new_tokens", 2.5), ("temperature", float("nan")), ("thinking", 1), ("num_answers", True),
     ("system_prompt", 3)],
)  # fmt: skip
def test_a_value_that_no_request_has_is_refused_by_name(field: str, value: object) -> None:
    """The message starts with the field."""
    with pytest.raises(InputError, match=f"^{field}: must be"):
        RequestContext(**{field: value})  # type: ignore[arg-type]
