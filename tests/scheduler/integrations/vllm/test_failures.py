"""The plug-in never takes the engine down, is worse than vLLM's own, or says nothing of what it does."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")

from prometheus_client import REGISTRY
from vllm.utils.import_utils import resolve_obj_by_qualname

from pipelines.vllm_scheduler import PredictingScheduler
from scheduler.errors import InputError
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.integrations.vllm import PREDICTING, AminScheduler
from scheduler.integrations.vllm_settings import PREDICTION_KEYS
from scheduler.policies import POLICIES, Reads, policies_that_read
from scheduler.policies.amin_survival import AminSurvival
from scheduler.policy import Status
from scheduler.request import Request

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours


class Oracle:
    """Predicts what it is told to."""

    def __init__(self, bounds: Mapping[str, int]) -> None:
        self.background = BackgroundPredictions(self.predict, self.marginal, 30.0)
        self.bounds, self.learnt = bounds, dict[str, tuple[Status, int]]()

    def predict(self, requests: Sequence[Request], prompts: Any) -> Sequence[Request]:
        """Return the requests with what it was told."""
        return [replace(request, output_len_lower_bound=self.bounds[request.request_id]) for request in requests]

    def marginal(self, request: Request) -> Request:
        """Return a request with a bound of 2."""
        return replace(request, output_len_lower_bound=2)

    def learn(self, request_id: str, status: Status, num_generated: int) -> None:
        """Remember the end."""
        self.learnt[request_id] = status, num_generated


@pytest.fixture
def predicting() -> Callable[[Mapping[str, int]], tuple[type[AminScheduler], Oracle]]:
    """A function that returns the plug-in with predictions, and what predicts."""

    def make(bounds: Mapping[str, int]) -> tuple[type[AminScheduler], Oracle]:
        oracle = Oracle(bounds)
        return type("Predicting", (AminScheduler,), {"make_predictions": lambda self, settings: oracle}), oracle

    return make


def test_with_nothing_to_go_by_it_is_vllms_own(make_engine: Callable[..., Any], vllms_own: Any) -> None:
    """No bounds and no predictor: every iteration is vLLM's."""
    engines = [make_engine(12), make_engine(12, kind=vllms_own)]
    for engine in engines:
        for i in range(40):
            engine.add(f"r{i}", 1 + i, 90 - 2 * i)
        engine.run(check=False)
    ours, own = engines
    assert ours.ends == own.ends
    assert ours.scheduler.metrics.decisions == 0
    assert ours.scheduler.metrics.left_to_vllm == ours.num_steps


@pytest.mark.parametrize("depth", [1, 2])
def test_the_policy_takes_charge_while_there_are_bounds(make_engine: Callable[..., Any], depth: int) -> None:
    """In the midst of requests that run: they stay vLLM's, all tokens come out, and afterwards vLLM decides again."""
    engine = make_engine(14, depth)
    for wave in range(3):
        for i in range(20):
            engine.add(f"plain{wave}-{i}", 10 + i, 60)
        for _ in range(30):
            engine.step()
        for i in range(10):
            engine.add(f"bounded{wave}-{i}", 10 + i, 50, output_len_lower_bound=40)
        engine.step()
        assert engine.scheduler.governor.is_in_charge
        engine.run(check=False)
    engine.add("last", 10, 10)
    engine.run(check=False)
    assert not engine.scheduler.governor.is_in_charge
    engine.check_tokens(engine.requests)


