"""The workload of `amin simulate`: read or made up, then given arrivals and predictions by seed."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.settings.simulate import SourceSettings
from pipelines.simulate.resampling import seconds_per_iteration, volumes
from pipelines.simulate.sources import made_up
from pipelines.simulate.traces import read_trace
from pipelines.simulate.workload_file import read_bins
from scheduler.errors import InputError
from scheduler.kv_cache import KvCache
from scheduler.policies import POLICIES, Reads
from scheduler.request import Request
from scheduler.simulation.arrivals import arrival_times, scale_to_load, times_at_load
from scheduler.simulation.synthesis import synthesize
from scheduler.worker import Worker
from scheduler.workload import NO_CAP, Workload, workload_from_columns

logger = logging.getLogger(__name__)
Ints = np.ndarray[tuple[int], np.dtype[np.int64]]

DEFAULT_EDGES = np.unique(np.rint(np.geomspace(1, 32_768, 74)).astype(np.int64))
WITHOUT_ANYTHING = frozenset({"amin", "amin-eviction"})
"""Policies that read predictions and can do without: a lower bound is 1, and they admit like fcfs."""


def read_base(settings: SourceSettings, kv_cache: KvCache) -> Workload:
    """Return the requests as the file has them, or made up with seed 0.

    A request whose cap nobody states may use what the KV cache holds after its prompt: a policy never sees a cap that
    was made from true lengths.

    Raises:
        InputError: The file cannot be read, or the cache can never hold a request (without `skip_too_large`).
    """
    lengths, cap = made_up(settings.workload), settings.max_new_tokens
    if lengths is None:
        default = Path(f"{settings.workload}.bins.json")  # as amin predict and amin evaluate write it
        bins = default if settings.bins is None and default.is_file() else settings.bins
        edges = None if bins is None else read_bins(bins)
        workload, report = read_trace(Path(settings.workload), cap, edges, settings.time_unit)
        print(report.line())
    else:
        prompts, lens = lengths
        places = [f"r{i}" for i in range(len(lens))]
        workload = workload_from_columns(places, prompts, lens, np.zeros(len(lens)), cap)
    return _capped(fitting(workload, kv_cache, skip=settings.skip_too_large), kv_cache)


def fitting(workload: Workload, kv_cache: KvCache, *, skip: bool) -> Workload:
    """Return the requests that the cache can hold; InputError that counts and names the others, unless skipped."""
    kept: list[int] = []
    too_large: list[int] = []
    for i, (request, output_len) in enumerate(zip(workload.requests, workload.output_lens, strict=True)):
        fits = kv_cache.blocks(request.num_prompt_tokens + output_len) <= kv_cache.num_blocks
        (kept if fits else too_large).append(i)
    if not too_large:
        return workload
    names = ", ".join(workload.requests[i].request_id for i in too_large[:5])
    names += ", ..." if len(too_large) > 5 else ""
    held = kv_cache.kv_budget
    what = f"{len(too_large)} of {len(workload.requests)} requests take more than the {held} tokens of the KV"
    if not skip or not kept:
        raise InputError(f"{what} cache: {names}; leave them out with --skip-too-large, or give more memory")
    logger.warning("left out: %s cache: %s", what, names)
    return workload.select(kept)


def _capped(workload: Workload, kv_cache: KvCache) -> Workload:
    requests = [
        replace(request, max_new_tokens=max(1, kv_cache.kv_budget - request.num_prompt_tokens))
        if request.max_new_tokens == NO_CAP
        else request
        for request in workload.requests
    ]
    return replace(workload, requests=requests)


def states_caps(workload: Workload, kv_cache: KvCache) -> bool:
    """Return whether the workload or the user states every cap."""
    held = kv_cache.kv_budget
    return all(request.max_new_tokens < held - request.num_prompt_tokens for request in workload.requests)


def lacks(policy: str, workload: Workload, *, has_caps: bool) -> str | None:
    """Return what a policy cannot do without and these requests do not have, and how to give it; None for nothing."""
    if has_caps:
        return None
    if policy == "fcfs-reserve":
        return "caps of the answers: give --max-new-tokens"
    if policy == "amax" and any(request.output_len_upper_bound is None for request in workload.requests):
        return "upper bounds or caps of the answers: give --predictions or --max-new-tokens"
    needs = POLICIES[policy].reads is Reads.PREDICTION and policy not in WITHOUT_ANYTHING
    return "predictions: give --predictions" if needs and any(map(_is_bare, workload.requests)) else None


def _is_bare(request: Request) -> bool:
    return request.forecast is None and request.output_len_prediction is None and request.output_len_upper_bound is None


def served_tokens(workload: Workload, worker: Worker, replicas: int = 1) -> int:
    """Return the KV tokens that are in use when what binds is full: the cache, or the slots, times the replicas.

    A slot holds a request for o iterations and volume(request) token-iterations, so it holds sum(volume) / sum(o).
    """
    held = worker.kv_cache.kv_budget
    if worker.max_running is not None:
        held = min(held, int(worker.max_running * volumes(workload).sum() / sum(workload.output_lens)))
    return max(1, held) * replicas


def iteration_time(worker: Worker, base: Workload, load: float | None) -> float:
    """Return what an iteration takes of the worker's time, for arrivals that are to make a load; without one 1."""
    return 1.0 if load is None else seconds_per_iteration(worker, base)


def arriving_at(
    base: Workload, arrivals: str | None, load: float | None, tokens: int, rng: np.random.Generator
) -> Workload:
    """Return the workload with other arrival times, in iterations where there is a load.

    Args:
        base: The requests, with their own arrival times.
        arrivals: As `--arrivals`; None keeps their own, stretched to the load if there is one; at a load requests that
            all arrive at once become Poisson.
        load: Share of what can be served.
        tokens: What is in use when what binds is full (`served_tokens`).
        rng: For random arrivals.
    """
    times = np.array([request.arrival_time for request in base.requests])
    if load is not None and arrivals is None and np.ptp(times) == 0:
        arrivals = "poisson"
    if load is not None and arrivals is None:
        times = scale_to_load(times, load, volumes(base), tokens)
    elif load is not None and arrivals is not None:
        times = times_at_load(arrivals, load, volumes(base), tokens, rng)
    elif arrivals is not None:
        times = arrival_times(arrivals, len(times), rng)
    return with_times(base, times.tolist())


def with_times(base: Workload, times: Sequence[float]) -> Workload:
    """Return the workload with these arrival times."""
    requests = [replace(request, arrival_time=time) for request, time in zip(base.requests, times, strict=True)]
    return replace(base, requests=requests)


def with_predictions(workload: Workload, predictions: str | None, rng: np.random.Generator) -> Workload:
    """Return the workload with predictions made from its true lengths; None keeps its own."""
    if predictions is None:
        return workload
    edges = np.concatenate([[0], DEFAULT_EDGES])
    return Workload(synthesize(workload.requests, workload.output_lens, predictions, rng, edges), workload.output_lens)
