"""Renewals between vLLM's scheduler and worker, without vLLM: who is due, what the policy gets, what is counted."""

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scheduler.forecast import Forecast
from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.integrations.vllm_metrics import Metrics
from scheduler.integrations.vllm_renewals import DUE, REPORT, ReportedRenewals, StatesReport
from scheduler.kv_cache import KvCache
from scheduler.policies import make_policy
from scheduler.policy import Status
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.worker import Worker

EVERY = 4


class Renewer:
    """Renews with a forecast that says nothing."""

    num_failed = 0

    def __init__(self) -> None:
        self.ended: list[int] = []

    def start(self, index: int) -> None:
        """Take note of nothing."""

    def end(self, index: int) -> None:
        """Take note."""
        self.ended.append(index)

    def renew(
        self, indices: Sequence[int], generated: Sequence[int], logits: Any, requests: Sequence[Request]
    ) -> Sequence[tuple[int, Renewal]]:
        """Fail where a logit says so."""
        if (logits < 0).any():
            raise KeyError("a fault")
        assert len(indices) == len(generated) == len(logits) == len(requests)
        forecast = Forecast(np.array([0, 100]), np.array([1.0, 0.0]))
        return [(index, Renewal(out + 1, forecast, out + 5)) for index, out in zip(indices, generated, strict=True)]


class Engine:
    """A policy, and as many tokens of each request as its pass number says."""

    def __init__(self, prefill_passes: int = 1) -> None:
        self.runner = PolicyRunner(make_policy("amin", Worker(KvCache(100, 16), resume=True), np.random.default_rng(0)))
        self.renewer, self.metrics = Renewer(), Metrics()
        self.renewals = ReportedRenewals(self.renewer, EVERY, self.metrics)
        self.renewals.attach(self.runner)
        self.prefill_passes, self.passes = prefill_passes, dict[str, int]()
        self.given: list[tuple[str, Renewal]] = []
        renew = self.runner.policy.renew

        def watched(index: int, renewal: Renewal) -> None:
            self.given.append((self.runner.request(index).request_id, renewal))
            renew(index, renewal)

        self.runner.policy.renew = watched  # type: ignore[method-assign]

    def add(self, *names: str) -> None:
        """Submit requests."""
        for name in names:
            self.runner.add(Request(name, 10, 50, output_len_lower_bound=5))

    def generated(self, name: str) -> int:
        """Tokens of a request that are out."""
        return max(0, self.passes.get(name, 0) - self.prefill_passes + 1)

    def step(self) -> dict[str, int]:
        """Run an iteration; return what was due."""
        self.runner.follow(self.generated)
        self.runner.decide()
        scheduled = list(self.runner.running_ids())
        requests = {}
        for name in scheduled:
            self.passes[name] = self.passes.get(name, 0) + 1
            requests[name] = SimpleNamespace(is_prefill_chunk=self.passes[name] < self.prefill_passes)
        output = SimpleNamespace(num_scheduled_tokens=dict.fromkeys(scheduled, 1))
        self.renewals.ask(output, requests)
        return getattr(output, DUE, {})

    def answer(self, due: dict[str, int], value: float = 1.0, **report: Any) -> None:
        """Report to the scheduler as the worker does."""
        states = tuple(self.generated(name) - 1 for name in due)
        logits = np.full((len(due), 3), value, np.float32)
        given = StatesReport(tuple(due.values()), states, logits, **({"seconds": 0.5} | report))
        self.renewals.take_in(SimpleNamespace(**{REPORT: given}))


@pytest.mark.parametrize("prefill_passes", [1, 3])
def test_each_is_due_after_its_prefill_and_all_every_so_many_iterations(prefill_passes: int) -> None:
    """The policy gets them at its next decision, counted from the token that the state gave."""
    engine = Engine(prefill_passes)
    engine.add("a", "b")
    asked: dict[str, int] = {}
    num_asked = 0
    for step in range(14):
        if step == 6:
            engine.add("late")
        engine.given.clear()
        out = {name: engine.generated(name) for name in engine.passes}
        due = engine.step()
        assert {(name, renewal.num_generated) for name, renewal in engine.given} == {(n, out[n]) for n in asked}
        known = {name: engine.generated(name) for name in engine.passes if engine.generated(name) > 0}
        is_round = engine.runner.running.clock % EVERY == 0
        assert set(due) == {name for name, count in known.items() if is_round or count == 1}
        assert all(engine.runner.index(name) == index for name, index in due.items())
        if due:
            engine.answer(due)
        asked, num_asked = due, num_asked + len(due)
    assert engine.metrics.renewals == num_asked - len(asked) > 7
    assert engine.metrics.renewal_seconds > 1


def test_what_has_ended_or_was_evicted_meanwhile_is_not_renewed() -> None:
    """An answer that never was is counted, a request that was cancelled is not."""
    engine = Engine()
    engine.add("a", "b", "c")
    due = engine.step()
    assert set(due) == {"a", "b", "c"}
    for name, status in (("a", Status.ANSWERED), ("b", Status.CANCELLED)):
        engine.renewals.end(engine.runner.index(name), is_answered=status is Status.ANSWERED)
        engine.runner.end(name, status, 1)
    engine.answer(due)
    engine.step()
    assert {name for name, _ in engine.given} == {"c"}
    assert engine.metrics.unrenewed == 1
    assert engine.renewer.ended == [due["a"], due["b"]]
    engine.renewals.end(due["c"], is_answered=True)
    assert engine.metrics.unrenewed == 1


@pytest.mark.parametrize("place", ["worker", "renewing", "asking"])
def test_after_a_failure_the_policy_goes_on_without_renewals(place: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once and counted once."""
    engine = Engine()
    engine.add("a", "b")
    due = engine.step()
    with caplog.at_level(logging.ERROR):
        if place == "asking":
            engine.renewals.ask(SimpleNamespace(), {})
        else:
            engine.answer(due, value=-1.0, failure="KeyError: x" if place == "worker" else "")
        for _ in range(10):
            again = engine.step()
            assert not again
            engine.answer({"a": 0})
    assert not engine.given
    assert engine.metrics.failures == 1
    assert len([record for record in caplog.records if "from now on forecasts are those" in record.message]) == 1
    engine.renewals.end(0, is_answered=True)
    assert len(list(engine.runner.running_ids())) == 2
