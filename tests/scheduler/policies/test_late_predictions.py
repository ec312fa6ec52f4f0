"""Requests that arrive together, whose predictions come one after the other."""

import numpy as np
import pytest

from scheduler.arrival_source import KnownArrivals
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop, RunResult
from scheduler.policies import amin_survival, make_policy
from scheduler.policies.amin_survival import RECENT
from scheduler.policy import Policy
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.simulation.synthesis import lmsys_shaped, synthesize
from scheduler.worker import Worker
from scheduler.workload import Workload, workload_from_columns

LONG, SHORT = 60, 6
WORKER = Worker(KvCache(160, 1))


def burst(
    num_short: int = 40, *, arrival: float = 0.0, short_priority: int = 0, num_long: int = 2
) -> tuple[list[Request], list[int]]:
    """Two long answers that fill the cache, and short ones that arrived as early, or at `arrival`."""
    lens = [LONG] * num_long + [SHORT] * num_short
    requests = [
        Request(
            str(index),
            2,
            64,
            arrival_time=0.0 if length == LONG else arrival,
            output_len_prediction=length,
            output_len_lower_bound=length // 2,
            priority=0 if length == LONG else short_priority,
        )
        for index, length in enumerate(lens)
    ]
    return requests, lens


def run(recorder: type, name: str, requests: list[Request], lens: list[int], late: float) -> tuple[RunResult, list]:
    """The outcome where the short ones are predicted `late`, and the decisions."""
    policy: Policy = make_policy(name, WORKER, np.random.default_rng(0))
    recorded = recorder(policy)
    times = [
        0.0 if length == LONG else max(late, request.arrival_time)
        for request, length in zip(requests, lens, strict=True)
    ]
    arrivals = KnownArrivals(requests, times)
    result = Loop(recorded, SimulatedExecutor(WORKER, lens), requests, arrivals=arrivals).run()
    return result, recorded.steps


@pytest.mark.parametrize("late", [1.0, 5.0, float(RECENT)])
def test_an_early_choice_is_undone_for_those_that_had_arrived(recorder: type, late: float) -> None:
    """One long answer makes way for the short ones and comes back; the other keeps the engine busy."""
    requests, lens = burst()
    result, steps = run(recorder, "amin-survival", requests, lens, late)
    evicting = next(step for step in steps if step.preempt)
    assert (evicting.clock, evicting.preempt) == (late, [1])
    assert evicting.admit
    assert 1 not in evicting.admit
    assert result.output_len.tolist() == lens


@pytest.mark.parametrize(
    ("change", "late"),
    [
        ({"arrival": 3.0}, 3.0),
        ({"short_priority": 1}, 3.0),
        ({"num_short": 1, "num_long": 1}, 3.0),
        ({}, RECENT + 1.0),
    ],
    ids=["arrived later", "lower priority", "fits next to it", "not cheap any more"],
)
def test_a_choice_that_was_right_or_is_dear_stays(recorder: type, change: dict[str, float], late: float) -> None:
    """Nobody is evicted before the cache runs full."""
    requests, lens = burst(**change)  # type: ignore[arg-type]
    _, steps = run(recorder, "amin-survival", requests, lens, late)
    assert not [step for step in steps if step.preempt and step.clock <= late]


def test_the_longest_first_undoes_the_other_way(recorder: type) -> None:
    """Short answers that were let in make way for long ones, never the other way round."""
    requests, lens = burst()
    _, steps = run(recorder, "longest-first", requests, lens, 2.0)
    assert not [step for step in steps if step.preempt and step.clock <= 2]


def mean_latency(seed: int) -> float:
    """Of a burst of 200 requests, of which 16 are predicted every three iterations."""
    rng = np.random.default_rng(seed)
    prompts, outputs = lmsys_shaped(200, rng)
    plain = workload_from_columns([str(i) for i in range(200)], prompts, outputs, np.zeros(200))
    edges = np.unique(np.geomspace(1, 1025, 60).astype(np.int64))
    workload = Workload(synthesize(plain.requests, plain.output_lens, "noise:0.4", rng, edges), plain.output_lens)
    times = (np.arange(200) // 16 * 3.0).tolist()
    worker = Worker(KvCache(400, 16), resume=True)
    return float(simulate("amin-survival", workload, worker, seed, handed_over=times).finish_time.mean())


def test_a_burst_is_served_faster_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the mean of eight bursts, against a policy to which nothing is a moment ago."""
    undone = [mean_latency(seed) for seed in range(8)]
    monkeypatch.setattr(amin_survival, "RECENT", -1)
    kept = [mean_latency(seed) for seed in range(8)]
    assert np.mean(undone) < np.mean(kept)
