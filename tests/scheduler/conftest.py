"""A runner, a recorder, random workloads and the plainest future peak, as fixtures."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from scheduler.batch import RunningBatch
from scheduler.cost_model import CostModel
from scheduler.executor import Progress
from scheduler.forecast import Forecast
from scheduler.kv_cache import KvCache
from scheduler.look_ahead import KnownStates, LookAhead
from scheduler.loop import Loop, RunResult
from scheduler.policies import make_policy
from scheduler.policy import Decision, Policy, Status
from scheduler.renewals import PlannedRenewals, Renewal
from scheduler.request import Request
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.waiting.queue import WaitingQueue
from scheduler.worker import Worker


class Case(NamedTuple):
    """A workload, its hidden lengths and the worker that it runs on."""

    requests: list[Request]
    output_lens: list[int]
    worker: Worker


@dataclass
class Step:
    """What a policy saw after `clock` iterations and what it decided, by request index."""

    clock: int
    running: list[tuple[int, int, int]]
    preempt: list[int]
    admit: list[int]


@dataclass
class Recorder(Policy):
    """Passes everything on to a policy and writes it down; gives up after `max_steps` decisions."""

    policy: Policy
    max_steps: int = 100_000
    steps: list[Step] = field(default_factory=list)
    after_schedule: Callable[[RunningBatch, Decision], None] | None = None

    def add(self, index: int, request: Request) -> None:
        """Pass it on."""
        self.policy.add(index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Pass it on and keep what was seen and decided."""
        seen = [(index, running.num_tokens(index), running.num_generated(index)) for index in running]
        decision = self.policy.schedule(running)
        self.steps.append(Step(running.clock, seen, list(decision.preempt), list(decision.admit)))
        if self.after_schedule is not None:
            self.after_schedule(running, decision)
        assert len(self.steps) <= self.max_steps, "the policy makes no progress"
        return decision

    def renew(self, index: int, renewal: Renewal) -> None:
        """Pass it on."""
        self.policy.renew(index, renewal)

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Pass it on."""
        self.policy.end(index, status, num_generated, is_running=is_running)

    @property
    def worker(self) -> Worker:
        """That of the policy."""
        return self.policy.worker

    @property
    def waiting(self) -> WaitingQueue:
        """That of the policy."""
        return self.policy.waiting


class GuardedExecutor(SimulatedExecutor):
    """Fails instead of running for ever; one after the other, requests would take the sum of their lengths."""

    def __init__(self, case: Case, look_ahead: LookAhead | None = None) -> None:
        super().__init__(case.worker, case.output_lens, look_ahead)
        latest = max((request.arrival_time for request in case.requests), default=0)
        self._deadline = latest + 100 * sum(case.output_lens)

    def wait_until(self, time: float) -> None:
        """Wait, and see that it is `time` then."""
        super().wait_until(time)
        assert self.now >= time, "the clock stands still"

    def iterate(self, running: RunningBatch, most: float, next_arrival: float) -> Progress:
        """Iterate before the deadline."""
        assert self.now <= self._deadline, "the policy makes no progress"
        return super().iterate(running, most, next_arrival)


@pytest.fixture(scope="session")
def recorder() -> type[Recorder]:
    """The class that records the decisions of a policy."""
    return Recorder


@pytest.fixture(scope="session")
def run_policy() -> Callable[..., RunResult]:
    """A function that runs a case under a policy, given by name or built."""

    def run(
        policy: str | Policy,
        case: Case,
        *,
        resume: bool = False,
        seed: int = 0,
        renewals: Mapping[int, Sequence[Renewal]] | None = None,
        look_ahead: int | None = None,
        **options: Any,
    ) -> RunResult:
        case = case._replace(worker=replace(case.worker, resume=resume))
        if isinstance(policy, str):
            rng = np.random.default_rng(seed)
            policy = make_policy(policy, case.worker, rng, output_lens=case.output_lens, **options)
        source = PlannedRenewals(renewals) if renewals else None
        ahead = None if look_ahead is None else LookAhead(look_ahead, KnownStates(renewals or {}))
        executor = GuardedExecutor(case, ahead)
        return Loop(policy, executor, case.requests, renewals=source, look_ahead=ahead).run()

    return run


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """A function that builds a case of requests that all arrive at 0, bounds by request."""

    def make(
        output_lens: Sequence[int],
        kv_budget: int,
        *,
        prompt: int | Sequence[int] = 0,
        lower: int | Sequence[int] = 1,
        upper: int | Sequence[int] | None = None,
    ) -> Case:
        size = len(output_lens)
        prompts, lowers, uppers = ([v] * size if v is None or isinstance(v, int) else v for v in (prompt, lower, upper))
        cap = max([*output_lens, *(u or 1 for u in uppers)])
        requests = [
            Request(
                f"r{i}",
                prompts[i],
                cap,
                output_len_lower_bound=lowers[i],
                output_len_upper_bound=uppers[i],
                forecast=Forecast(np.array([0, lowers[i], max(lowers[i] + 1, cap)]), np.array([1.0, 0.9, 0.0])),
            )
            for i in range(size)
        ]
        return Case(requests, list(output_lens), Worker(KvCache.from_budget(kv_budget)))

    return make


@pytest.fixture(scope="session")
def cases() -> Callable[..., st.SearchStrategy[Case]]:
    """A function that returns the strategy of small random cases.

    `bounds` is "true" (lower <= o <= upper), "any" (both may be wrong) or "exact" (both are o). `fits` keeps
    prompt + every bound within the cache; without it upper bounds and max_new_tokens may exceed it. `engine` adds
    limits, a cost model and chunked prefill.
    """

    @st.composite
    def draw_case(
        draw: st.DrawFn,
        bounds: str = "any",
        fits: bool = True,
        at_once: bool | None = None,
        max_size: int = 9,
        engine: bool = False,
    ) -> Case:
        size = draw(st.integers(1, max_size))
        block_size = draw(st.sampled_from([1, 1, 2, 3, 5, 16]))
        at_once = draw(st.booleans()) if at_once is None else at_once
        rows, output_lens, most = [], [], 0
        for _ in range(size):
            prompt, output_len = draw(st.integers(0, 8)), draw(st.integers(1, 18))
            lower = draw(st.integers(1, output_len if bounds == "true" else 18))
            upper = draw(st.integers(max(lower, output_len if bounds == "true" else 1), 24) | st.none())
            if bounds == "exact":
                lower = upper = output_len
            cap = max(output_len, lower, upper or 1) + draw(st.integers(0, 4))
            arrival = 0.0 if at_once else draw(st.integers(0, 60)) / draw(st.sampled_from([1, 2]))
            prediction = draw(st.integers(1, 24) | st.none())
            rows.append((prompt, cap, arrival, lower, upper, prediction, draw(forecasts)))
            output_lens.append(output_len)
            most = max(most, prompt + (cap if fits else max(output_len, lower)))
        kv_budget = -(-most // block_size) * block_size + draw(st.integers(0, 60))
        requests = [Request(f"r{index}", *row) for index, row in enumerate(rows)]
        settings = draw(engine_settings) if engine else {}
        return Case(requests, output_lens, Worker(KvCache.from_budget(kv_budget, block_size), **settings))

    return draw_case


EDGES = np.array([0, 1, 2, 4, 8, 16])
forecasts = st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=5, max_size=5).map(
    lambda values: Forecast(EDGES, np.array([1.0, *sorted(values, reverse=True)]))
)
seconds = st.sampled_from([0.0, 0.001, 0.013, 1 / 3])
engine_settings = st.fixed_dictionaries(
    {
        "max_running": st.integers(1, 6) | st.none(),
        "watermark_blocks": st.sampled_from([0, 0, 1, 7]),
        "cost_model": st.builds(CostModel, st.sampled_from([0.25, 1.0, 3.7]), seconds, seconds, seconds, seconds)
        | st.none(),
        "max_batch_tokens": st.integers(1, 12) | st.none(),
    }
)


@pytest.fixture(scope="session")
def slow_peak() -> Callable[[Sequence[tuple[int, int]], int], int]:
    """A function: the most blocks that (held, remaining) pairs use, one iteration after the other."""

    def peak(items: Sequence[tuple[int, int]], block_size: int) -> int:
        most, time = 0, 1
        while any(remaining >= time for _, remaining in items):
            running = [held for held, remaining in items if remaining >= time]
            most = max(most, sum((held + time + block_size - 1) // block_size for held in running))
            time += 1
        return most

    return peak


@pytest.fixture(scope="session")
def slow_loop(slow_peak: Callable[..., int]) -> Callable[..., Any]:
    """A function that runs a case under a policy in the plain loop of `slow_loop.py`."""
    spec = importlib.util.spec_from_file_location("slow_loop", Path(__file__).with_name("slow_loop.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda name, case, **options: module.slow_loop(name, case, slow_peak, **options)
