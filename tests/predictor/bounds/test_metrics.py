import numpy as np
import pytest

from predictor.bounds.metrics import (
    between_prompt_share,
    bound_quality,
    coverage_by_prompt,
    kendall_tau_ceiling,
    pinball_loss,
    worst_group_coverage,
)
from predictor.records.records import Records
from predictor.training.baselines import measure_baselines


def test_a_bound_of_one_covers_everything_and_is_loose() -> None:
    """Which is why tightness stands next to coverage."""
    draws = [np.array([10, 20]), np.array([30, 40])]
    quality = bound_quality([1, 1], [12, 35], draws, ["a", "a"], 0.1)
    assert quality.coverage == 1.0
    assert quality.tightness == pytest.approx(1 / 25)
    assert quality.kendall_tau == 1.0
    assert quality.worst_group_coverage is None


def test_prompts_weigh_the_same_whatever_their_draws() -> None:
    """One prompt with many covered draws does not hide another."""
    covered = coverage_by_prompt(np.array([5.0, 5.0]), [np.full(9, 9), np.array([1])])
    assert covered.mean() == 0.5


def test_the_worst_group_needs_twenty_prompts() -> None:
    """Smaller groups are noise."""
    covered = np.concatenate([np.ones(20), np.full(20, 0.8), np.zeros(19)])
    assert worst_group_coverage(covered, ["a"] * 20 + ["b"] * 20 + ["c"] * 19) == pytest.approx(0.8)


def test_the_pinball_loss_is_least_at_the_quantile() -> None:
    """Of a sample, over all integer bounds."""
    draws = [np.random.default_rng(0).integers(1, 200, 1001)]
    losses = [pinball_loss(np.array([float(bound)]), draws, 0.1) for bound in range(1, 200)]
    assert abs(1 + int(np.argmin(losses)) - np.quantile(draws[0], 0.1)) <= 1


def test_clipping_limits_what_a_runaway_draw_can_do() -> None:
    """Coverage is left as it is."""
    draws = [np.array([100]), np.array([15_001])]
    free, clipped = (bound_quality([50, 50], [60, 70], draws, ["", ""], 0.1, limit) for limit in (None, 200))
    assert clipped.pinball_loss < free.pinball_loss
    assert clipped.coverage == free.coverage


def test_predictions_are_clipped_where_lengths_are() -> None:
    """A median of 900 is not far off for answers that count as 200; coverage is of the lengths themselves."""
    draws = [np.array([100]), np.array([700])]
    within, beyond = (bound_quality([50, bound], [60, 900], draws, ["", ""], 0.1, 200) for bound in (200, 650))
    assert within.mean_absolute_error == 20.0
    assert beyond.pinball_loss == within.pinball_loss
    assert beyond.coverage == 1.0
    assert bound_quality([50, 800], [60, 900], draws, ["", ""], 0.1, 200).coverage == 0.5


def test_a_cut_draw_charges_nothing_for_what_lies_beyond_its_cut() -> None:
    """Nobody knows what the answer would have become; below its cut a prediction is charged as any other."""
    draws, flags = [np.array([500, 100])], [np.array([True, False])]
    far, at, under = (bound_quality([bound], [bound], draws, [""], 0.1, None, flags) for bound in (900, 500, 400))
    assert far.mean_absolute_error - at.mean_absolute_error == pytest.approx(400 / 2)
    assert far.pinball_loss - at.pinball_loss == pytest.approx(0.9 * 400 / 2)
    assert under.mean_absolute_error == pytest.approx((100 + 300) / 2)


def test_the_ceiling_needs_two_draws_and_is_one_without_noise() -> None:
    """One draw says nothing about the noise."""
    assert kendall_tau_ceiling([np.array([3]), np.array([4])]) is None
    assert kendall_tau_ceiling([np.full(3, value) for value in (5, 9, 2)]) == pytest.approx(1.0)


def test_the_share_between_prompts_is_that_of_the_variances() -> None:
    """Log lengths with variance 1 between and 1/4 within prompts give 0.8; equal prompts give about 0."""
    rng = np.random.default_rng(0)
    centre = rng.normal(4.0, 1.0, (4000, 1))
    draws = np.exp(centre + rng.normal(0.0, 0.5, (4000, 4)))
    assert between_prompt_share(list(draws)) == pytest.approx(0.8, abs=0.02)
    assert between_prompt_share(list(rng.lognormal(4.0, 1.0, (4000, 4)))) == pytest.approx(0.0, abs=0.03)
    assert between_prompt_share([np.array([3]), np.array([4])]) is None


@pytest.mark.parametrize("prompt", ["3 + 4 * {} = ?", "1 {} word"])
def test_the_baselines_read_prompts_that_have_hardly_any_words(prompt: str) -> None:
    """Their size is left to them."""
    rng = np.random.default_rng(0)
    prompts = tuple(prompt.format("1 " * int(size)) for size in rng.integers(1, 40, 60))
    lengths = tuple(np.array([len(text)]) for text in prompts)
    names, kept = tuple(map(str, range(60))), (np.array([False]),) * 60
    records = Records(prompts, lengths, kept, names, ("m",) * 60, ("",) * 60)
    parts = (records.select(range(30)), records.select(range(30, 50)), records.select(range(50, 60)))
    results = measure_baselines(*parts, tau=0.2, max_length=256)
    assert all(((bounds.lower_bounds >= 1) & np.isfinite(bounds.medians)).all() for bounds in results.values())
