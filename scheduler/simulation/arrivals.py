"""When requests arrive: at once, by a renewal process, or by a file; at a rate, or at a load of the KV cache."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scheduler.errors import InputError

Floats = NDArray[np.float64]

_FORMS = "all-at-once, poisson:RATE, gamma:RATE:CV, or a file with a time a line"


def poisson_arrivals(num_requests: int, rate: float, rng: np.random.Generator) -> Floats:
    """Return sorted arrival times of a Poisson process, `rate` requests per unit of time, shape [num_requests]."""
    return np.cumsum(rng.exponential(1 / rate, num_requests))


def gamma_arrivals(num_requests: int, rate: float, cv: float, rng: np.random.Generator) -> Floats:
    """Return sorted arrival times whose gaps are gamma-distributed, shape [num_requests].

    Args:
        num_requests: Number of times.
        rate: Requests per unit of time: the gaps have the mean 1/rate.
        cv: Coefficient of variation of the gaps; 1 is the Poisson process, more is burstier, less is more regular.
        rng: For the gaps.
    """
    return np.cumsum(rng.gamma(1 / cv**2, cv**2 / rate, num_requests))


def arrival_times(arrivals: str, count: int, rng: np.random.Generator) -> Floats:
    """Return the arrival times that a specification names, sorted, shape [count].

    Args:
        arrivals: "all-at-once", "poisson:RATE" or "gamma:RATE:CV" (RATE requests per unit of time, gaps of the
            coefficient of variation CV), or a file with a time a line, of which the first are taken and sorted.
        count: Number of requests.
        rng: For random arrivals.

    Raises:
        InputError: It is malformed, or its file has too few times.
    """
    if arrivals == "all-at-once":
        return np.zeros(count)
    process, *numbers = arrivals.split(":")
    if process == "poisson":
        (rate,) = _positive(arrivals, numbers, ["rate"], "poisson:RATE")
        return poisson_arrivals(count, rate, rng)
    if process == "gamma":
        rate, cv = _positive(arrivals, numbers, ["rate", "coefficient of variation"], "gamma:RATE:CV")
        return gamma_arrivals(count, rate, cv, rng)
    return _times_of_file(arrivals, count, _FORMS)


def times_at_load(arrivals: str, load: float, volumes: ArrayLike, kv_budget: int, rng: np.random.Generator) -> Floats:
    """Return sorted arrival times at which the requests offer `load` times what the KV cache can serve, shape [n].

    A request with s prompt and o output tokens holds s+1, s+2, ..., s+o tokens in its o iterations: a volume of
    s*o + o(o+1)/2 token-iterations. The cache serves `kv_budget` of them per iteration and `rate` requests per
    iteration ask for rate * mean(volume), so rate = load * kv_budget / mean(volume). From load 1 on the queue grows
    for as long as requests arrive, whatever the policy.

    Args:
        arrivals: "poisson", "gamma:CV", or a file with a time a line, which `scale_to_load` stretches.
        load: Above 0.
        volumes: Token-iterations of each request, shape [n].
        kv_budget: Tokens the cache holds.
        rng: For random arrivals.

    Raises:
        InputError: `arrivals` is malformed or brings its own rate, or `load` is not above 0 and finite.
    """
    rate, count = _rate(load, volumes, kv_budget), np.size(volumes)
    process, *numbers = arrivals.split(":")
    if process == "poisson" and not numbers:
        return poisson_arrivals(count, rate, rng)
    if process == "gamma" and len(numbers) == 1:
        (cv,) = _positive(arrivals, numbers, ["coefficient of variation"], "gamma:CV")
        return gamma_arrivals(count, rate, cv, rng)
    if process in ("poisson", "gamma", "all-at-once"):
        raise InputError(f"arrivals are {arrivals!r}: a load sets the rate; give poisson, gamma:CV, or a file of times")
    times = _times_of_file(arrivals, count, "with a load poisson, gamma:CV, or a file with a time a line")
    return scale_to_load(times, load, volumes, kv_budget)


def scale_to_load(times: ArrayLike, load: float, volumes: ArrayLike, kv_budget: int) -> Floats:
    """Return `times` stretched to the mean rate of `times_at_load`, in the same order, shape [n].

    The first arrival is at 0 and the last at (n-1)/rate; the ratios of the gaps, so the burstiness, stay.

    Args:
        times: Arrival times of a trace in any unit, sorted or not, shape [n].
        load: Above 0; see `times_at_load`.
        volumes: Token-iterations of each request, shape [n].
        kv_budget: Tokens the cache holds.

    Raises:
        InputError: All arrive at the same time, or `load` is not above 0 and finite.
    """
    rate = _rate(load, volumes, kv_budget)
    since_first = np.asarray(times, dtype=np.float64)
    since_first = since_first - since_first.min()
    span = since_first.max()
    if not span > 0:
        raise InputError(f"load is {load}: all requests arrive at the same time, so no rate fits; give other arrivals")
    return np.asarray(since_first / span * ((since_first.size - 1) / rate))


def _rate(load: float, volumes: ArrayLike, kv_budget: int) -> float:
    if not 0 < load < float("inf"):
        raise InputError(f"load is {load}, must be a finite number above 0")
    if kv_budget < 1:
        raise InputError(f"kv_budget is {kv_budget}, must be >= 1")
    return load * kv_budget / float(np.asarray(volumes, dtype=np.float64).mean())


def _positive(arrivals: str, texts: Sequence[str], names: Sequence[str], form: str) -> list[float]:
    """Return the numbers of a specification; InputError that names the first that is missing or out of range."""
    if len(texts) > len(names):
        raise InputError(f"arrivals are {arrivals!r}: too many numbers; give {form}")
    values = []
    for name, text in zip(names, [*texts, *[""] * (len(names) - len(texts))], strict=True):
        try:
            values.append(float(text))
        except ValueError:
            values.append(0.0)
        if not 1e-9 <= values[-1] <= 1e9:
            raise InputError(f"arrivals are {arrivals!r}: the {name} must be a number from 1e-9 to 1e9; give {form}")
    return values


def _times_of_file(arrivals: str, count: int, forms: str) -> Floats:
    path = Path(arrivals)
    if not path.is_file():
        raise InputError(f"arrivals are {arrivals!r}: give {forms}")
    try:
        times = np.array([float(line) for line in path.read_text(encoding="utf-8").split()])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}; every line must be a time") from error
    if len(times) < count or not ((times >= 0) & (times < 1e300)).all():
        raise InputError(f"{path}: {len(times)} times for {count} requests; give one each, finite and not negative")
    return np.sort(times[:count])
