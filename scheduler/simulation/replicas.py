"""Several workers behind a router that sends each request to one of them at its arrival."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from scheduler.arrival_source import ArrivalSource
from scheduler.errors import InputError
from scheduler.look_ahead import KnownStates, LookAhead
from scheduler.loop import Loop, RunResult, Timeline
from scheduler.policies import make_policy
from scheduler.renewals import PlannedRenewals
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.worker import Worker
from scheduler.workload import Workload

OnFinish = Callable[[Sequence[int]], None]


class _Routed(ArrivalSource):
    """What the router has sent to one worker; the next arrival at the router is as far as the worker may run."""

    def __init__(self) -> None:
        """Start with nothing sent."""
        self._sent: list[tuple[int, Request]] = []
        self._horizon = self.next_time = math.inf

    def send(self, index: int, request: Request) -> None:
        """Hand a request over, at its arrival."""
        self._sent.append((index, request))
        self.next_time = min(self.next_time, request.arrival_time)

    def run_to(self, time: float) -> None:
        """Say when the next request arrives at the router."""
        self._horizon = time
        self.next_time = min((request.arrival_time for _, request in self._sent), default=time)

    def take(self, now: float) -> Sequence[tuple[int, Request]]:
        """Return what was sent."""
        taken, self._sent, self.next_time = self._sent, [], self._horizon
        return taken


class Router:
    """Chooses a worker by what it has been sent and has not ended; it knows predictions, not lengths.

    "round-robin": each in turn. "least-requests": the fewest requests. "power-of-two": the fewer requests of two drawn
    at random (Mitzenmacher 2001). "least-predicted-work": the fewest predicted output tokens. Ties go to the first.
    """

    def __init__(self, routing: str, num_workers: int, rng: np.random.Generator) -> None:
        """Start with idle workers; InputError for a routing that is not one of those above."""
        if routing not in ROUTINGS:
            raise InputError(f"routing is {routing!r}; choose from {', '.join(ROUTINGS)}")
        self._choose = getattr(self, ROUTINGS[routing])
        self._rng, self._turn = rng, 0
        self._num_requests = [0] * num_workers
        self._predicted = [0] * num_workers
        self._open: dict[int, tuple[int, int]] = {}

    def send(self, index: int, request: Request) -> int:
        """Return the worker that a request goes to."""
        worker: int = self._choose()
        tokens = request.predicted_len()
        self._open[index] = worker, tokens
        self._num_requests[worker] += 1
        self._predicted[worker] += tokens
        return worker

    def finish(self, indices: Sequence[int]) -> None:
        """Note requests that have ended."""
        for index in indices:
            worker, tokens = self._open.pop(index)
            self._num_requests[worker] -= 1
            self._predicted[worker] -= tokens

    def _in_turn(self) -> int:
        self._turn += 1
        return (self._turn - 1) % len(self._num_requests)

    def _fewest_requests(self) -> int:
        return self._num_requests.index(min(self._num_requests))

    def _fewer_of_two(self) -> int:
        drawn = self._rng.choice(len(self._num_requests), 2, replace=False).tolist()
        return int(min(drawn, key=self._num_requests.__getitem__))

    def _least_work(self) -> int:
        return self._predicted.index(min(self._predicted))


ROUTINGS = {
    "round-robin": "_in_turn",
    "least-requests": "_fewest_requests",
    "power-of-two": "_fewer_of_two",
    "least-predicted-work": "_least_work",
}


def simulate_replicas(
    policy: str,
    workload: Workload,
    worker: Worker,
    seed: int,
    *,
    replicas: int = 1,
    routing: str = "round-robin",
    on_finish: OnFinish | None = None,
    look_ahead: int | None = None,
    **options: Any,
) -> RunResult:
    """Return what happens to a workload on several workers; on one, just as `scheduler.simulation.simulate`.

    The timeline is that of all workers together, in order of its ends: figures weighted by time are means of a worker.

    Args:
        policy: A key of `scheduler.policies.POLICIES`; each worker has one of its own.
        workload: As for `simulate`.
        worker: What each of them is.
        seed: Of what policies and router leave to chance.
        replicas: How many, at least 1.
        routing: See `Router`.
        on_finish: Told the indices of the requests that end, as they do.
        look_ahead: As for `simulate`, on each worker.
        options: Further arguments of the policy.

    Raises:
        InputError: The routing is unknown, or a request can never fit.
    """
    if replicas == 1:
        return simulate(policy, workload, worker, seed, on_finish, look_ahead, **options)
    requests = workload.requests
    router = Router(routing, replicas, np.random.default_rng((seed, replicas)))
    sources = [_Routed() for _ in range(replicas)]
    loops = [
        _loop(policy, workload, worker, (seed, k), source, look_ahead, options) for k, source in enumerate(sources)
    ]
    tell = partial(_tell, router, on_finish)
    sent_to = np.zeros(len(requests), dtype=np.int64)
    for index in sorted(range(len(requests)), key=lambda i: (requests[i].arrival_time, i)):
        time = requests[index].arrival_time
        for loop, source in zip(loops, sources, strict=True):
            source.run_to(time)
            loop.advance(time, tell)
        sent_to[index] = router.send(index, requests[index])
        sources[sent_to[index]].send(index, requests[index])
    results = []
    for loop, source in zip(loops, sources, strict=True):
        source.run_to(math.inf)
        results.append(loop.run(tell))
    return _together(results, sent_to)


def _loop(
    policy: str,
    workload: Workload,
    worker: Worker,
    seed: tuple[int, int],
    source: ArrivalSource,
    look_ahead: int | None,
    options: Any,
) -> Loop:
    """Return the loop of one worker, with a policy of its own."""
    lens = workload.output_lens
    made = make_policy(policy, worker, np.random.default_rng(seed), output_lens=lens, **options)
    renewals = PlannedRenewals(workload.renewals) if workload.renewals else None
    ahead = None if look_ahead is None else LookAhead(look_ahead, KnownStates(workload.renewals))
    executor = SimulatedExecutor(worker, lens, ahead)
    return Loop(made, executor, workload.requests, arrivals=source, renewals=renewals, look_ahead=ahead)


def _tell(router: Router, on_finish: OnFinish | None, finished: Sequence[int]) -> None:
    router.finish(finished)
    if on_finish is not None:
        on_finish(finished)


def _together(results: Sequence[RunResult], sent_to: np.ndarray[tuple[int], np.dtype[np.int64]]) -> RunResult:
    """Return one result: each request as its worker has it."""
    order = np.argsort(np.concatenate([result.timeline.end for result in results]), kind="stable")
    timeline = {
        field.name: np.concatenate([getattr(result.timeline, field.name) for result in results])[order]
        for field in fields(Timeline)
    }
    rows = np.arange(len(sent_to))
    columns = {
        field.name: np.stack([getattr(result, field.name) for result in results])[sent_to, rows]
        for field in fields(RunResult)
        if field.name != "timeline"
    }
    return RunResult(**columns, timeline=Timeline(**timeline))
