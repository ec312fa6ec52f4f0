import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scheduler.forecast import Forecast, through_bounds
from scheduler.policies.expected_work import ExpectedWork
from scheduler.request import Request

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def forecasts(draw: st.DrawFn) -> Forecast:
    """Return a random forecast of up to eight bins, steep and flat ones among them."""
    gaps = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    values = draw(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]), min_size=len(gaps), max_size=len(gaps)))
    return Forecast(np.cumsum([0, *gaps]), np.array([1.0, *sorted(values, reverse=True)]))


def survival(forecast: Forecast, length: float) -> float:
    """Return P(length > `length`); what exceeds the last edge ends there."""
    inside = float(np.interp(length, forecast.edges, forecast.survival))
    return inside if length < forecast.edges[-1] else 0.0


@PROPERTY
@given(forecasts(), st.floats(0.01, 0.99))
def test_a_quantile_is_the_largest_length_below_its_level(forecast: Forecast, level: float) -> None:
    """The CDF is at most the level there, and above it a little further on."""
    value = forecast.quantile(level)
    assert 0 <= value <= forecast.edges[-1]
    assert 1 - survival(forecast, value - 1e-6) <= level + 1e-9
    assert 1 - survival(forecast, value + 1e-6) > level - 1e-9


@PROPERTY
@given(forecasts(), st.floats(0.01, 0.99), st.floats(0, 200))
def test_a_conditional_quantile_is_a_ratio_of_survivals(forecast: Forecast, level: float, generated: float) -> None:
    """P(length > q | length > g) is 1 - level, and q exceeds g; beyond the forecast it grows in proportion to g."""
    value = forecast.conditional_quantile(generated, level)
    alive = survival(forecast, generated)
    if generated > 0 and alive == 0:
        assert value == pytest.approx(generated / (1 - level))
    else:
        assert value >= generated - 1e-6
        assume(value < forecast.edges[-1] - 1e-6)
        assert survival(forecast, value + 1e-6) <= (1 - level) * alive + 1e-6
        assert survival(forecast, value - 1e-6) >= (1 - level) * alive - 1e-6


@PROPERTY
@given(forecasts(), st.integers(1, 200), st.sampled_from([0.5, 0.9]))
def test_means_are_those_of_many_draws(forecast: Forecast, cap: int, level: float) -> None:
    """Mean, variance and tail mean of the capped length agree with quantiles drawn on a fine grid."""
    grid = (np.arange(4000) + 0.5) / 4000
    lengths = np.array([min(forecast.quantile(u), cap) for u in grid])
    assert forecast.mean(cap) == pytest.approx(lengths.mean(), abs=0.02 * forecast.edges[-1])
    assert forecast.variance(cap) == pytest.approx(lengths.var(), abs=0.005 * forecast.edges[-1] ** 2)
    worst = lengths[int(level * 4000) :].mean()
    assert forecast.tail_mean(level, cap) == pytest.approx(worst, abs=0.05 * forecast.edges[-1])


def test_bounds_alone_make_a_forecast() -> None:
    """Its quantiles are the bounds, at the levels that they stand for."""
    forecast = through_bounds(20, 50, 120, 400)
    values = [forecast.quantile(level) for level in (0.1, 0.5, 0.95)]
    assert values == pytest.approx([20, 50, 120])
    request = Request("r", 5, 400, output_len_lower_bound=20, output_len_upper_bound=120, output_len_prediction=50)
    assert request.forecast_or_bounds().edges.tolist() == forecast.edges.tolist()


def test_nothing_known_is_the_middle_of_the_limit() -> None:
    """Without bounds the limit is the upper one; points that meet are moved apart."""
    assert Request("r", 5, 100).predicted_len() == 50
    assert Request("r", 5, 9, 0.0, 3, 3, 3).forecast_or_bounds().edges.tolist() == [0, 3, 4, 5, 9]


@pytest.mark.parametrize("bounds", [(5, 5, 5), (4, 5, 5), (1, 1, 1), (3, 4, 9), (7, 8, 9)])
def test_a_forecast_through_bounds_ends_at_the_longest_answer(bounds: tuple[int, int, int]) -> None:
    """Bounds that meet there do not reach beyond it, and the lower one stays the low quantile."""
    forecast = through_bounds(*bounds, longest=5)
    assert forecast.edges.tolist() == sorted(set(forecast.edges.tolist()))
    assert forecast.edges[-1] == 5
    assert int(forecast.quantile(0.1)) == min(5, bounds[0])


TAILED = st.builds(
    lambda forecast, tail: Forecast(forecast.edges, forecast.survival, tail), forecasts(), st.floats(0.5, 8.0)
)


@PROPERTY
@given(TAILED, st.floats(0.01, 0.99), st.floats(1.01, 50.0))
def test_beyond_the_last_edge_a_length_goes_on_in_proportion(forecast: Forecast, level: float, factor: float) -> None:
    """P(length > c x | length > x) = c^-tail there, wherever x is: the quantile scales, and no edge is an end."""
    last = forecast.edges.item(-1)
    value = forecast.conditional_quantile(factor * last, level)
    assert value == pytest.approx(factor * forecast.conditional_quantile(last, level))
    assert (value / (factor * last)) ** -(forecast.tail or 0) == pytest.approx(1 - level)
    alive = forecast.survival.item(-1) * factor ** -(forecast.tail or 0)
    if alive > 1e-4:  # below, one minus it has lost the digits that are compared
        assert forecast.quantile(1 - alive) == pytest.approx(factor * last)


@PROPERTY
@given(TAILED, st.floats(1.0, 4.0), st.sampled_from([0.5, 0.9]))
def test_means_of_a_tail_are_those_of_its_draws(forecast: Forecast, beyond: float, level: float) -> None:
    """Mean, variance and tail mean of the capped length agree with quantiles drawn on a fine grid."""
    cap = beyond * forecast.edges.item(-1)
    lengths = np.array([min(forecast.quantile(u), cap) for u in (np.arange(4000) + 0.5) / 4000])
    assert forecast.mean(cap) == pytest.approx(lengths.mean(), abs=0.005 * cap)
    assert forecast.variance(cap) == pytest.approx(lengths.var(), abs=0.005 * cap**2)
    assert forecast.tail_mean(level, cap) == pytest.approx(lengths[int(level * 4000) :].mean(), abs=0.02 * cap)


def test_a_tail_without_a_mean_is_said_to_have_none() -> None:
    """With index 1 or less the mean is infinite where nothing caps it, with 2 or less the variance."""
    edges, survival = np.array([0, 10]), np.array([1.0, 0.2])
    assert Forecast(edges, survival, 1.0).mean() == np.inf
    assert Forecast(edges, survival, 3.0).mean() == pytest.approx(6 + 10 * 0.2 / 2)
    assert Forecast(edges, survival, 2.0).variance() == np.inf
    assert Forecast(edges, survival).mean() == pytest.approx(6)


@PROPERTY
@given(TAILED, st.floats(1.0, 30.0), st.integers(0, 60))
def test_expected_work_follows_the_tail(forecast: Forecast, beyond: float, generated: int) -> None:
    """Tokens to come are E[min(length, cap) - g | length > g], the tail included, to within a hundredth."""
    cap = beyond * forecast.edges.item(-1)
    assume(generated < 0.9 * cap and (forecast.tail or 0) <= 2)
    alive = survival(forecast, generated)
    assume(alive > 0)
    expected = forecast._area(generated, cap) / alive
    tokens, _ = ExpectedWork(forecast, 7, cap).remaining(generated)
    assert tokens == pytest.approx(expected, rel=0.01, abs=0.05)
