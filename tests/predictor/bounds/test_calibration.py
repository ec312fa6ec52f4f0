import json

import numpy as np
import pytest

from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import ConformalTable, PitCalibration, required_prompts
from predictor.bounds.distribution import cdf, lower_bound, survival_from_hazard_logits
from predictor.errors import InputError

BINS = LengthBins.log_spaced(512, 24)


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("size", [19, 20, 99, 100, 1000])
def test_with_one_draw_each_the_threshold_is_the_kth_smallest(tau: float, size: int) -> None:
    """K = floor(tau (n + 1)), the split conformal rule."""
    scores = np.random.default_rng(size).permutation(size) + 1.0
    rank = int(np.floor(tau * (size + 1) + 1e-9))
    assert ConformalTable.fit([np.array([score]) for score in scores]).threshold(tau) == rank


def test_copies_of_a_draw_change_nothing() -> None:
    """Draws share the weight of their prompt."""
    scores = np.random.default_rng(0).random(57)
    once = ConformalTable.fit([np.array([score]) for score in scores])
    often = ConformalTable.fit([np.full(1 + i % 4, score) for i, score in enumerate(scores)])
    assert [once.threshold(tau) for tau in (0.05, 0.1, 0.5)] == [often.threshold(tau) for tau in (0.05, 0.1, 0.5)]


def test_a_thinned_table_only_lowers_the_threshold() -> None:
    """By at most one group of neighbours."""
    scores = np.sort(np.random.default_rng(0).random(12_345))
    table = ConformalTable.fit([np.array([score]) for score in scores])
    assert len(table.scores) == 1000
    for tau in (0.01, 0.1, 0.33, 0.9):
        exact = int(np.floor(tau * 12_346 + 1e-9)) - 1
        assert scores[exact - 13] <= table.threshold(tau) <= scores[exact]


def test_too_few_prompts_are_refused_with_the_number_needed() -> None:
    """Nine prompts support tau = 0.1, eight do not."""
    assert required_prompts(0.1) == 9
    ConformalTable.fit([np.array([1.0])] * 9).threshold(0.1)
    with pytest.raises(InputError, match="at least 9 calibration prompts, only 8 available"):
        ConformalTable.fit([np.array([1.0])] * 8).threshold(0.1)
    with pytest.raises(InputError, match="tau: must lie between 0 and 1"):
        ConformalTable.fit([np.array([1.0])] * 8).threshold(1.0)


def draw(rng: np.random.Generator, size: int, num_draws: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A model that is badly wrong (shifted, over-confident) and draws of the truth."""
    center = rng.normal(4.0, 0.7, size)
    wrong = 1.4 * center - 0.5
    edges = np.log(BINS.as_array()[1:])
    logits = 3.0 * (edges - wrong[:, None])
    lengths = np.ceil(np.exp(center[:, None] + rng.normal(0, 0.5, (size, num_draws)))).astype(np.int64)
    return survival_from_hazard_logits(logits), list(lengths)


@pytest.mark.parametrize(("num_draws", "cap"), [(1, 10**6), (4, 10**6), (4, 120)])
def test_a_miscalibrated_model_covers_at_the_target_over_many_splits(num_draws: int, cap: int) -> None:
    """Mean coverage of fresh prompts over 400 calibration splits lies between 1 - tau and that plus 1/(n+1) and ties.

    The sd of one split's coverage is about sqrt(tau (1 - tau) / 60) = 0.04, that of the mean 0.002. The tolerance is
    three of it. A cap makes it conservative only.
    """
    rng = np.random.default_rng(7)
    tau, size, coverages = 0.1, 60, []
    for _ in range(400):
        survival, lengths = draw(rng, size, num_draws)
        calibration = PitCalibration.fit(BINS, survival, [np.minimum(lens, cap) for lens in lengths])
        fresh, fresh_lengths = draw(rng, 200, num_draws)
        bounds = lower_bound(BINS, fresh, calibration.level(tau))
        coverages.append(np.mean(np.stack(fresh_lengths) >= bounds[:, None]))
    mean = float(np.mean(coverages))
    assert mean >= 1 - tau - 0.006
    if cap > 10**5:
        assert mean <= 1 - tau + 1 / (size + 1) + 0.012


def test_calibration_draws_themselves_are_covered_as_counted() -> None:
    """The level sits just below a score: at least n - k + 1 of n one-draw prompts are covered, rounding or not."""
    rng = np.random.default_rng(0)
    survival, lengths = draw(rng, 199, 1)
    calibration = PitCalibration.fit(BINS, survival, lengths)
    for tau in (0.01, 0.05, 0.1, 0.25, 0.5, 0.9):
        bounds = lower_bound(BINS, survival, calibration.level(tau))
        rank = int(np.floor(tau * 200 + 1e-9))
        assert np.sum(np.concatenate(lengths) >= bounds) >= 199 - rank + 1


def test_the_score_of_a_draw_is_its_cdf_one_token_later() -> None:
    """So the smallest of them bounds the level for the smallest tau."""
    survival, lengths = draw(np.random.default_rng(3), 50, 1)
    scores = cdf(BINS, survival, np.concatenate(lengths) + 1)
    level = PitCalibration.fit(BINS, survival, lengths).level(1 / 51)
    assert level == pytest.approx(scores.min(), abs=1e-8)
    assert level < scores.min()


def test_calibration_survives_json_and_keeps_the_marginal_bound() -> None:
    """Any tau can be asked of what was stored."""
    survival, lengths = draw(np.random.default_rng(3), 50, 3)
    calibration = PitCalibration.fit(BINS, survival, lengths)
    again = PitCalibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again == calibration
    pooled = np.concatenate(lengths)
    assert np.mean(pooled >= again.marginal_bound(0.2)) >= 0.78
