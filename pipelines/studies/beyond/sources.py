"""Where the requests of docs/results/beyond.md come from, and the forecasts that they are given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.simulate.resampling import arriving, poisson, resample, volumes
from pipelines.simulate.traces import read_requests
from pipelines.simulate.workloads import DEFAULT_EDGES, fitting
from pipelines.studies.beyond.cells import Variant
from pipelines.studies.paper import FAMILIES, LOW
from scheduler.forecast import Forecast
from scheduler.kv_cache import KvCache
from scheduler.request import Request
from scheduler.simulation.arrivals import scale_to_load
from scheduler.simulation.synthesis import UPPER_LEVEL, lmsys_shaped, synthesize
from scheduler.workload import Workload, workload_from_columns

Ints = NDArray[np.int64]
Draw = Callable[[int, float | None, int, np.random.Generator], Workload]
"""Number of requests, load (None: all at once), tokens of the KV cache and chance to a workload."""

WRONG_MODEL = "wrong model"
CAPS = {"lmsys": 512, "azure_conv": 1024, "azure_code": 2048, "mooncake_conversation": 2048}
"""Tokens of an answer at most, as a server with one limit for all would say; the files state none."""
NOISE = "noise:0.4"
"""Error of the made-up forecasts where a source has no prompts."""


def source(name: str, workloads: Mapping[str, Workload], shared: Path) -> Draw:
    """Return what draws the requests of a source: a served model, "lmsys", a trace, or "FAMILY:INVERSE:VALUE"."""
    if name in workloads:
        return lambda count, load, kv, rng: resample(
            fitting(workloads[name], KvCache(kv, 1), skip=True), count, load, kv, rng
        )
    if name == "lmsys":
        path = shared / "lmsys_vicuna13b_lengths.parquet"
        lens = np.array(read_requests(path, CAPS[name]).output_lens, dtype=np.int64)
        return lambda count, load, kv, rng: _lmsys(lens, count, load, kv, rng)
    if ":" in name:
        family, inverse, value = name.split(":")
        return lambda count, load, kv, rng: _stylised(family, int(inverse), float(value), count, rng)
    base = read_requests(shared / f"{name}.parquet", CAPS[name])
    return lambda count, load, kv, rng: _window(base, count, load or 1.0, kv, rng)


def _lmsys(lens: Ints, count: int, load: float | None, kv_budget: int, rng: np.random.Generator) -> Workload:
    """Return requests with lengths of LMSYS-Chat-1M, made-up prompts and forecasts of error 0.4."""
    prompts, _ = lmsys_shaped(count, rng)
    plain = workload_from_columns(["r"] * count, prompts, rng.choice(lens, count), np.zeros(count), CAPS["lmsys"])
    drawn = predicted(plain, NOISE, rng)
    return arriving(drawn, poisson(drawn, load, kv_budget, rng))


def _window(base: Workload, count: int, load: float, kv_budget: int, rng: np.random.Generator) -> Workload:
    """Return consecutive requests of a trace with its own gaps, stretched to the load, and forecasts of error 0.4."""
    tokens = [r.num_prompt_tokens + length for r, length in zip(base.requests, base.output_lens, strict=True)]
    fits = [i for i, total in enumerate(tokens) if total < kv_budget // 4]
    first = int(rng.integers(max(1, len(fits) - count)))
    chosen = fits[first : first + count]
    drawn = base.select(chosen)
    times = np.array([request.arrival_time for request in drawn.requests])
    return arriving(predicted(drawn, NOISE, rng), scale_to_load(times, load, volumes(drawn), kv_budget))


def _stylised(family: str, inverse: int, value: float, count: int, rng: np.random.Generator) -> Workload:
    """Return requests without prompts whose common forecast is the distribution that their lengths are drawn from."""
    steps = np.arange(1, inverse + 1)
    weights = FAMILIES[family](steps, value)
    shares = weights / weights.sum()
    lens = LOW * rng.choice(steps, count, p=shares)
    base = workload_from_columns(["r"] * count, np.zeros(count, dtype=np.int64), lens, np.zeros(count), LOW * inverse)
    edges = np.concatenate([[0], np.ravel([LOW * steps - 1, LOW * steps], order="F")])
    survival = np.concatenate([[1.0], np.ravel([1 - np.cumsum(shares) + shares, 1 - np.cumsum(shares)], order="F")])
    forecast = Forecast(edges, np.minimum.accumulate(survival.clip(0, 1)))
    requests = [
        replace(request, output_len_lower_bound=LOW, output_len_upper_bound=LOW * inverse, forecast=forecast)
        for request in base.requests
    ]
    return arriving(Workload(requests, base.output_lens), np.zeros(count))


def predicted(workload: Workload, predictions: str, rng: np.random.Generator) -> Workload:
    """Return the workload with predictions made from the true lengths, as `synthesize` makes them."""
    edges = np.concatenate([[0], DEFAULT_EDGES])
    return Workload(synthesize(workload.requests, workload.output_lens, predictions, rng, edges), workload.output_lens)


def changed(workload: Workload, wrong: Workload | None, variant: Variant, seed: int) -> Workload:
    """Return the workload with the forecast and the bounds of a variant.

    Args:
        workload: As predicted.
        wrong: The same requests with what is predicted for another served model.
        variant: Whose forecast and tau count.
        seed: Of noise.
    """
    requests, lens = workload.requests, workload.output_lens
    if variant.forecast == WRONG_MODEL and wrong is not None:
        pairs = zip(wrong.requests, requests, strict=True)
        return Workload([replace(theirs, arrival_time=mine.arrival_time) for theirs, mine in pairs], lens)
    if variant.forecast.startswith("noise:"):
        return predicted(workload, variant.forecast, np.random.default_rng(seed))
    if variant.forecast == "as predicted" and variant.tau is None:
        return workload
    return Workload(with_forecast(requests, lens, variant.forecast, variant.tau or 0.1), lens)


def with_upper_bounds(workload: Workload) -> Workload:
    """Return the workload with the forecast's 0.95 quantile as the upper bound of every request, for `amax`."""
    requests = []
    for request in workload.requests:
        upper = min(request.max_new_tokens, int(request.forecast_or_bounds().quantile(UPPER_LEVEL)))
        requests.append(replace(request, output_len_upper_bound=max(request.output_len_lower_bound, upper)))
    return Workload(requests, workload.output_lens)


