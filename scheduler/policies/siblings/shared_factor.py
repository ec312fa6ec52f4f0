"""What the lengths of siblings say of each other: how far all of them lie from their forecasts.

The length of a request, seen through its own forecast F, is a standard normal score z = inverse_normal(F(length)).
Siblings share a part of it: z = sqrt(r) a + sqrt(1 - r) e, with a one number for the group, e one for each request,
both standard normal. r is the correlation of two siblings' scores: 0 where the forecast tells all that the prompt
tells, 1 where all answers to a prompt are equally long. (A one-factor Gaussian copula, Li 2000; where siblings have
ended the posterior of a is normal, as in a random-effects model.) So forecasts stay what they are on average, and any
forecast can be used.

An ended sibling multiplies the density of a with the normal density of its score, one that has lasted for g tokens with
P(z > inverse_normal(F(g)) | a). Both are kept as logarithms on a few values of a, so that they add up.
"""

import math

import numpy as np

from scheduler.forecast import Floats, Forecast

FACTORS = np.linspace(-4.5, 4.5, 73)
"""Values of the shared part; the sums over them are as exact as the tables as long as r is at most 0.95."""
LOG_PRIOR = -(FACTORS**2) / 2
MOST = 4.0
"""No length is further from its forecast than this: beyond, forecasts mean nothing."""
_SCORES = np.linspace(-8, 8, 4097)
_BELOW = np.array([0.5 * math.erfc(-score / math.sqrt(2)) for score in _SCORES.tolist()])


def score(survival: float) -> float:
    """Return the normal score of a length that is exceeded with this probability."""
    return float(np.clip(np.interp(1.0 - survival, _BELOW, _SCORES), -MOST, MOST))


def survival_at(forecast: Forecast, length: float) -> float:
    """Return P(length of the answer > `length`), beyond the last edge as its tail says."""
    last = forecast.edges.item(-1)
    if length > last:
        return 0.0 if forecast.tail is None else forecast.survival.item(-1) * math.pow(last / length, forecast.tail)
    return float(np.interp(length, forecast.edges, forecast.survival))


def ended(own_score: float, correlation: float) -> Floats:
    """Return the log likelihood of each of `FACTORS` where a sibling has ended with a score."""
    likelihood: Floats = -((own_score - math.sqrt(correlation) * FACTORS) ** 2) / (2 * (1 - correlation))
    return likelihood


def outlived(own_score: float, correlation: float) -> Floats:
    """Return the log likelihood of each of `FACTORS` where a sibling has lasted longer than a score."""
    above = _below((math.sqrt(correlation) * FACTORS - own_score) / math.sqrt(1 - correlation))
    likelihood: Floats = np.log(np.maximum(above, 1e-300))
    return likelihood


def weights(log_likelihood: Floats) -> Floats:
    """Return the probabilities of `FACTORS` given what the siblings say, shape [73]."""
    total = LOG_PRIOR + log_likelihood
    density: Floats = np.exp(total - total.max())
    probabilities: Floats = density / density.sum()
    return probabilities


def given_factors(forecast: Forecast, correlation: float) -> Floats:
    """Return P(length > edge) of a request for each of `FACTORS`, shape [73, num_bins + 1]."""
    inner = (forecast.survival > 0) & (forecast.survival < 1)
    scores = np.interp(1.0 - forecast.survival[inner], _BELOW, _SCORES)
    table = np.tile(forecast.survival, (len(FACTORS), 1))
    table[:, inner] = _below((math.sqrt(correlation) * FACTORS[:, None] - scores) / math.sqrt(1 - correlation))
    return table


def moved(forecast: Forecast, probabilities: Floats, table: Floats) -> Forecast:
    """Return the forecast of a request given the probabilities of what its group shares; its tail keeps its index.

    `table` is that of `given_factors`, which requests with one forecast have in common.
    """
    survival = np.minimum.accumulate((probabilities @ table).clip(0, 1))
    survival[forecast.survival == 1] = 1.0
    return Forecast(forecast.edges, survival, forecast.tail)


def _below(scores: Floats) -> Floats:
    """Return the standard normal distribution function."""
    return np.asarray(np.interp(scores, _SCORES, _BELOW))
