"""A policy next to an engine that lags, cancels and fails: nobody waits for the dead, and nothing is learnt of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.kv_cache import KvCache
from scheduler.policies import POLICIES, Reads, make_policy, policies_that_read
from scheduler.policies.amin_survival import AminSurvival
from scheduler.policies.past_future import PastFuture
from scheduler.policy import Status
from scheduler.request import Request
from scheduler.worker import Worker

ONLINE = sorted(POLICIES.keys() - policies_that_read(Reads.OUTPUT_LEN))


def runner_of(name: str, budget: int, max_running: int | None = None) -> PolicyRunner:
    """A runner of a new policy on a cache of single tokens."""
    worker = Worker(KvCache(budget, 1), resume=True, max_running=max_running)
    return PolicyRunner(make_policy(name, worker, np.random.default_rng(0)))


@pytest.mark.parametrize("name", ONLINE)
def test_nobody_waits_behind_a_cancelled_request(name: str) -> None:
    """It was the head of the queue and had no room; what comes after it has."""
    runner = runner_of(name, 1000)
    runner.add(Request("long", 600, 100, output_len_lower_bound=100))
    runner.decide()
    runner.add(Request("head", 500, 10))
    runner.follow(lambda _: 1)
    runner.decide()
    runner.end("head", Status.CANCELLED, 0)
    runner.add(Request("small", 10, 10))
    for step in range(2, 5):
        runner.follow(lambda _, step=step: step)
        runner.decide()
    assert list(runner.running_ids()) == ["long", "small"]


def test_a_cancelled_request_is_no_answer() -> None:
    """Forty clients that leave after three tokens teach nothing; forty answers of three tokens do."""
    for is_answer in (False, True):
        survival, past = runner_of("amin-survival", 10_000), runner_of("past-future", 10_000)
        assert isinstance(survival.policy, AminSurvival)
        assert isinstance(past.policy, PastFuture)
        level = survival.policy._level
        for runner in (survival, past):
            for k in range(40):
                runner.add(Request(str(k), 5, 100, output_len_lower_bound=50, output_len_prediction=70))
            runner.decide()
            for step in (1, 2, 3):
                runner.follow(lambda _, step=step: step)
                runner.decide()
            for k in range(40):
                runner.end(str(k), Status.ANSWERED if is_answer else Status.CANCELLED, 3)
        assert (survival.policy._level < level) == is_answer
        assert (3 in past.policy._history) == is_answer


@pytest.mark.parametrize("name", ONLINE)
def test_a_request_may_end_between_its_iteration_and_the_decision(name: str) -> None:
    """It got no token in that iteration, as in prefill, and the policy is not told of a stall of who is gone."""
    runner = runner_of(name, 1000)
    for request_id in ("stays", "goes"):
        runner.add(Request(request_id, 10, 20, output_len_lower_bound=5))
    runner.decide()
    runner.follow(lambda _: 0)
    runner.end("goes", Status.CANCELLED, 0)
    runner.decide()
    assert list(runner.running_ids()) == ["stays"]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(ONLINE), seed=st.integers(0, 2**16))
def test_a_lagging_engine_with_cancellations_ends_with_nothing_kept(name: str, seed: int) -> None:
    """Tokens come late, requests are cancelled while they wait or run, and the last token may be in flight."""
    rng = np.random.default_rng(seed)
    runner = runner_of(name, 120, 6)
    left, tokens, lens = 25, dict[str, int](), dict[str, int]()
    for step in range(4000):
        if left and rng.random() < 0.4:
            left -= 1
            limit = int(rng.integers(1, 30))
            request = Request(f"r{left}", int(rng.integers(0, 40)), limit, float(step))
            lens[request.request_id], tokens[request.request_id] = int(rng.integers(1, limit + 1)), 0
            runner.add(request)
        runner.follow(tokens.__getitem__)
        evicted = runner.decide()
        assert runner.running.next_blocks <= 120
        for request_id in evicted:  # the last token was in flight
            if tokens[request_id] + 1 == lens[request_id]:
                runner.end(request_id, Status.ANSWERED, lens[request_id])
        for request_id in list(runner.running_ids()):
            tokens[request_id] += rng.random() < 0.8
            if tokens[request_id] == lens[request_id]:
                runner.end(request_id, Status.ANSWERED, lens[request_id])
        for request_id in list(runner.request_ids()):
            if rng.random() < 0.01:
                runner.end(request_id, Status.CANCELLED, tokens[request_id])
        if not left and not len(runner):
            break
    assert not len(runner)
    assert not len(runner.running)
    assert not runner.policy.waiting
    kept = {key: value for key, value in vars(runner.policy).items() if isinstance(value, dict) and value}
    assert not kept


def held(thing: object) -> int:
    """Entries in all containers below an object of ours; past lengths, a window of fixed size, left out."""
    count = 0
    for name, value in vars(thing).items():
        if isinstance(value, dict | list | set) and name != "_history":
            count += len(value)
        elif type(value).__module__.startswith("scheduler.") and hasattr(value, "__dict__"):
            count += held(value)
    return count


@pytest.mark.parametrize("name", ONLINE)
def test_nothing_is_kept_of_requests_that_are_gone(name: str) -> None:
    """After 1,500 of them, ended, evicted on the way or cancelled, with always one there."""
    rng = np.random.default_rng(5)
    runner = runner_of(name, 200, 20)
    lens: dict[str, int] = {}
    generated: dict[str, int] = {}
    while len(lens) < 1500:
        while len(generated) < 30:
            request_id = str(len(lens))
            lens[request_id], generated[request_id] = int(rng.integers(1, 60)), 0
            bound = int(rng.integers(1, 60)) if rng.random() < 0.3 else 1
            runner.add(Request(request_id, int(rng.integers(1, 40)), 64, output_len_lower_bound=bound))
        if rng.random() < 0.2:
            gone = str(rng.choice(list(generated)))
            runner.end(gone, Status.CANCELLED, generated.pop(gone))
        runner.decide()
        for request_id in runner.running_ids():
            generated[request_id] += 1
        runner.follow(generated.__getitem__)
        for request_id in list(runner.running_ids()):
            if generated[request_id] >= lens[request_id]:
                runner.end(request_id, Status.ANSWERED, generated.pop(request_id))
    assert held(runner) < 400
