"""What a predictor states, and the predictions that follow from it."""

from typing import Any

import numpy as np
import pytest

from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.errors import InputError
from predictor.spec import PredictorSpec

BINS = LengthBins.log_spaced(512, 16)
SURVIVAL = np.exp(-BINS.as_array() / 100)[None].repeat(200, axis=0)


def made_up_spec() -> PredictorSpec:
    """A predictor of one served model whose lengths are exponential."""
    lengths = [np.array([length]) for length in np.random.default_rng(0).exponential(100, 200).astype(int) + 1]
    return PredictorSpec(BINS, 64, 0, ("m",), "m", (), {"m": PitCalibration.fit(BINS, SURVIVAL, lengths)}, {})


@pytest.mark.parametrize("limit", [3, np.int64(3), [3, None], np.array([3, 3])])
def test_a_limit_is_a_whole_number_for_all_or_one_a_prompt(limit: Any) -> None:
    """Of Python or of numpy; None is no limit."""
    assert made_up_spec().predictions(SURVIVAL[:2], 0.1, limit).lower_bounds[0] == 3


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (2.5, "not 2.5"),
        ([5, 2.5], "not 2.5"),
        ([5, True], "not True"),
        (0, "not 0"),
        ("5", "2 prompts|not '5'"),
        ([5], "1 limits for 2 prompts"),
    ],
)
def test_another_limit_is_refused_in_one_line(limit: Any, told: str) -> None:
    """And not rounded, nor a TypeError."""
    with pytest.raises(InputError, match=f"max_new_tokens: .*({told})"):
        made_up_spec().predictions(SURVIVAL[:2], 0.1, limit)