@pytest.mark.parametrize("place", ["add", "schedule", "end"])
def test_a_policy_that_fails_leaves_everything_to_vllm(
    make_engine: Callable[..., Any], caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """At an arrival, a decision or an end: one line with the traceback, and every request is served."""
    engine = make_engine(12)
    engine.add_random(30, np.random.default_rng(0), all_bounded=True)
    for _ in range(15):
        engine.step()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyError("a fault")

    setattr(engine.scheduler.governor.runner.policy, place, fail)
    with caplog.at_level(logging.ERROR):
        engine.add_random(5, np.random.default_rng(1), first=100, all_bounded=True)
        engine.run(check=False)
    engine.check_tokens(engine.requests)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert "request r" in caplog.text or "deciding" in caplog.text
    assert engine.scheduler.metrics.failures == 1


def test_a_panic_of_a_library_in_rust_is_caught(make_engine: Callable[..., Any]) -> None:
    """It derives from BaseException alone."""
    engine = make_engine(12)

    def panic(*args: Any, **kwargs: Any) -> None:
        raise BaseException("PanicException")

    engine.scheduler.arrivals.add = panic
    engine.add("r0", 5, 5)
    engine.run(check=False)
    engine.check_tokens(engine.requests)


def test_a_switch_turns_it_off(make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """AMIN_DISABLE=1 leaves everything to vLLM, and wrong settings are not even read."""
    monkeypatch.setenv("AMIN_DISABLE", "1")
    engine = make_engine(12, kind=PredictingScheduler, policy="no such policy", predictor="nowhere")
    engine.add_random(20, np.random.default_rng(0))
    engine.run(check=False)
    engine.check_tokens(engine.requests)
    assert engine.scheduler.arrivals is engine.scheduler.governor is None


def test_in_its_shadow_vllm_decides_and_bounds_are_counted(
    make_engine: Callable[..., Any], vllms_own: Any, predicting: Callable[..., Any]
) -> None:
    """Iterations are vLLM's own; what was predicted is compared with what came."""
    kind, oracle = predicting({f"r{i}": 30 for i in range(20)})
    engines = [make_engine(12, kind=kind, shadow=True), make_engine(12, kind=vllms_own)]
    for engine in engines:
        for i in range(20):
            engine.add(f"r{i}", 10, 20 + i)
        with oracle.background._changed:  # in its shadow nobody waits, and a request may end before it is predicted
            assert oracle.background._changed.wait_for(lambda: not oracle.background._held, 60)
        engine.run(check=False)
    shadow, own = engines
    assert shadow.ends == own.ends
    metrics = shadow.scheduler.metrics
    assert (metrics.bounds_covered, metrics.bounds_missed) == (10, 10)
    assert metrics.predicted == 20
    assert metrics.coverage == 0.5
    assert oracle.learnt["r7"] == (Status.ANSWERED, 27)


def test_requests_without_a_bound_are_predicted(
    make_engine: Callable[..., Any], predicting: Callable[..., Any], abort: Callable[..., Any]
) -> None:
    """One that brings a bound keeps it, one aborted meanwhile is forgotten, embeddings get the marginal bound."""
    import torch

    kind, _ = predicting({"aborted": 9, "r0": 30, "r1": 20, "r2": 10})
    engine = make_engine(10, kind=kind, tau=0.2)
    seen: dict[str, int] = {}
    policy = engine.scheduler.governor.runner.policy
    add = policy.add
    policy.add = lambda index, request: (
        seen.update({request.request_id: request.output_len_lower_bound}),
        add(index, request),
    )
    engine.add("aborted", 40, 40)
    abort(engine, "aborted")
    for i, num_prompt_tokens in enumerate([30, 20, 10]):
        engine.add(f"r{i}", num_prompt_tokens, 40)
    engine.add("brought", 20, 40, output_len_lower_bound=5)
    engine.add("embedded", None, 40, facts={"prompt_embeds": torch.zeros(20, 4)})
    engine.run(check=False)
    assert seen == {"r0": 30, "r1": 20, "r2": 10, "brought": 5, "embedded": 2}
    engine.check_tokens(engine.requests.keys() - {"aborted"})


def test_counts_are_prometheus_metrics(make_engine: Callable[..., Any]) -> None:
    """Evictions, recomputed tokens, coverage, decisions and their time; twice in a process they do not collide."""

    def value(name: str) -> float:
        return REGISTRY.get_sample_value(f"amin_{name}", {"engine": "0"}) or 0.0

    before = {name: value(name) for name in ("evictions_total", "bounds_covered_total", "decisions_total")}
    for _ in range(2):
        engine = make_engine(10, policy="amin")
        for i in range(30):
            engine.add(f"r{i}", 20, 60, output_len_lower_bound=20)
        engine.run(check=False)
        engine.scheduler.metrics.publish(float("inf"))
    metrics = engine.scheduler.metrics
    assert metrics.evictions > 0
    assert metrics.recomputed_tokens > 20 * metrics.evictions
    assert value("evictions_total") - before["evictions_total"] == 2 * metrics.evictions
    assert value("bounds_covered_total") - before["bounds_covered_total"] == 60
    assert value("coverage") == 1.0
    assert 0 < metrics.decision_seconds < 10
    assert "bounds_covered 30" in metrics.summary()


def test_the_policy_is_the_one_that_is_named(make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """`amin-survival` unless AMIN_POLICY or, before it, the settings say otherwise; wrong names refuse to start."""
    assert isinstance(make_engine(10).scheduler.governor.runner.policy, AminSurvival)
    monkeypatch.setenv("AMIN_POLICY", "amin")
    assert type(make_engine(10).scheduler.governor.runner.policy).__name__ == "Amin"
    chosen = make_engine(10, policy="amin-survival", pack_level=0.3).scheduler.governor.runner.policy
    assert isinstance(chosen, AminSurvival)
    for name in (*policies_that_read(Reads.OUTPUT_LEN), "no such policy"):
        assert name not in POLICIES or name in policies_that_read(Reads.OUTPUT_LEN)
        with pytest.raises(InputError):
            make_engine(10, policy=name)
    for wrong in ({"shadow": "yes"}, {"seed": -1}, {"no_such_option": 1}):
        with pytest.raises(InputError):
            make_engine(10, **wrong)


def test_settings_of_predictions_are_refused_where_none_are_made(make_engine: Callable[..., Any]) -> None:
    """One line names the key and the class that takes it; that class asks for a predictor."""
    assert resolve_obj_by_qualname(PREDICTING) is PredictingScheduler
    for key in PREDICTION_KEYS:
        with pytest.raises(InputError) as refused:
            make_engine(10, **{key: 0.5 if key in ("tau", "timeout") else "x"})
        assert str(refused.value) == (
            f"additional_config: amin: {key}: AminScheduler does not predict; leave it out or use "
            "--scheduler-cls pipelines.vllm_scheduler.PredictingScheduler"
        )
    with pytest.raises(InputError, match="predictor: missing"):
        make_engine(10, kind=PredictingScheduler, tau=0.2)
