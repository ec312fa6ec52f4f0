"""Bounds keep their promise where draws were cut at any time."""

from collections.abc import Callable

import numpy as np
import pytest

from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.bounds.censoring import complete_weights, probability_uncut
from predictor.bounds.distribution import FloatArray, lower_bound
from predictor.bounds.metrics import coverage_by_prompt

BINS = LengthBins.log_spaced(4096, 40)
TAU, NUM_PROMPTS, NUM_TRIALS = 0.1, 400, 24

Cut = Callable[[np.random.Generator, int], FloatArray]
CUTS: dict[str, Cut] = {
    "nothing": lambda rng, size: np.full(size, 1e9),
    "cap": lambda rng, size: np.full(size, 250.0),
    "caps": lambda rng, size: rng.choice([128.0, 256.0, 1024.0], size),
    "stop": lambda rng, size: 900.0 * rng.random(size) + 1.0,
    "disconnect": lambda rng, size: rng.exponential(300.0, size) + 1.0,
    "both": lambda rng, size: np.minimum(rng.exponential(500.0, size) + 1.0, 512.0),
}


def drawn(rng: np.random.Generator, size: int, wrong: float) -> tuple[FloatArray, FloatArray]:
    """Survival [N, K+1] that misses a share `wrong` of what sets prompts apart, and their log-normal lengths."""
    centre = rng.normal(5.0, 0.8, size)
    lengths = np.maximum(np.rint(np.exp(centre + 0.7 * rng.standard_normal(size))), 1)
    edges = np.log(np.maximum(BINS.as_array(), 1e-9))
    away = (edges - 5.0 - (1.0 - wrong) * (centre[:, None] - 5.0)) / 0.45
    return 1.0 / (1.0 + np.exp(np.clip(away, -60, 60))), lengths


@pytest.mark.parametrize("wrong", [0.0, 0.7])
@pytest.mark.parametrize("kind", CUTS)
def test_coverage_is_what_was_promised_whatever_cuts(kind: str, wrong: float) -> None:
    """Between 0.88 and 0.92 of fresh complete answers, the mean over calibrations; a wrong predictor too."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(NUM_TRIALS):
        survival, lengths = drawn(rng, NUM_PROMPTS, wrong)
        cuts = np.maximum(np.rint(CUTS[kind](rng, NUM_PROMPTS)), 1)
        seen, flags = np.minimum(lengths, cuts), lengths > cuts
        draws, cut = [np.asarray([int(n)]) for n in seen], [np.asarray([flag]) for flag in flags]
        level = PitCalibration.fit(BINS, survival, draws, cut).level(TAU)
        fresh, true = drawn(rng, 4000, wrong)
        covered.append(np.mean(true >= lower_bound(BINS, fresh, level)))
    assert 0.88 <= np.mean(covered) <= 0.92


def test_without_cuts_the_table_is_the_plain_one() -> None:
    """Weights of one a prompt, and the same thresholds."""
    rng = np.random.default_rng(1)
    survival, lengths = drawn(rng, 50, 0.0)
    draws = [np.asarray([int(n), int(n) + 3]) for n in lengths]
    flags = [np.zeros(2, dtype=np.bool_) for _ in draws]
    assert PitCalibration.fit(BINS, survival, draws, flags) == PitCalibration.fit(BINS, survival, draws)
    np.testing.assert_allclose(np.concatenate(complete_weights(draws, flags)), 0.5)


def test_weights_are_those_of_kaplan_and_meier() -> None:
    """By hand: a cut at 2 of four at risk leaves 3/4, one at 4 of two leaves half of that."""
    lengths, flags = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([False, True, False, True, False])
    np.testing.assert_allclose(probability_uncut(lengths, flags, np.ones(5)), [1.0, 1.0, 0.75, 0.75, 0.375])
    weights = complete_weights([lengths.astype(np.int64)], [flags])[0]
    np.testing.assert_allclose(weights.sum(), 1.0)
    assert weights[1] == weights[3] == 0.0


def test_an_answer_that_ends_where_others_are_cut_ended_first() -> None:
    """Its weight is not raised by them, and a cap above all of them changes nothing."""
    lengths, flags = np.array([2.0, 2.0, 2.0]), np.array([False, True, True])
    np.testing.assert_array_equal(probability_uncut(lengths, flags, np.ones(3)), np.ones(3))


def test_coverage_of_cut_answers_is_that_of_the_complete_ones() -> None:
    """Within sampling error, where counting each cut as the end would be far below."""
    rng = np.random.default_rng(2)
    _, lengths = drawn(rng, 20_000, 0.0)
    bounds, cuts = np.full(20_000, 90.0), CUTS["disconnect"](rng, 20_000)
    complete = [np.asarray([n]) for n in lengths.astype(np.int64)]
    cut = [np.asarray([int(max(n, 1))]) for n in np.minimum(lengths, cuts)]
    flags = [np.asarray([flag]) for flag in lengths > cuts]
    true, found = coverage_by_prompt(bounds, complete).mean(), coverage_by_prompt(bounds, cut, flags).mean()
    assert abs(true - found) < 0.015
    assert coverage_by_prompt(bounds, cut).mean() < true - 0.1
