import numpy as np
import pytest

from scheduler.errors import InputError
from scheduler.forecast import Forecast
from scheduler.request import Request
from scheduler.simulation.synthesis import lmsys_shaped, log_normal_survival, synthesize

LENS = [1, 2, 3, 10, 99, 100, 101, 150, 900, 901, 1000, 1001, 1500, 2000]


def make_requests(output_lens: list[int], max_new_tokens: int = 2000) -> list[Request]:
    """A request per length, with predictions that must not survive."""
    forecast = Forecast(np.array([0, 1]), np.array([1.0, 0.0]))
    return [Request(f"r{i}", i, max_new_tokens, i / 2, 1, 1, 1, forecast) for i, _ in enumerate(output_lens)]


def bounds(predictions: str, output_lens: list[int] = LENS, max_new_tokens: int = 2000) -> list[tuple[int, int, int]]:
    """Lower bound, upper bound and prediction of each request."""
    rng = np.random.default_rng(0)
    found = []
    for request in synthesize(make_requests(output_lens, max_new_tokens), output_lens, predictions, rng):
        upper, prediction = request.output_len_upper_bound, request.output_len_prediction
        assert upper is not None
        assert prediction is not None
        found.append((request.output_len_lower_bound, upper, prediction))
    return found


def test_only_the_predictions_of_a_request_change() -> None:
    """Name, prompt, limit and arrival stay; an old forecast does not."""
    old = make_requests(LENS)
    new = synthesize(old, LENS, "relative:0.5", np.random.default_rng(0))
    facts = [(r.request_id, r.num_prompt_tokens, r.max_new_tokens, r.arrival_time) for r in old]
    assert [(r.request_id, r.num_prompt_tokens, r.max_new_tokens, r.arrival_time) for r in new] == facts
    assert all(request.forecast is None for request in new)


def test_an_interval_is_the_same_for_all() -> None:
    """Whatever the length is, and its middle is the prediction; the limit cuts it."""
    assert set(bounds("interval:1:1000")) == {(1, 1000, 500)}
    assert set(bounds("interval:20:1000", [1, 40], max_new_tokens=40)) == {(20, 40, 30)}
    assert set(bounds("interval:50:1000", [1, 40], max_new_tokens=40)) == {(40, 40, 40)}


def test_a_bin_holds_the_length() -> None:
    """The first bin is 1..WIDTH; beyond the last one the last reaches up to the limit."""
    found = dict(zip(LENS, bounds("bins:100:10"), strict=True))
    assert found[1] == found[99] == found[100] == (1, 100, 50)
    assert found[101] == found[150] == (101, 200, 150)
    assert found[900] == (801, 900, 850)
    assert found[901] == found[1000] == (901, 1000, 950)
    assert found[1001] == found[2000] == (901, 2000, 1450)


def test_bins_of_one_token_are_exact() -> None:
    """As long as there are enough of them."""
    assert bounds("bins:1:2000") == bounds("exact") == [(o, o, o) for o in LENS]


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.99, 1])
def test_relative_bounds_always_bracket(share: float) -> None:
    """1 <= lower <= o <= upper <= limit, and both are within one token of (1 -+ X)o before the limit."""
    lens = list(range(1, 2001))
    found = np.array(bounds(f"relative:{share}", lens))
    o, lower, upper, prediction = np.array(lens), *found.T
    assert (lower >= 1).all()
    assert ((lower <= o) & (o <= upper) & (upper <= 2000)).all()
    assert ((lower <= prediction) & (prediction <= upper)).all()
    assert (np.abs(lower - np.maximum((1 - share) * o, 1)) <= 0.5 + 1e-9).all()
    assert (np.abs(upper - np.minimum((1 + share) * o, 2000)) <= 0.5 + 1e-9).all()


def test_relative_bounds_do_not_suffer_from_binary_fractions() -> None:
    """1.1 * 10 is a little above 11 in floating point."""
    assert bounds("relative:0.1", [10, 100]) == [(9, 11, 10), (90, 110, 100)]


@pytest.mark.parametrize("predictions", ["exact", "relative:0", "noise:0", "noise:0:0.4"])
def test_no_noise_is_exact(predictions: str) -> None:
    """Both bounds and the prediction are the length."""
    assert bounds(predictions) == [(o, o, o) for o in LENS]


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.5])
@pytest.mark.parametrize("tau", [None, 0.25, 0.5])
def test_noisy_bounds_cover_as_promised(sigma: float, tau: float | None) -> None:
    """Lengths reach the lower bound with 1 - tau and keep to the upper with 0.95, within four binomial errors.

    Rounding inwards leaves both events as they are, so no slack for it; only where two bounds collide on a short
    length the upper one gives way, so there its coverage is a minimum.
    """
    size = 20_000
    spec = f"noise:{sigma}" if tau is None else f"noise:{sigma}:{tau}"
    for output_len in (1, 7, 150, 5_000):
        lower, upper, prediction = np.array(bounds(spec, [output_len] * size, 10**9)).T
        assert ((lower <= prediction) & (prediction <= upper)).all()
        coverage = 1 - (tau or 0.1)
        assert abs((lower <= output_len).mean() - coverage) < 4 * np.sqrt(coverage * (1 - coverage) / size)
        surplus = (upper >= output_len).mean() - 0.95
        error = 4 * np.sqrt(0.95 * 0.05 / size)
        assert surplus > -error
        assert surplus < error or output_len < 150


