from pathlib import Path

import numpy as np
import pytest

from scheduler.errors import InputError
from scheduler.simulation.arrivals import arrival_times, gamma_arrivals, poisson_arrivals, scale_to_load, times_at_load

PROMPTS = np.array([0, 3, 20, 7])
OUTPUTS = np.array([1, 5, 12, 40])
VOLUMES = PROMPTS * OUTPUTS + OUTPUTS * (OUTPUTS + 1) / 2


def test_all_at_once_is_zero() -> None:
    """Every request of the paper's setting is there at the start."""
    assert arrival_times("all-at-once", 3, np.random.default_rng(0)).tolist() == [0, 0, 0]


def test_a_poisson_specification_is_the_poisson_process() -> None:
    """It draws from the generator that it is given."""
    times = arrival_times("poisson:0.5", 10, np.random.default_rng(4))
    assert times.tolist() == poisson_arrivals(10, 0.5, np.random.default_rng(4)).tolist()


@pytest.mark.parametrize("rate", [0.02, 3.0])
def test_poisson_gaps_are_exponential(rate: float) -> None:
    """Times ascend from above 0; the gaps have the mean and the standard deviation 1/rate, within four errors."""
    size = 20_000
    times = poisson_arrivals(size, rate, np.random.default_rng(0))
    gaps = np.diff(times, prepend=0.0)
    assert times.shape == (size,)
    assert (gaps > 0).all()
    assert abs(gaps.mean() * rate - 1) < 4 / np.sqrt(size)
    assert abs(gaps.std() * rate - 1) < 4 * np.sqrt(2 / size)  # an exponential's squared deviation varies 8-fold


def test_a_file_of_times_is_sorted(tmp_path: Path) -> None:
    """The first `count` times of the file, in ascending order."""
    file = tmp_path / "times.txt"
    file.write_text("3\n0.5\n\n1e1\n0\n")
    assert arrival_times(str(file), 3, np.random.default_rng(0)).tolist() == [0.5, 3, 10]


@pytest.mark.parametrize(
    "arrivals",
    ["poisson:0", "poisson:-1", "poisson:inf", "poisson:nan", "poisson:", "poisson:x", "poisson", "gamma:0:1"],
)
def test_a_poisson_rate_must_be_a_positive_number(arrivals: str) -> None:
    """The message repeats the specification."""
    with pytest.raises(InputError, match=f"arrivals are '{arrivals}'.*rate"):
        arrival_times(arrivals, 3, np.random.default_rng(0))


@pytest.mark.parametrize("arrivals", ["at-once", "", "/nowhere/times.txt"])
def test_an_unknown_specification_says_what_there_is(arrivals: str) -> None:
    """The message names the forms."""
    with pytest.raises(InputError, match=r"all-at-once, poisson:RATE, gamma:RATE:CV, or a file"):
        arrival_times(arrivals, 3, np.random.default_rng(0))


@pytest.mark.parametrize("text", ["1\n2\n", "1\n2\n-3\n", "1\ntwo\n3\n"])
def test_a_file_with_too_few_or_wrong_times_is_an_input_error(tmp_path: Path, text: str) -> None:
    """The message is one line that names the file."""
    file = tmp_path / "times.txt"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        arrival_times(str(file), 3, np.random.default_rng(0))
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["1\nnan\n", "1\ninf\n"])
def test_arrival_files_hold_finite_times(tmp_path: Path, text: str) -> None:
    """Not a number and infinity are refused."""
    path = tmp_path / "times.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="finite"):
        arrival_times(str(path), 2, np.random.default_rng(0))


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_the_mean_and_the_variation_asked_for(cv: float) -> None:
    """Within four standard errors; a gamma's excess kurtosis is 6 cv^2."""
    size, rate = 40_000, 0.2
    gaps = np.diff(arrival_times(f"gamma:{rate}:{cv}", size, np.random.default_rng(0)), prepend=0.0)
    assert (gaps >= 0).all()
    assert abs(gaps.mean() * rate - 1) < 4 * cv / np.sqrt(size)
    assert abs(gaps.std() * rate / cv - 1) < 4 * np.sqrt((6 * cv**2 + 2) / size) / 2


def test_gamma_gaps_of_variation_one_are_exponential() -> None:
    """Mean, variance and the share above the mean, exp(-1), are those of the Poisson process."""
    size, rate = 40_000, 3.0
    gaps = np.diff(gamma_arrivals(size, rate, 1.0, np.random.default_rng(0)), prepend=0.0)
    exponential = np.diff(poisson_arrivals(size, rate, np.random.default_rng(1)), prepend=0.0)
    assert abs(gaps.mean() / exponential.mean() - 1) < 4 * np.sqrt(2 / size)
    assert abs(gaps.var() / exponential.var() - 1) < 4 * np.sqrt(2 * 8 / size)
    share = np.exp(-1)
    assert abs((gaps * rate > 1).mean() - share) < 4 * np.sqrt(share * (1 - share) / size)


