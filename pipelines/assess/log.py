"""A user's log as the requests of one replica, and how well its prompts tell its lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.simulate.resampling import seconds_per_iteration, volumes
from pipelines.simulate.traces import read_trace
from pipelines.simulate.workloads import served_tokens
from predictor.errors import InputError as PredictorInputError
from predictor.records.records import draws_of, prompt_of
from predictor.records.rows import read_rows
from scheduler.errors import InputError
from scheduler.simulation.arrivals import poisson_arrivals
from scheduler.worker import Worker
from scheduler.workload import Workload

Floats = NDArray[np.float64]
FULL = 0.95
"""Load up to which a replica is filled where nobody says how many there are."""
MOST_PROMPTS = 20_000
LEAST_PROMPTS = 200
"""Prompts, in distinct texts, below which a quick fit says nothing."""


@dataclass(frozen=True, slots=True)
class Log:
    """What a log offers.

    Attributes:
        rows: Requests in the log.
        too_large: Of them, those that a replica can never hold.
        has_times: Whether it says when they arrived.
        span: Seconds from its first arrival to its last; 0 without times.
        workload: The busiest stretch of it, from time 0, on the whole deployment; all at 0 without times.
    """

    rows: int
    too_large: int
    has_times: bool
    span: float
    workload: Workload


def read_log(path: Path, worker: Worker, most: int, time_unit: str | None) -> tuple[Log, str]:
    """Return the log, and the line that says how it was read.

    Raises:
        InputError: The log cannot be read, or a replica can hold none of its requests.
    """
    workload, report = read_trace(path, None, None, time_unit)
    budget, order = worker.kv_cache.kv_budget, sorted(range(len(workload.requests)), key=lambda i: _time(workload, i))
    sizes = [workload.requests[i].num_prompt_tokens + workload.output_lens[i] for i in order]
    fitting = [i for i, size in zip(order, sizes, strict=True) if size < budget]
    if not fitting:
        raise InputError(f"{path}: every request takes more than the {budget} tokens of the KV cache")
    times = np.array([_time(workload, i) for i in fitting])
    start = _busiest(times, most)
    kept = fitting[start : start + most]
    requests = [
        replace(
            workload.requests[i],
            arrival_time=_time(workload, i) - float(times[start]),
            max_new_tokens=min(workload.requests[i].max_new_tokens, budget - workload.requests[i].num_prompt_tokens),
        )
        for i in kept
    ]
    busiest = Workload(requests, [workload.output_lens[i] for i in kept])
    span = float(np.ptp(times))
    log = Log(len(order), len(order) - len(fitting), span > 0, span, busiest)
    return log, report.line()


def _time(workload: Workload, index: int) -> float:
    return workload.requests[index].arrival_time


def _busiest(times: Floats, most: int) -> int:
    """Return where the `most` consecutive arrivals that take the least time begin."""
    if len(times) <= most:
        return 0
    return int(np.argmin(times[most - 1 :] - times[: len(times) - most + 1]))


@dataclass(frozen=True, slots=True)
class Demand:
    """What the log asks of a deployment.

    Attributes:
        capacity: Requests a second that a replica can serve, by KV cache or slots, whichever binds.
        rate: Requests a second of the stretch; 0 without times.
    """

    capacity: float
    rate: float

    def load(self, replicas: int) -> float:
        """Return the rate as a share of what can be served."""
        return self.rate / (self.capacity * replicas)

    def replicas_needed(self) -> int:
        """Return the fewest replicas that are not overfull."""
        return max(1, int(np.ceil(self.rate / (self.capacity * FULL))))


def demand(workload: Workload, worker: Worker) -> Demand:
    """Return what requests ask of a worker."""
    sample = Workload(workload.requests[:2000], workload.output_lens[:2000])
    seconds = seconds_per_iteration(worker, sample)
    capacity = served_tokens(workload, worker) / float(volumes(workload).mean()) / seconds
    span = max((request.arrival_time for request in workload.requests), default=0.0)
    return Demand(capacity, (len(workload.requests) - 1) / span if span > 0 else 0.0)


def one_replica(workload: Workload, replicas: int) -> Workload:
    """Return what one of `replicas` gets when each gets a request in turn."""
    return Workload(workload.requests[::replicas], workload.output_lens[::replicas])


def poisson_at(workload: Workload, rate: float, seed: int) -> Workload:
    """Return the workload with Poisson arrivals, `rate` requests a second."""
    times = poisson_arrivals(len(workload.requests), rate, np.random.default_rng((seed, 17)))
    requests = [replace(r, arrival_time=float(t)) for r, t in zip(workload.requests, times, strict=True)]
    return Workload(requests, workload.output_lens)


def prompts_and_lengths(path: Path) -> tuple[list[str], list[int]] | None:
    """Return prompts and lengths of up to `MOST_PROMPTS` rows spread over a log; None where it has no prompts."""
    try:
        rows = read_rows(path, one_model=False)
        kept = rows[:: -(-len(rows) // MOST_PROMPTS)]
        prompts = [prompt_of(row).prompt for row in kept]
        lens = [int(draws_of(row, None)[0][0]) for row in kept]
    except PredictorInputError:
        return None
    return (prompts, lens) if len(set(prompts)) >= LEAST_PROMPTS else None


def quick_skill(prompts: Sequence[str], output_lens: Sequence[int], seed: int = 0) -> float:
    """Return the share of the variance of log length, of held-out prompts, that a ridge on their words explains.

    A fifth of the distinct prompts is held out; nothing is tuned. It is a floor: `amin train` reads more than words.
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import Ridge

    lens = np.log(np.maximum(1, np.asarray(output_lens, dtype=np.float64)))
    names, group = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    held_out = np.random.default_rng(seed).random(len(names))[group] < 0.2
    words = HashingVectorizer(n_features=2**16, ngram_range=(1, 2), norm="l2").transform(prompts)
    fitted = Ridge(alpha=3.0, solver="lsqr").fit(words[~held_out], lens[~held_out])
    error = lens[held_out] - fitted.predict(words[held_out])
    return float(np.clip(1 - (error**2).sum() / ((lens[held_out] - lens[~held_out].mean()) ** 2).sum(), 0, 1))
