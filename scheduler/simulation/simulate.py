"""One simulated run of one policy."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from scheduler.arrival_source import KnownArrivals
from scheduler.look_ahead import KnownStates, LookAhead
from scheduler.loop import Loop, RunResult
from scheduler.policies import make_policy
from scheduler.policy import Policy
from scheduler.renewals import PlannedRenewals
from scheduler.simulation.simulator import SimulatedExecutor
from scheduler.worker import Worker
from scheduler.workload import Workload

MakePolicy = Callable[[Worker, np.random.Generator], Policy]


def simulate(
    policy: str | MakePolicy,
    workload: Workload,
    worker: Worker,
    seed: int,
    on_finish: Callable[[Sequence[int]], None] | None = None,
    look_ahead: int | None = None,
    handed_over: Sequence[float] | None = None,
    **options: Any,
) -> RunResult:
    """Return what happens to a workload under a policy; times in iterations, or seconds with a cost model.

    Args:
        policy: A key of `scheduler.policies.POLICIES`, or what makes a policy.
        workload: Requests and their true lengths, which go to the executor and to policies that read them alone.
        worker: What it runs on.
        seed: Of what the policy leaves to chance.
        on_finish: Told the indices of the requests that end, as they do.
        look_ahead: Prompt tokens of waiting requests that an iteration reads; what they tell is the workload's renewal
            after 0 tokens.
        handed_over: When the policy learns of each request, as with predictions that take time; by default at arrival.
        options: Further arguments of a policy that is named.
    """
    rng = np.random.default_rng(seed)
    if isinstance(policy, str):
        made = make_policy(policy, worker, rng, output_lens=workload.output_lens, **options)
    else:
        made = policy(worker, rng)
    ahead = None if look_ahead is None else LookAhead(look_ahead, KnownStates(workload.renewals))
    executor = SimulatedExecutor(worker, workload.output_lens, ahead)
    renewals = PlannedRenewals(workload.renewals) if workload.renewals else None
    arrivals = KnownArrivals(workload.requests, handed_over)
    loop = Loop(made, executor, workload.requests, arrivals=arrivals, renewals=renewals, look_ahead=ahead)
    return loop.run(on_finish)
