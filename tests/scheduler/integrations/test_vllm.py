import itertools
import logging
import os
import subprocess
import sys
import warnings
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.policies import POLICIES, Reads, policies_that_read
from scheduler.policies.fit_now import FitNow
from scheduler.policy import Decision

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's own imports warn
    pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")
    import torch
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus
    from vllm.v1.structured_output import StructuredOutputManager

    from pipelines.vllm_scheduler import PredictingScheduler
    from scheduler.integrations.vllm import PREDICTING, PREDICTION_SETTINGS, AminScheduler, read_bounds

ROOT = Path(__file__).parents[3]
BLOCK_SIZE, MAX_MODEL_LEN, STOP = 16, 160, 2
POLICY_NAMES = sorted(POLICIES.keys() - policies_that_read(Reads.OUTPUT_LEN))

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours


@pytest.fixture(scope="module")
def vllm_config() -> Any:
    """The configuration of an engine that splits long prefills."""
    return EngineArgs(
        model=str(ROOT / "checkpoints/tiny-chat"),
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=64,
        max_num_seqs=16,
        enable_prefix_caching=False,
    ).create_engine_config()


def make_scheduler(config: Any, num_blocks: int, kind: Any = None, **settings: Any) -> AminScheduler:
    """The plug-in, or a `kind` of it, on a real block pool with `num_blocks` for requests."""
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=2, head_size=64, dtype=torch.float32)
    config.cache_config.num_gpu_blocks = num_blocks + 1
    config.additional_config = {"amin": settings}
    return (kind or AminScheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(num_blocks + 1, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
    )


class Engine:
    """vLLM's real scheduler with a made-up model: the token at position p is 10 + p, and the last one STOP.

    `depth` iterations are in flight at once, as 2 are with asynchronous scheduling.
    """

    def __init__(self, scheduler: AminScheduler, depth: int) -> None:
        self.scheduler, self.depth = scheduler, depth
        self.requests: dict[str, Request] = {}
        self.output_lens: dict[str, int] = {}
        self._in_flight: deque[tuple[Any, ModelRunnerOutput]] = deque()

    def add(self, request_id: str, num_prompt_tokens: int, output_len: int, **extra_args: Any) -> None:
        """Submit a request."""
        params = SamplingParams(
            temperature=0, max_tokens=100, stop_token_ids=[STOP], ignore_eos=True, extra_args=extra_args or None
        )
        request = Request(request_id, [5] * num_prompt_tokens, params, None)
        self.requests[request_id], self.output_lens[request_id] = request, output_len
        self.scheduler.add_request(request)

    def step(self) -> None:
        """Schedule an iteration; take in the oldest one if enough are in flight."""
        output = self.scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        assert output.preempted_req_ids.isdisjoint(ids), "the first model runner takes them for never gone"
        self._check_runner()
        sampled = [self._sample(self.scheduler.requests[request_id]) for request_id in ids]
        result = ModelRunnerOutput(ids, {request_id: i for i, request_id in enumerate(ids)}, sampled)
        self._in_flight.append((output, result))
        if len(self._in_flight) == self.depth or not ids:
            self.scheduler.update_from_output(*self._in_flight.popleft())

    def _sample(self, request: Request) -> list[int]:
        position = request.num_computed_tokens
        last = request.num_prompt_tokens + self.output_lens[request.request_id] - 1
        if request.is_prefill_chunk:
            return []
        return [STOP if position == last else 10 + position]

    def _check_runner(self) -> None:
        """It counts the tokens as of before this iteration; only what is in flight at an eviction comes later."""
        runner, requests = self.scheduler.runner, self.scheduler.requests
        for index, request_id in zip(runner.running, runner.running_ids(), strict=True):
            request, counted = requests[request_id], runner.running.num_generated(index)
            ahead = request.num_output_tokens + request.num_output_placeholders - counted
            assert ahead in ((-1, 0) if request.status == RequestStatus.PREEMPTED else (0, 1)), request_id

    def check_memory(self) -> None:
        """What vLLM has handed out is within what the runner counts, which is within the cache."""
        pool, running = self.scheduler.kv_cache_manager.block_pool, self.scheduler.runner.running
        used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        assert used <= running.next_blocks <= self.scheduler.runner.policy.worker.kv_cache.num_blocks

    def run(self, *, max_steps: int = 20_000, check_memory: bool = True) -> None:
        """Run to the end; nothing may be left anywhere."""
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished_requests():
                break
            self.step()
            if check_memory:
                self.check_memory()
        assert not self.scheduler.has_unfinished_requests(), "livelock"
        assert not self.scheduler.requests
        assert not self.scheduler.waiting
        assert_nothing_kept(self.scheduler)

    def check_tokens(self, request_ids: set[str]) -> None:
        """Each of these has exactly its tokens, in order."""
        for request_id in request_ids:
            request = self.requests[request_id]
            start, output_len = request.num_prompt_tokens, self.output_lens[request_id]
            expected = [10 + position for position in range(start, start + output_len - 1)] + [STOP]
            assert list(request.output_token_ids) == expected, request_id


def assert_nothing_kept(scheduler: AminScheduler) -> None:
    """The runner and every collection of the policy by request are empty."""
    runner = scheduler.runner
    assert len(runner) == len(runner.running) == len(runner.policy.waiting) == runner.running.next_blocks == 0
    runner.policy.schedule(runner.running)  # what has finished is taken out by the next call
    held = {name: value for name, value in vars(runner).items() if isinstance(value, dict) and value}
    held |= {name: value for name, value in vars(runner.policy).items() if isinstance(value, dict) and value}
    held |= {name: value for name, value in vars(runner.policy.waiting).items() if isinstance(value, dict) and value}
    assert held == {}


def add_random_requests(engine: Engine, count: int, rng: np.random.Generator, first: int = 0) -> None:
    """Prompts up to 59 tokens, answers up to 99, some with a bound and some without."""
    for i in range(first, first + count):
        output_len = int(rng.integers(1, 100))
        bounds = {"output_len_lower_bound": max(1, int(output_len * rng.uniform(0.3, 1.3)))} if i % 4 else {}
        engine.add(f"r{i}", int(rng.integers(1, 60)), output_len, **bounds)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_serves_a_standing_queue(vllm_config: Any, name: str, depth: int) -> None:
    """All tokens come out, in order; vLLM never has to preempt; nothing is kept at the end."""
    engine = Engine(make_scheduler(vllm_config, 14, policy=name), depth)
    add_random_requests(engine, 40, np.random.default_rng(1))
    engine.run()
    engine.check_tokens(set(engine.requests))
    by_vllm = sum(request.num_preemptions for request in engine.requests.values())
    assert by_vllm <= engine.scheduler.runner.num_evictions


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_aborts_and_arrivals_in_between_leave_nothing_behind(vllm_config: Any, name: str, depth: int) -> None:
    """Whether the aborted request waits, is in prefill or runs."""
    rng = np.random.default_rng(2)
    engine = Engine(make_scheduler(vllm_config, 12, policy=name), depth)
    aborted = set[str]()
    for wave in range(12):
        add_random_requests(engine, 4, rng, first=4 * wave)
        for _ in range(int(rng.integers(1, 40))):
            engine.step()
            engine.check_memory()
        victims = rng.choice(sorted(engine.scheduler.requests) or [""], 2).tolist()
        aborted |= {r.request_id for r in engine.scheduler.finish_requests(victims, RequestStatus.FINISHED_ABORTED)}
    engine.run()
    assert len(aborted) >= 10
    engine.check_tokens(engine.requests.keys() - aborted)


def test_aborting_everything_empties_the_policy_at_once(vllm_config: Any) -> None:
    """The engine asks a scheduler without requests for nothing more."""
    engine = Engine(make_scheduler(vllm_config, 10), 1)
    add_random_requests(engine, 30, np.random.default_rng(3))
    for _ in range(20):
        engine.step()
    engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert_nothing_kept(engine.scheduler)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["amin", "amin-survival", "fcfs"])
