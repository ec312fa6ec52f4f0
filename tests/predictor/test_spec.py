"""What a predictor states, and the predictions that follow from it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.errors import InputError
from predictor.records.prompt_table import PromptTable, prompt_table
from predictor.records.records import Records
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


MODELS = ("gemma-3-4b-it", "Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct", "Qwen3-8B-Thinking")


def of_several() -> tuple[PredictorSpec, np.ndarray, PromptTable]:
    """Return a calibrated predictor of four served models whose answers are the longer the later they stand."""
    rng, scales = np.random.default_rng(1), (50, 100, 200, 400)
    curves = np.stack([np.exp(-BINS.as_array() / scale) for scale in scales])
    prompts = [f"p{i}" for i in range(100) for _ in MODELS]
    lengths = [np.array([int(rng.exponential(scale)) + 1]) for _ in range(100) for scale in scales]
    flags, ids = (np.zeros(1, dtype=np.bool_),) * 400, tuple(map(str, range(400)))
    records = Records(tuple(prompts), tuple(lengths), flags, ids, MODELS * 100, ("x",) * 400)
    table, survivals = prompt_table(records, MODELS), np.broadcast_to(curves, (100, *curves.shape))
    return PredictorSpec(BINS, 64, 0, MODELS, "average", (), {}, {}).recalibrated(survivals, table), survivals, table


def test_a_model_that_nobody_knows_starts_from_those_that_are_like_it() -> None:
    """Nearest in family, size and thinking; a name that tells nothing of use stands for the average of all."""
    spec, survivals, _ = of_several()
    medians = {
        name: int(spec.predictions(spec.survival_of(survivals[:1], name), 0.1, model=name).medians[0])
        for name in ("like:gemma-3-12b-it", "like:meta-llama/Llama-3.1-8B", "like:QwQ-32B-Preview", "average")
    }
    assert medians["like:gemma-3-12b-it"] < medians["like:meta-llama/Llama-3.1-8B"] < medians["like:QwQ-32B-Preview"]
    assert medians["like:gemma-3-12b-it"] < medians["average"] < medians["like:QwQ-32B-Preview"]
    known = [spec.survival_of(survivals[:1], name) for name in MODELS]
    assert (spec.survival_of(survivals[:1], "like:gemma-3-4b-it") > known[0]).any()  # by the others, not by itself


def test_what_is_known_of_a_new_model_is_kept_with_the_predictor() -> None:
    """Its calibration is written and read; one made without it says what to do, and so does an empty name."""
    spec, _, _ = of_several()
    read = PredictorSpec.from_dict(spec.to_dict(), "here")
    assert read.calibration("like:some-7B") == spec.calibrations["like:"] != spec.calibration("average")
    before = replace(spec, calibrations={name: spec.calibrations[name] for name in spec.choices})
    with pytest.raises(InputError, match="calibrate or export it again"):
        before.choose("like:some-7B")
    with pytest.raises(InputError, match="like:NAME stands for another"):
        spec.choose("like:")
    assert made_up_spec().choose("like:some-7B") == "m"
