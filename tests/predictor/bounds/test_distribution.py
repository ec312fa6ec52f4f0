import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import (
    bound_and_median,
    cdf,
    lower_bound,
    quantile,
    survival_from_hazard_logits,
)

BINS = LengthBins((0, 1, 2, 5, 12, 40, 41, 100))


def survivals(seed: int, size: int = 8) -> np.ndarray:
    """Random survival arrays on BINS."""
    return survival_from_hazard_logits(np.random.default_rng(seed).normal(-1, 2, (size, BINS.num_bins)))


@given(st.integers(1, 5000), st.integers(1, 80))
def test_log_spaced_bins_have_the_number_and_the_end_asked_for(max_length: int, num_bins: int) -> None:
    """Every bin is at least one token wide, whatever the two numbers."""
    bins = LengthBins.log_spaced(max_length, num_bins)
    assert bins.num_bins == min(num_bins, max_length)
    assert bins.max_length == max_length


@pytest.mark.parametrize("edges", [(0,), (1, 2), (0, 3, 3), (0, 5, 4)])
def test_edges_must_start_at_zero_and_increase(edges: tuple[int, ...]) -> None:
    """Anything else is refused by name."""
    with pytest.raises(ValueError, match="edges"):
        LengthBins(edges)


def test_a_bin_holds_its_right_edge() -> None:
    """Bin k is (e_{k-1}, e_k], and a length above the last edge has no bin."""
    assert BINS.index([1, 2, 3, 5, 6, 100, 101]).tolist() == [0, 1, 2, 2, 3, 6, 7]
    assert BINS.num_survived([1, 4, 5, 100]).tolist() == [1, 2, 3, 7]


def test_survival_starts_at_one_and_never_rises() -> None:
    """Extreme logits included."""
    survival = survival_from_hazard_logits([[800.0, 0.0, -800.0], [-800.0, -800.0, 800.0]])
    assert np.all(survival[:, 0] == 1)
    assert np.all(np.diff(survival, axis=1) <= 0)
    assert np.all(np.isfinite(survival))


def test_the_cdf_on_the_edges_is_one_minus_survival() -> None:
    """And it is 0 at no tokens, 1 beyond the last edge."""
    survival = survivals(0)
    values = cdf(BINS, survival, np.tile(BINS.as_array(), (8, 1)))
    np.testing.assert_allclose(values, 1 - survival, atol=1e-12)
    assert np.all(cdf(BINS, survival, np.full(8, 101)) == 1)


@given(st.integers(0, 50), st.floats(0, 0.999))
def test_quantile_inverts_the_cdf(seed: int, level: float) -> None:
    """Where the level lies below the mass on the bins."""
    survival = survivals(seed)
    values = quantile(BINS, survival, level)
    inside = level < 1 - survival[:, -1]
    np.testing.assert_allclose(cdf(BINS, survival, values)[inside], level, atol=1e-9)
    assert np.all(values[~inside] == BINS.max_length)


@given(st.integers(0, 50), st.floats(0, 0.999), st.integers(1, 130))
def test_a_bound_covers_a_length_exactly_when_the_level_is_below_its_score(
    seed: int, level: float, length: int
) -> None:
    """The identity that calibration rests on: bound <= L iff level < cdf(L + 1), or the bound is 1."""
    survival = survivals(seed)
    scores = cdf(BINS, survival, np.full(8, length + 1))
    clear = np.abs(scores - level) > 1e-9  # at equality rounding decides; calibration keeps a margin
    covered = lower_bound(BINS, survival, level) <= length
    assert np.array_equal(covered[clear], ((level < scores) | (lower_bound(BINS, survival, level) == 1))[clear])


@given(st.integers(0, 50), st.floats(0, 0.99), st.floats(0, 0.99))
def test_quantiles_do_not_cross(seed: int, one: float, other: float) -> None:
    """A higher level never gives a smaller quantile."""
    low, high = sorted((one, other))
    assert np.all(quantile(BINS, survivals(seed), low) <= quantile(BINS, survivals(seed), high))


def test_bounds_stay_between_one_and_the_request_limit() -> None:
    """Per-request limits included."""
    limits = np.array([1, 2, 3, 4, 5, 6, 7, 8])
    bounds = lower_bound(BINS, survivals(3), 0.9, limits)
    assert np.all((bounds >= 1) & (bounds <= limits))
    both = bound_and_median(BINS, survivals(3), 0.9)
    assert np.array_equal(both[0], lower_bound(BINS, survivals(3), 0.9))
    assert np.array_equal(both[1], np.maximum(np.rint(quantile(BINS, survivals(3), 0.5)), 1))


@pytest.mark.parametrize(("longest", "last"), [(3, 1024), (1025, 2048), (15_001, 16_384), (200_000, 32_768)])
def test_bins_end_where_the_data_ends(longest: int, last: int) -> None:
    """At a power of two within limits; one runaway answer in a thousand does not stretch them."""
    lengths = np.full(2000, longest)
    lengths[0] = 1_000_000
    bins = LengthBins.of_lengths(lengths, 64)
    assert (bins.num_bins, bins.max_length) == (64, last)
    assert (np.diff(bins.as_array()) <= np.maximum(0.2 * bins.as_array()[1:], 1)).all()