def test_vllm_has_the_last_word_on_memory(vllm_config: Any, name: str, depth: int) -> None:
    """With blocks gone that the policy counts on, admitted requests wait, and all end."""
    engine = Engine(make_scheduler(vllm_config, 16, policy=name), depth)
    pool = engine.scheduler.kv_cache_manager.block_pool
    stolen = pool.get_new_blocks(6)
    add_random_requests(engine, 30, np.random.default_rng(4))
    engine.run(check_memory=False)
    engine.check_tokens(set(engine.requests))
    assert sum(request.num_preemptions for request in engine.requests.values()) > 0
    assert pool.get_num_free_blocks() == 16 - len(stolen)


def test_a_request_as_long_as_the_cache_runs_alone(vllm_config: Any) -> None:
    """It is not evicted for a token that it will never store."""
    engine = Engine(make_scheduler(vllm_config, MAX_MODEL_LEN // BLOCK_SIZE), 2)
    engine.add("long", 60, 100)
    engine.output_lens["long"] = 1000
    engine.run(max_steps=110)
    assert engine.requests["long"].num_output_tokens == 100
    assert engine.scheduler.runner.num_evictions == 0


class Restless(FitNow):
    """Evicts all that runs every seventh iteration and admits it in the same breath, as a decision may."""

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the decision of FCFS, or that."""
        decision = super().schedule(running)
        return Decision(list(running), list(running)) if running.clock % 7 == 0 and not decision.admit else decision


@pytest.mark.parametrize("depth", [1, 2])
def test_a_request_evicted_and_admitted_at_once_comes_back_an_iteration_later(vllm_config: Any, depth: int) -> None:
    """With all its tokens."""
    engine = Engine(make_scheduler(vllm_config, 16), depth)
    policy = engine.scheduler.runner.policy
    engine.scheduler.runner = PolicyRunner(Restless(policy.worker, policy.rng))
    for i in range(4):
        engine.add(f"r{i}", 20, 30)
    engine.run()
    engine.check_tokens(set(engine.requests))
    assert engine.scheduler.runner.num_evictions >= 16


def test_requests_without_a_bound_are_predicted(vllm_config: Any) -> None:
    """At arrival, off the loop; one that brings a bound keeps it, and one aborted meanwhile is forgotten."""

    class Predicting(AminScheduler):
        def make_predictions(self, settings: Any) -> BackgroundPredictions:
            def complete(requests: Any, prompts: Any) -> Any:
                return [replace(r, output_len_lower_bound=len(ids)) for r, ids in zip(requests, prompts, strict=True)]

            return BackgroundPredictions(complete, lambda request: request, timeout=30.0)

    engine = Engine(make_scheduler(vllm_config, 10, Predicting, tau=0.2), 1)
    engine.add("aborted", 40, 40)
    engine.scheduler.finish_requests("aborted", RequestStatus.FINISHED_ABORTED)
    for i, num_prompt_tokens in enumerate([30, 20, 10]):
        engine.add(f"r{i}", num_prompt_tokens, 40)
    engine.add("brought", 20, 40, output_len_lower_bound=5)
    seen: dict[str, int] = {}
    add = engine.scheduler.runner.policy.add
    engine.scheduler.runner.policy.add = lambda index, request: (
        seen.update({request.request_id: request.output_len_lower_bound}),
        add(index, request),
    )
    engine.run(check_memory=False)
    assert seen == {"r0": 30, "r1": 20, "r2": 10}
    assert engine.scheduler.predictions.num_fallbacks == 0
    engine.check_tokens({"r0", "r1", "r2", "brought"})


def test_settings_of_predictions_are_refused_where_none_are_made(vllm_config: Any) -> None:
    """One line names the key and the class that takes it; that class takes all but a predictor that is not there."""
    assert resolve_obj_by_qualname(PREDICTING) is PredictingScheduler
    for key in PREDICTION_SETTINGS:
        with pytest.raises(InputError) as refused:
            make_scheduler(vllm_config, 10, **{key: "x"})
        assert str(refused.value) == (
            f"additional_config: amin: {key}: AminScheduler does not predict; leave it out or use "
            "--scheduler-cls pipelines.vllm_scheduler.PredictingScheduler"
        )
    settings = {"model": "average", "tau": 0.2, "timeout": 30.0, "tokenizer": str(ROOT / "checkpoints/tiny-chat")}
    with pytest.raises(InputError, match="predictor: missing"):
        make_scheduler(vllm_config, 10, PredictingScheduler, **settings)
    predicting = make_scheduler(
        vllm_config, 10, PredictingScheduler, predictor=ROOT / "checkpoints/length-predictor", **settings
    )
    assert predicting.predictions is not None


def test_shorter_bounds_go_first(vllm_config: Any) -> None:
    """Amin admits in ascending bound, whatever the order of arrival."""
    engine = Engine(make_scheduler(vllm_config, 10), 1)
    ended = []
    for i, bound in enumerate([90, 50, 10]):
        engine.add(f"r{i}", 58, bound, output_len_lower_bound=bound)
    for _ in range(400):
        engine.step()
        ended += [name for name in engine.requests if name not in engine.scheduler.requests and name not in ended]
    assert ended == ["r2", "r1", "r0"]


@pytest.mark.parametrize(
    ("extra_args", "bounds", "complains"),
    [
        ({"output_len_lower_bound": 7}, {"output_len_lower_bound": 7}, False),
        ({"output_len_lower_bound": 7.9}, {"output_len_lower_bound": 7}, False),
        ({"output_len_lower_bound": 700}, {"output_len_lower_bound": 100}, False),
        (
            {"output_len_lower_bound": 7, "output_len_prediction": 9, "output_len_upper_bound": 3},
            {"output_len_lower_bound": 7, "output_len_prediction": 9, "output_len_upper_bound": 7},
            False,
        ),
        ({}, {"output_len_lower_bound": 1}, True),
        *[
            ({"output_len_lower_bound": value}, {"output_len_lower_bound": 1}, True)
            for value in ("7", 0, -3, float("nan"), float("inf"), True, [7], {})
        ],
    ],
)
def test_bounds_are_read_from_the_extra_arguments(
    extra_args: dict[str, Any], bounds: dict[str, int], complains: bool
) -> None:
    """What is missing or no number of tokens becomes 1 with a complaint; what is too large is lowered."""
    assert read_bounds(extra_args, 100)[0] == bounds
    assert bool(read_bounds(extra_args, 100)[1]) is complains


def test_malformed_bounds_are_reported_once(vllm_config: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The first of them names the request and the value."""
    engine = Engine(make_scheduler(vllm_config, 10), 1)
    with caplog.at_level(logging.WARNING, logger="scheduler.integrations.vllm"):
        for i, bound in enumerate(["short", None, -1]):
            engine.add(f"r{i}", 5, 3, output_len_lower_bound=bound)
    assert [record.getMessage() for record in caplog.records] == [
        "request r0: output_len_lower_bound is 'short', must be a number of tokens >= 1; "
        "no usable output_len_lower_bound: 1 is taken; further such requests are not reported"
    ]
    engine.run()


def test_the_policy_is_chosen_by_configuration_or_environment(
    vllm_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration wins; a policy that needs true lengths is refused."""
    monkeypatch.setenv("AMIN_POLICY", "sjf")
    assert isinstance(make_scheduler(vllm_config, 10).runner.policy, FitNow)
    chosen = make_scheduler(vllm_config, 10, policy="amin-survival", pack_level=0.3)
    assert type(chosen.runner.policy).__name__ == "AminSurvival"
    for name in (*policies_that_read(Reads.OUTPUT_LEN), "no such policy"):
        with pytest.raises(InputError):
            make_scheduler(vllm_config, 10, policy=name)


def test_outputs_are_those_of_vllm_in_process_and_over_http() -> None:
    """The comparison runs on the real engine and exits with 0: the same greedy tokens, request by request."""
    small = {"num-requests": 16, "max-new-tokens": 64, "max-model-len": 192, "num-blocks": 10, "policies": "amin"}
    flags = itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in small.items())
    command = [sys.executable, "-m", "pipelines.studies.vllm_check", *flags]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-4000:]
    assert finished.stdout.count("16/16") == 6, finished.stdout
