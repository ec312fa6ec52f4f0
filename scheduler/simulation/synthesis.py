"""Predictions made from true lengths, to ask how good a predictor must be; and lengths where there is no file."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scheduler.errors import InputError
from scheduler.forecast import Forecast
from scheduler.request import Request

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Lengths = tuple[Ints, Ints]
"""Prompt and output lengths in tokens, each of shape [n]."""

UPPER_LEVEL = 0.95
"""Quantile of a noisy forecast that serves as the upper bound."""

_DEFAULT_TAU = 0.1

_FORMS = (
    "interval:LOW:HIGH (whole, 1 <= LOW <= HIGH), bins:WIDTH:COUNT (whole, from 1), relative:X (X in 0..1), exact, "
    f"noise:SIGMA[:TAU] (SIGMA in 0..10, 0 < TAU < {UPPER_LEVEL}), or skill:R2[:TAU] (R2 in 0..1)"
)

_OUTPUT_WEIGHTS = (0.0336, 0.3282, 0.3359, 0.3023)
_OUTPUT_MEDIANS = (2.35, 28.75, 149.85, 342.28)
_OUTPUT_SIGMAS = (0.094, 0.853, 0.502, 0.237)
_MAX_OUTPUT_LEN = 511
_PROMPT_MEDIAN, _PROMPT_SIGMA, _MAX_PROMPT_TOKENS = 40, 1.375, 2_000

LONGEST_REASONING = 32_768
_REASONING_MEDIAN, _REASONING_SIGMA = 2_500, 1.0
_CLASSES = ((0.5, 900, 0.7), (0.35, 4_000, 0.7), (0.15, 12_000, 0.6))
"""Share, median and sigma of easy, middling and hard questions."""
_QUESTION_MEDIAN, _QUESTION_SIGMA = 150, 0.8


def synthesize(
    requests: Sequence[Request],
    output_lens: Sequence[int],
    predictions: str,
    rng: np.random.Generator,
    edges: Ints | None = None,
) -> list[Request]:
    """Return the requests with bounds and predictions made from their true lengths o, cut at max_new_tokens.

    Args:
        requests: What predictions they have is replaced, forecasts included.
        output_lens: True output lengths o in tokens, at most the request's max_new_tokens.
        predictions: "interval:LOW:HIGH": the same bounds for all, also where o is outside.
            "bins:WIDTH:COUNT": the bin that o falls in, the first being 1..WIDTH; a length beyond the last bin gets
            that bin, extended to max_new_tokens.
            "relative:X": (1-X)o and (1+X)o, X*o rounded, so that o is always inside.
            "exact": o itself.
            "noise:SIGMA" or "noise:SIGMA:TAU": a log-normal forecast of width SIGMA, whose median is o * exp(SIGMA*z),
            z standard normal; its quantiles TAU (by default 0.1) and 0.95 are the bounds. z is symmetric, so
            o is at least the lower bound with probability 1 - TAU (more where max_new_tokens cuts the bound to o).
        "skill:R2" or "skill:R2:TAU": a calibrated forecast that explains the share R2 of the variance of log length:
            with mean m and standard deviation S of log o, its centre is c = m + R2 (log o - m) + S sqrt(R2 (1 - R2)) z
            and its width S sqrt(1 - R2), so that log o given c is normal around c where log o is normal. A poor
            predictor so says nearly the same of all, where a poor noisy one is sure of what is wrong.
            The prediction is the median of such a forecast, or the middle of the bounds without one.
        rng: For noise.
        edges: Length bins on which requests get their noisy forecast, shape [num_bins + 1]; by default they get none.

    Raises:
        InputError: `predictions` is malformed.
    """
    name, numbers = _parse(predictions)
    lens = np.asarray(output_lens, dtype=np.int64)
    limits = np.array([request.max_new_tokens for request in requests], dtype=np.int64)
    forecasts: Sequence[Forecast | None] = [None] * len(requests)
    if name in ("noise", "skill"):
        sigma, tau = numbers
        noise = rng.standard_normal(lens.size)
        medians = lens.astype(np.float64) * np.exp(sigma * noise)
        if name == "skill":
            medians, sigma = _calibrated(lens, sigma, noise)
        lower, upper, central = _quantiles(medians, sigma, tau, limits)
        if edges is not None:
            forecasts = [Forecast(edges, survival) for survival in log_normal_survival(medians, sigma, edges)]
    else:
        lower, upper = _intervals(name, numbers, lens, limits)
        central = (lower + upper) // 2
    columns = zip(requests, lower.tolist(), upper.tolist(), central.tolist(), forecasts, strict=True)
    return [
        replace(
            request,
            output_len_lower_bound=low,
            output_len_upper_bound=high,
            output_len_prediction=middle,
            forecast=forecast,
        )
        for request, low, high, middle, forecast in columns
    ]


def log_normal_survival(medians: ArrayLike, sigma: float, edges: ArrayLike) -> Floats:
    """Return P(length > edge) of log-normal lengths rounded up, shape [n, num_bins + 1].

    Args:
        medians: Medians in tokens, shape [n].
        sigma: Standard deviation of the logarithm; 0 puts all mass on the median.
        edges: Whole numbers of tokens from 0, shape [num_bins + 1].
    """
    tokens, centres = np.asarray(edges, dtype=np.float64), np.asarray(medians, dtype=np.float64)[:, None]
    if sigma == 0:
        return np.where(tokens < centres, 1.0, 0.0)
    log_tokens = np.log(np.maximum(tokens, np.finfo(np.float64).tiny))
    return np.asarray(0.5 * _erfc((log_tokens - np.log(centres)) / (sigma * math.sqrt(2))))


def lmsys_shaped(count: int, rng: np.random.Generator) -> Lengths:
    """Return prompt and output lengths in tokens, shaped like chats of LMSYS-Chat-1M, each of shape [count].

    Outputs: a mixture of four log-normals, rounded and clipped to 1..511, fitted by maximum likelihood to vicuna-13b's
    85,482 answers (its distribution function is within 0.016 of theirs; deciles 14 29 56 96 139 198 268 324 388 against
    13 31 57 95 140 201 263 325 397). Prompts: an assumption, not a fit: log-normal with median 40, mean about 100, cut
    at 2,000, and independent of the outputs.
    """
    part = rng.choice(len(_OUTPUT_WEIGHTS), count, p=_OUTPUT_WEIGHTS)
    outputs = np.take(_OUTPUT_MEDIANS, part) * np.exp(np.take(_OUTPUT_SIGMAS, part) * rng.standard_normal(count))
    prompts = _PROMPT_MEDIAN * np.exp(_PROMPT_SIGMA * rng.standard_normal(count))
    return _whole(prompts, _MAX_PROMPT_TOKENS), _whole(outputs, _MAX_OUTPUT_LEN)


def reasoning(count: int, rng: np.random.Generator) -> Lengths:
    """Return prompt and output lengths in tokens of long answers, each of shape [count].

    An assumption, not a fit: outputs log-normal with median 2,500 and sigma 1, cut at 32,768; prompts log-normal with
    median 150 and sigma 0.8, independent of them.
    """
    return _long_answers(np.full(count, _REASONING_MEDIAN), np.full(count, _REASONING_SIGMA), rng)


def reasoning_mixed(count: int, rng: np.random.Generator) -> Lengths:
    """Return the same of three classes of questions: half with median 900, 35 % with 4,000, 15 % with 12,000."""
    shares, medians, sigmas = np.array(_CLASSES).T
    part = rng.choice(len(_CLASSES), count, p=shares)
    return _long_answers(medians[part], sigmas[part], rng)


def _long_answers(medians: Floats, sigmas: Floats, rng: np.random.Generator) -> Lengths:
    outputs = medians * np.exp(sigmas * rng.standard_normal(medians.size))
    prompts = _QUESTION_MEDIAN * np.exp(_QUESTION_SIGMA * rng.standard_normal(medians.size))
    return _whole(prompts, _MAX_PROMPT_TOKENS), _whole(outputs, LONGEST_REASONING)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _whole(values: Floats, most: ArrayLike) -> Ints:
    return np.clip(np.rint(values), 1, most).astype(np.int64)


def _parse(predictions: str) -> tuple[str, list[float]]:
    """Return the name and the numbers of a specification, TAU filled in; InputError where it is malformed."""
    name, *texts = predictions.split(":")
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = [math.nan]
    match name, numbers:
        case "interval", [low, high]:
            valid = low.is_integer() and high.is_integer() and 1 <= low <= high <= 1e9
        case "bins", [width, count]:
            valid = width.is_integer() and count.is_integer() and 1 <= width <= 1e9 and 1 <= count <= 1e9
        case "relative", [share]:
            valid = 0 <= share <= 1
        case "noise", [sigma, *tau]:
            numbers = [sigma, *(tau or [_DEFAULT_TAU])]
            valid = 0 <= sigma <= 10 and len(numbers) == 2 and 0 < numbers[1] < UPPER_LEVEL
        case "skill", [share, *tau]:
            numbers = [share, *(tau or [_DEFAULT_TAU])]
            valid = 0 <= share <= 1 and len(numbers) == 2 and 0 < numbers[1] < UPPER_LEVEL
        case _:
            valid = name == "exact" and not texts
    if not valid:
        raise InputError(f"--predictions is {predictions!r}; give {_FORMS}")
    return name, numbers


def _calibrated(lens: Ints, share: float, noise: Floats) -> tuple[Floats, float]:
    """Return medians, shape [n], and the common width of forecasts that explain a share of log length's variance."""
    if share == 1:
        return lens.astype(np.float64), 0.0
    logs = np.log(lens)
    spread = float(logs.std())
    centres = logs.mean() + share * (logs - logs.mean()) + spread * math.sqrt(share * (1 - share)) * noise
    return np.exp(centres), spread * math.sqrt(1 - share)