@pytest.mark.parametrize(
    ("arrivals", "complaint"),
    [
        ("gamma", "rate"),
        ("gamma:2", "coefficient of variation"),
        ("gamma:2:0", "coefficient of variation"),
        ("gamma:2:1:1", "too many numbers"),
        ("poisson:2:1", "too many numbers"),
    ],
)
def test_a_gamma_specification_needs_two_numbers(arrivals: str, complaint: str) -> None:
    """The message repeats the specification and names the number."""
    with pytest.raises(InputError, match=f"arrivals are '{arrivals}': .*{complaint}"):
        arrival_times(arrivals, 3, np.random.default_rng(0))


@pytest.mark.parametrize(("arrivals", "cv"), [("poisson", 1.0), ("gamma:0.5", 0.5), ("gamma:2", 2.0)])
@pytest.mark.parametrize("load", [0.5, 0.95, 3.0])
def test_the_tokens_held_are_the_load_times_the_cache(arrivals: str, cv: float, load: float) -> None:
    """If each request started at once, the tokens held, counted one by one, would average load * kv_budget.

    The span of n gaps varies by cv / sqrt(n); the counting of whole iterations adds nothing, as each volume is held.
    """
    size, kv_budget = 4_000, 500
    rng = np.random.default_rng(2)
    prompts, outputs = rng.integers(0, 30, size), rng.integers(1, 40, size)
    times = times_at_load(arrivals, load, prompts * outputs + outputs * (outputs + 1) / 2, kv_budget, rng)
    held = np.zeros(int(times[-1]) + 41)
    for time, prompt, output in zip(times.astype(int), prompts, outputs, strict=True):
        held[time + 1 : time + output + 1] += prompt + np.arange(1, output + 1)
    assert times.shape == (size,)
    assert (np.diff(times) >= 0).all()
    assert abs(held.sum() / times[-1] / (load * kv_budget) - 1) < 5 * cv / np.sqrt(size)


def test_the_load_sets_the_rate_of_the_same_process() -> None:
    """With a rate of load * kv_budget / mean(volume) the draws are those of the process at that rate."""
    rate = 0.8 * 50 / VOLUMES.mean()
    at_load = times_at_load("gamma:2", 0.8, VOLUMES, 50, np.random.default_rng(3))
    np.testing.assert_allclose(at_load, gamma_arrivals(4, rate, 2.0, np.random.default_rng(3)))


def test_a_trace_is_stretched_to_the_load() -> None:
    """Order and the ratios of gaps stay, the first is at 0, and n - 1 gaps have the mean 1/rate."""
    times = np.array([7.0, 5.0, 5.5, 9.0])
    scaled = scale_to_load(times, 0.5, VOLUMES, 100)
    assert scaled.argmin() == 1
    assert scaled.min() == 0
    np.testing.assert_allclose(scaled / scaled.max(), (times - 5) / 4)
    assert scaled.max() / 3 == pytest.approx(VOLUMES.mean() / (0.5 * 100))


def test_a_file_of_times_is_stretched_too(tmp_path: Path) -> None:
    """`times_at_load` takes the first times of the file and scales them."""
    file = tmp_path / "times.txt"
    file.write_text("4\n1\n2\n8\n100\n")
    scaled = times_at_load(str(file), 0.5, VOLUMES, 100, np.random.default_rng(0))
    np.testing.assert_allclose(scaled, scale_to_load([1, 2, 4, 8], 0.5, VOLUMES, 100))


@pytest.mark.parametrize("times", [[2.0, 2.0, 2.0, 2.0], [3.0]])
def test_times_without_a_span_have_no_rate(times: list[float]) -> None:
    """The message says that all arrive together."""
    with pytest.raises(InputError, match="all requests arrive at the same time"):
        scale_to_load(times, 0.5, VOLUMES, 100)


@pytest.mark.parametrize("load", [0.0, -1.0, float("inf"), float("nan")])
def test_a_load_is_a_positive_number(load: float) -> None:
    """Zero, negative, infinite and undefined loads are refused by both functions."""
    with pytest.raises(InputError, match=f"load is {load}"):
        times_at_load("poisson", load, VOLUMES, 100, np.random.default_rng(0))
    with pytest.raises(InputError, match=f"load is {load}"):
        scale_to_load([0, 1, 2, 3], load, VOLUMES, 100)


def test_a_load_needs_a_cache() -> None:
    """A budget of no tokens serves nothing."""
    with pytest.raises(InputError, match="kv_budget is 0"):
        times_at_load("poisson", 0.5, VOLUMES, 0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("arrivals", "complaint"),
    [
        ("poisson:2", "a load sets the rate"),
        ("gamma:2:1", "a load sets the rate"),
        ("gamma", "a load sets the rate"),
        ("all-at-once", "a load sets the rate"),
        ("gamma:-1", "coefficient of variation"),
        ("sometimes", "with a load poisson, gamma:CV, or a file"),
    ],
)
def test_arrivals_with_a_load_bring_no_rate(arrivals: str, complaint: str) -> None:
    """The message repeats the specification and says what fits a load."""
    with pytest.raises(InputError, match=f"arrivals are '{arrivals}': .*{complaint}"):
        times_at_load(arrivals, 0.5, VOLUMES, 100, np.random.default_rng(0))
