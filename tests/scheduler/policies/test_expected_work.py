import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.forecast import Forecast
from scheduler.latency_bounds import volume
from scheduler.policies.expected_work import ExpectedWork

EDGES = np.array([0, 3, 10, 40])
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
curves = st.lists(st.floats(0.01, 1), min_size=2, max_size=2).map(
    lambda values: Forecast(EDGES, np.array([1.0, *sorted(values, reverse=True), 0.0]))
)


@PROPERTY
@given(forecast=curves, prompt=st.integers(0, 50), cap=st.integers(2, 60), generated=st.integers(0, 30))
def test_it_is_the_mean_over_the_curve(forecast: Forecast, prompt: int, cap: int, generated: int) -> None:
    """Drawn lengths, cut at the cap, have the remaining volume that the look-up gives."""
    if generated >= min(cap, 39):
        return
    levels = (np.arange(4000) + 0.5) / 4000
    lens = np.array([min(cap, forecast.conditional_quantile(generated, float(level))) for level in levels])
    rest = volume(prompt, lens) - volume(prompt, generated)
    tokens, memory = ExpectedWork(forecast, prompt, cap).remaining(generated)
    assert memory == pytest.approx(rest.mean(), rel=0.01)
    assert tokens == pytest.approx(lens.mean() - generated, rel=0.01)


def test_a_certain_length_has_its_volume() -> None:
    """Spent and remaining add up to the volume of the whole life."""
    certain = ExpectedWork(Forecast(np.array([0, 20, 21]), np.array([1.0, 1.0, 0.0])), 7, 20)
    for generated in range(20):
        assert certain.spent(generated) + certain.remaining(generated)[1] == pytest.approx(volume(7, 20))
        assert certain.remaining(generated)[0] == pytest.approx(20 - generated)


def test_who_has_outlived_the_forecast_generates_as_much_again() -> None:
    """Nothing is divided by the nought that the curve ends with."""
    outlived = ExpectedWork(Forecast(EDGES, np.array([1.0, 0.5, 0.2, 0.0])), 5, 1000)
    assert outlived.remaining(40) == (40, volume(45, 40))
    assert min(outlived.remaining(0)) > 0


@PROPERTY
@given(forecast=curves, cap=st.integers(1, 60), generated=st.integers(0, 70), level=st.floats(0, 0.99))
def test_its_quantiles_are_those_of_the_forecast_up_to_the_cap(
    forecast: Forecast, cap: int, generated: int, level: float
) -> None:
    """Asked number by number instead of as vectors."""
    work = ExpectedWork(forecast, 5, cap)
    if generated < cap:
        expected = min(cap, forecast.conditional_quantile(generated, level))
        assert min(cap, work.quantile(level, generated)) == pytest.approx(expected, rel=1e-12)
