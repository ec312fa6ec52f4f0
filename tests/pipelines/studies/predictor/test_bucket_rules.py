"""llm-d's rules: which request they call what, and how that is scored."""

from typing import Any

import numpy as np
import pytest

from pipelines.studies.predictor.bucket_rules import LONG, NEITHER, SHORT, agent_rows, bucket, cells
from predictor.prompts.context import RequestContext
from predictor.records.records import Records


@pytest.mark.parametrize(
    ("said", "called"),
    [
        ({}, NEITHER),
        ({"thinking": True}, LONG),
        ({"thinking": True, "num_tools": 3, "max_new_tokens": 100}, LONG),
        ({"thinking_budget": 4001}, LONG),
        ({"thinking_budget": 4000}, NEITHER),
        ({"thinking": False, "thinking_budget": 9000}, NEITHER),
        ({"thinking": False, "num_tools": 1}, SHORT),
        ({"num_tools": 1, "max_new_tokens": 8000}, SHORT),
        ({"num_tools": 0}, NEITHER),
        ({"max_new_tokens": 499}, SHORT),
        ({"max_new_tokens": 500}, NEITHER),
        ({"max_new_tokens": 0}, NEITHER),
    ],
)
def test_the_rules(said: dict[str, Any], called: int) -> None:
    """In their order: thinking, a large budget where thinking is not said, tools, a small cap."""
    assert bucket(RequestContext(**said)) == called


def test_precision_and_recall_count_draws_and_leave_out_what_was_cut() -> None:
    """Two prompts called LONG, one SHORT; the draw cut at 900 tokens might have become either."""
    lengths = [np.array([2500, 300]), np.array([3000, 900]), np.array([40, 60])]
    flags = [np.array([False, False]), np.array([False, True]), np.array([False, False])]
    ids = ("a", "b", "c")
    records = Records(ids, tuple(lengths), tuple(flags), ids, ("m",) * 3, ("",) * 3)
    long_precision, long_recall, short_precision, short_recall = cells([LONG, LONG, SHORT], records)[:4]
    assert (long_precision, long_recall) == ("0.667", "1.000")
    assert (short_precision, short_recall) == ("1.000", "0.667")


def test_made_up_traffic_obeys_its_rule() -> None:
    """Each prompt with thinking, without and unsaid, in one split; calls are short, thinking is long."""
    rows = [{"prompt": f"say {word} of {i}", "output_lens": [50 + 7 * i]} for i, word in enumerate("abcdefghij" * 12)]
    made = agent_rows(rows)
    assert len(made) == 3 * len(rows)
    splits = {}
    for row in made:
        assert splits.setdefault(row["prompt"], row["split"]) == row["split"]
    by_thinking = {
        value: [row["output_lens"][0] for row in made if row["thinking"] is value] for value in (True, False)
    }
    assert np.median(by_thinking[True]) > 2000 > np.max(by_thinking[False]) > 500
    calls = [row["output_lens"][0] for row in made if row["num_tools"] and not row["thinking"]]
    assert np.median(calls) < 60
    assert agent_rows(rows) == made