def with_forecast(requests: Sequence[Request], lens: Sequence[int], kind: str, tau: float) -> list[Request]:
    """Return the requests with another forecast, and the bounds that it gives (quantiles tau, 0.5 and 0.95)."""
    edges = requests[0].forecast_or_bounds().edges
    mean = np.mean([request.forecast_or_bounds().survival for request in requests], axis=0)
    changed = []
    for request, length in zip(requests, lens, strict=True):
        forecast = request.forecast_or_bounds()
        if kind == "perfect":
            forecast = Forecast(np.array([0, length, length + 1]), np.array([1.0, 1.0, 0.0]))
        elif kind == "2x too high":
            forecast = Forecast(forecast.edges * 2, forecast.survival)
        elif kind == "2x too low":
            halves = np.maximum(forecast.edges // 2, np.arange(len(edges)))
            forecast = Forecast(halves, forecast.survival)
        elif kind == "same for all":
            forecast = Forecast(edges, mean)
        changed.append(_with_bounds(request, forecast, tau))
    return changed


def _with_bounds(request: Request, forecast: Forecast, tau: float) -> Request:
    cap = request.max_new_tokens
    lower, middle, upper = (max(1, min(cap, int(forecast.quantile(level)))) for level in (tau, 0.5, UPPER_LEVEL))
    return replace(
        request,
        forecast=forecast,
        output_len_lower_bound=lower,
        output_len_prediction=max(lower, middle),
        output_len_upper_bound=max(lower, upper),
    )