def test_the_median_of_a_noisy_forecast_is_the_prediction() -> None:
    """Its error is log-normal: ln(prediction / o) has mean 0 and the standard deviation SIGMA."""
    size = 20_000
    predictions = np.array(bounds("noise:0.4", [10_000] * size, 10**9))[:, 2]
    errors = np.log(predictions / 10_000)
    assert abs(errors.mean()) < 4 * 0.4 / np.sqrt(size)
    assert abs(errors.std() / 0.4 - 1) < 4 / np.sqrt(2 * size)


def test_noise_stays_within_the_limit() -> None:
    """However far off a forecast is, 1 <= lower <= upper <= max_new_tokens."""
    found = np.array(bounds("noise:10:0.9", [30] * 1000, max_new_tokens=64))
    assert found.min() == 1
    assert found.max() == 64
    assert (found[:, 0] <= found[:, 1]).all()


def test_a_noisy_forecast_states_its_survival() -> None:
    """On the edges given, from 1 and never rising; its TAU quantile is the lower bound, its median the prediction."""
    edges = np.arange(5_001)
    lens = [1, 5, 60, 700]
    requests = synthesize(make_requests(lens), lens, "noise:0.4:0.2", np.random.default_rng(5), edges)
    for request in requests:
        forecast = request.forecast
        assert forecast is not None
        assert forecast.edges is edges
        assert forecast.survival[0] == 1
        assert (np.diff(forecast.survival) <= 0).all()
        assert request.output_len_prediction is not None
        assert abs(forecast.quantile(0.2) - request.output_len_lower_bound) <= 1
        assert abs(forecast.quantile(0.5) - request.output_len_prediction) <= 1


def test_survival_is_the_share_of_draws_above_the_edge() -> None:
    """Of log-normal draws, rounded up, within four binomial standard errors."""
    size, median, sigma = 40_000, 80.0, 0.7
    draws = np.ceil(median * np.exp(sigma * np.random.default_rng(6).standard_normal(size)))
    edges = np.array([0, 1, 20, 64, 80, 200, 1000])
    (survival,) = log_normal_survival([median], sigma, edges)
    shares = (draws[:, None] > edges).mean(axis=0)
    assert survival[4] == pytest.approx(0.5)
    assert (np.abs(shares - survival) <= 4 * np.sqrt(survival * (1 - survival) / size) + 1e-9).all()


def test_an_exact_forecast_has_all_its_mass_on_the_length() -> None:
    """A length exceeds every edge below it and none from itself on."""
    assert log_normal_survival([4.0], 0.0, [0, 3, 4, 5]).tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(
    "predictions",
    [
        "",
        "oracle",
        "exact:1",
        "interval",
        "interval:1",
        "interval:0:10",
        "interval:11:10",
        "interval:1.5:10",
        "interval:1:inf",
        "interval:1:10:100",
        "bins:100",
        "bins:0:10",
        "bins:100:0",
        "bins:nan:10",
        "bins:2.5:10",
        "relative",
        "relative:x",
        "relative:-0.1",
        "relative:1.1",
        "relative:nan",
        "noise",
        "noise:",
        "noise:-1",
        "noise:inf",
        "noise:0.4:0",
        "noise:0.4:0.95",
        "noise:0.4:0.1:0.9",
        "noise:0.4:",
    ],
)
def test_a_bad_specification_says_what_there_is(predictions: str) -> None:
    """One line that names the option, what was given, and every form."""
    with pytest.raises(InputError) as raised:
        synthesize(make_requests([1]), [1], predictions, np.random.default_rng(0))
    message = str(raised.value)
    assert message.startswith(f"--predictions is {predictions!r}; give interval:LOW:HIGH")
    assert all(form in message for form in ("bins:WIDTH:COUNT", "relative:X", "exact", "noise:SIGMA[:TAU]"))
    assert "\n" not in message


def test_lmsys_shaped_lengths_have_the_shape() -> None:
    """Outputs 1..511 around a median of 140, prompts 1..2000 around 40 with a mean of 100; deterministic by seed."""
    prompts, outputs = lmsys_shaped(50_000, np.random.default_rng(7))
    assert prompts.shape == outputs.shape == (50_000,)
    assert outputs.min() >= 1
    assert outputs.max() == 511
    np.testing.assert_allclose(np.percentile(outputs, [10, 50, 90]), [14, 139, 388], rtol=0.08)
    assert prompts.min() >= 1
    assert prompts.max() == 2_000
    assert np.median(prompts) == pytest.approx(40, abs=2)
    assert prompts.mean() == pytest.approx(100, rel=0.06)
    again = lmsys_shaped(50_000, np.random.default_rng(7))
    assert (again[0] == prompts).all()
    assert (again[1] == outputs).all()