def _intervals(name: str, numbers: list[float], lens: Ints, limits: Ints) -> tuple[Ints, Ints]:
    """Return lower and upper bounds of a setting without noise, 1 <= lower <= upper <= limit, each of shape [n]."""
    match name, numbers:
        case "interval", [low, high]:
            lower, upper = np.full(lens.size, int(low)), np.full(lens.size, int(high))
        case "bins", [width, count]:
            index = np.minimum((lens - 1) // int(width), int(count) - 1)
            lower, upper = index * int(width) + 1, (index + 1) * int(width)
            upper = np.where(lens > upper, limits, upper)
        case "relative", [share]:
            margin = np.rint(share * lens).astype(np.int64)
            lower, upper = lens - margin, lens + margin
        case _:
            lower = upper = lens
    lower = np.clip(lower, 1, limits)
    return lower, np.clip(upper, lower, limits)


def _quantiles(medians: Floats, sigma: float, tau: float, limits: Ints) -> tuple[Ints, Ints, Ints]:
    """Return lower bound, upper bound and median of a log-normal forecast, in 1..limit, each of shape [n].

    Rounded inwards: a whole length is at least x exactly when it is at least ceil(x), so rounding leaves the coverage.
    """
    low, high = (np.exp(sigma * NormalDist().inv_cdf(level)) for level in (tau, UPPER_LEVEL))
    lower = _whole(np.ceil(medians * low), limits)
    upper = np.maximum(_whole(np.floor(medians * high), limits), lower)
    return lower, upper, np.clip(_whole(medians, limits), lower, upper)
