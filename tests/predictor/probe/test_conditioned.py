"""What the prompt alone says later on, mixtures, and calibration where answers were cut."""

import numpy as np
import pytest

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import cdf, lower_bound
from predictor.probe.calibration import Scores, StageCalibration
from predictor.probe.conditioned import Mixture, best_share, conditioned
from predictor.probe.fit import ProbeData
from predictor.probe.quality import Forecasts, by_generated, mean_kendall_tau, over_answers
from predictor.probe.states import States

BINS = LengthBins.log_spaced(1024, 24)
MEAN, CAP = 400.0, 400


def exponential(means: np.ndarray) -> np.ndarray:
    """Survival of exponential lengths on the bins, [N, K+1]."""
    return np.exp(-BINS.as_array()[None, :] / means[:, None])


def test_conditioning_on_nothing_changes_nothing() -> None:
    """At t = 0, on the same bins, the forecast is what it was; later it is the survival past t over that at t."""
    survival = exponential(np.array([20.0, 80.0]))
    np.testing.assert_allclose(conditioned(BINS, survival, np.zeros(2, dtype=np.int64), BINS), survival)
    later = conditioned(BINS, survival, np.array([16, 16]), BINS)
    for row in (0, 1):
        for place, edge in enumerate(BINS.edges[:10]):
            expected = 1 - cdf(BINS, survival[row : row + 1], np.array([16 + edge]))
            now = 1 - cdf(BINS, survival[row : row + 1], np.array([16]))
            assert later[row, place] == pytest.approx((expected / now)[0])


def test_what_its_forecast_takes_for_ended_goes_on() -> None:
    """An answer past all that was thought possible is as if nothing were known; what outlives all has no end."""
    survival = np.array([[1.0, *[0.0] * BINS.num_bins], [1.0] * (BINS.num_bins + 1)])
    late = conditioned(BINS, survival, np.array([50, 2000]), BINS)
    assert (late == 1).all()


def test_the_likelier_source_has_the_larger_share() -> None:
    """All of it where the other is wrong, some where both know a part; a state that is no number leaves the prompt."""
    rng = np.random.default_rng(0)
    means = rng.choice([10.0, 100.0], 4000)
    remaining = np.maximum(1, rng.exponential(means)).astype(np.int64)
    cut = remaining > 60
    remaining = np.minimum(remaining, 60)
    right, wrong = exponential(means), exponential(110 - means)
    assert best_share(BINS, right, wrong, remaining, cut) > 0.8
    assert best_share(BINS, wrong, right, remaining, cut) < 0.2
    half = np.where(rng.random(4000) < 0.5, means, 30.0)
    other = np.where(half == means, 30.0, means)
    assert 0.3 <= best_share(BINS, exponential(half), exponential(other), remaining, cut) <= 0.7
    table = StageCalibration.fit(
        Scores(np.arange(9), *(np.zeros(9, np.int64),) * 2, np.full(9, 0.5), np.ones(9, np.int64), np.zeros(9, bool))
    )
    mixed = Mixture(0.5, "abc", table).survival(np.full((1, BINS.num_bins + 1), np.nan), right[:1])
    np.testing.assert_array_equal(mixed, right[:1])
    assert Mixture.from_dict(Mixture(0.5, "abc", table).to_dict()) == Mixture(0.5, "abc", table)


def test_answers_cut_at_a_cap_do_not_lower_the_levels() -> None:
    """With two in five cut, bounds by stage and over the answer cover 0.90 of the whole answers, and not nearly all."""
    rng = np.random.default_rng(1)
    shares: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(40):
        parts = [renewals(rng, 400), renewals(rng, 1000)]
        calibration = StageCalibration.fit(parts[0][0])
        for over_answer in (False, True):
            rows, whole = parts[1]
            levels = calibration.levels(0.1, rows.generated, over_answer=over_answer)
            bounds = lower_bound(BINS, exponential(np.full(len(levels), MEAN)), levels)
            held = (bounds <= whole) | (rows.generated + bounds > CAP)
            if over_answer:
                held = np.bincount(rows.prompt, weights=~held) == 0
            shares[over_answer].append(held.mean())
    assert np.mean(shares[False]) == pytest.approx(0.9, abs=0.01)
    assert np.mean(shares[True]) == pytest.approx(0.9, abs=0.01)


def renewals(rng: np.random.Generator, size: int) -> tuple[Scores, np.ndarray]:
    """Scores of answers of exponential lengths cut at the cap, at 0 and 100 tokens out, and what truly remained."""
    lengths = np.maximum(1, rng.exponential(MEAN, size)).astype(np.int64)
    prompt, generated = (part.ravel() for part in np.meshgrid(np.arange(size), [0, 100], indexing="ij"))
    alive = generated < lengths[prompt]
    prompt, generated = prompt[alive], generated[alive]
    seen = np.minimum(lengths, CAP)[prompt] - generated
    score = cdf(BINS, exponential(np.full(len(prompt), MEAN)), seen + 1)
    return Scores(prompt, np.zeros_like(prompt), generated, score, seen, lengths[prompt] > CAP), lengths[
        prompt
    ] - generated


def test_measures_by_tokens_out() -> None:
    """Each stage by itself, at least thirty answers; a perfect forecast has tau-b 1, and a cap cuts lengths."""
    rng = np.random.default_rng(2)
    prompt = np.arange(100)
    lengths = rng.permutation(np.arange(5, 105))
    rows = [(p, t) for p in prompt for t in (0, 16, 90) if t < lengths[p]]
    of, generated = np.array(rows).T
    none = np.zeros((len(rows), 1, 1), np.float16)
    data = ProbeData(
        States(of, 0 * of, generated, none, none, none), 0 * of, lengths[of] - generated, np.zeros(len(rows), bool)
    )
    perfect = Forecasts(data.remaining, data.remaining.astype(float))
    found = by_generated(data, perfect, 0.1)
    assert list(found) == ["0", "16"]
    for row in found.values():
        assert row["coverage"] == row["tightness"] == row["kendall_tau"] == 1
    assert by_generated(data, perfect, 0.1, cap=16).keys() == {"0"}
    few = ProbeData(data.states.select(np.arange(12)), *(each[:12] for each in (0 * of, data.remaining, of < 0)))
    assert list(by_generated(few, Forecasts(few.remaining, few.remaining * 1.0), 0.1)) == ["0"]
    assert mean_kendall_tau(found) == 1
    assert mean_kendall_tau({"0": found["0"]}) is None
    assert over_answers(data, data.remaining) == 1
    assert over_answers(data, data.remaining + (generated == 0) * (of < 25)) == 0.75
