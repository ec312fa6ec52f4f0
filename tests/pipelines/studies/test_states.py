"""The study of a probe in the scheduler, on made-up renewals."""

import numpy as np
import pytest

from pipelines.studies import states
from scheduler.forecast import Forecast
from scheduler.kv_cache import KvCache
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.worker import Worker
from scheduler.workload import Workload


def exactly(length: int, out: int) -> Renewal:
    """A renewal that knows the length."""
    return Renewal(out, Forecast(np.array([0, length - 1, length]), np.array([1.0, 1.0, 0.0])), length)


def test_what_is_known_earlier_is_worth_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths known of prompts that are read ahead beat those known while running, and these the prompt alone."""
    monkeypatch.setattr(states, "COUNT", 300)
    rng = np.random.default_rng(0)
    lens = np.ceil(rng.lognormal(3.5, 0.9, 200)).astype(int).tolist()
    first = Forecast(np.array([0, 20, 60, 200, 800]), np.array([1.0, 0.7, 0.4, 0.1, 0.0]))
    requests = [Request(str(i), 5, 800, forecast=first) for i in range(len(lens))]
    renewed = {i: [exactly(n, 1)] for i, n in enumerate(lens) if n > 1}
    ahead = {i: [exactly(n, 0), *renewed.get(i, ())] for i, n in enumerate(lens)}
    workloads = {
        states.PROMPT: Workload(requests, lens),
        "renewed": Workload(requests, lens, renewed),
        states.AHEAD: Workload(requests, lens, ahead),
    }
    ours = [states.Job("fcfs", states.PROMPT), *(states.Job(states.OURS, name) for name in workloads)]
    ours[-1] = states.Job(states.OURS, states.AHEAD, 100)
    cell = states.run_cell(workloads, ours, Worker(KvCache(1000)), 3)
    fcfs, prompt, running, read = (entry["mean"]["gain_over_fcfs"] for entry in cell.values())
    assert fcfs == 1.0
    assert read > 1.3 * running
    assert running > prompt
    assert "| amin-survival, read ahead (100 tokens) |" in states.table(cell)


def test_longer_prompts_change_nothing_else() -> None:
    """Names, lengths and renewals stay."""
    workload = Workload([Request("a", 5, 10)], [3], {0: [exactly(3, 1)]})
    longer = states.with_longer_prompts(workload)
    assert longer.requests[0].num_prompt_tokens == 5 * states.LONGER
    assert (longer.output_lens, longer.renewals) == (workload.output_lens, workload.renewals)
