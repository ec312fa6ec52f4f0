"""A policy beside an engine that lags, cancels and fails: nobody waits for the dead, and nothing is learnt of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.integrations.mirror import Mirror
from scheduler.kv_cache import NO_LIMITS, KvCache, Limits
from scheduler.policies import CLAIRVOYANT, POLICIES, make_policy
from scheduler.policies.amin_survival import AminSurvival
from scheduler.policies.past_future import PastFuture
from scheduler.request import Request

ONLINE = sorted(set(POLICIES) - CLAIRVOYANT)


def mirror_of(name: str, budget: int, limits: Limits = NO_LIMITS) -> Mirror:
    """A mirror of a new policy on a cache of single tokens."""
    rng = np.random.default_rng(0)
    return Mirror(make_policy(name, KvCache(budget, 1), rng, resume=True, output_lens=None, limits=limits))


@pytest.mark.parametrize("name", ONLINE)
def test_nobody_waits_behind_a_cancelled_request(name: str) -> None:
    """It was the head of the queue and had no room; what comes after it has."""
    mirror = mirror_of(name, 1000)
    mirror.add(Request("long", 600, 100, output_len_lower_bound=100))
    mirror.decide()
    mirror.add(Request("head", 500, 10))
    mirror.follow(lambda _: 1)
    mirror.decide()
    mirror.remove("head", None)
    mirror.add(Request("small", 10, 10))
    for step in range(2, 5):
        mirror.follow(lambda _, step=step: step)
        mirror.decide()
    assert list(mirror.running_ids()) == ["long", "small"]


def test_a_cancelled_request_is_no_answer() -> None:
    """Forty clients that leave after three tokens teach nothing; forty answers of three tokens do."""
    for is_answer in (False, True):
        survival, past = mirror_of("amin-survival", 10_000), mirror_of("past-future", 10_000)
        assert isinstance(survival.policy, AminSurvival)
        assert isinstance(past.policy, PastFuture)
        level = survival.policy._level
        for mirror in (survival, past):
            for k in range(40):
                mirror.add(Request(str(k), 5, 100, output_len_lower_bound=50, output_len_prediction=70))
            mirror.decide()
            for step in (1, 2, 3):
                mirror.follow(lambda _, step=step: step)
                mirror.decide()
            for k in range(40):
                mirror.remove(str(k), 3 if is_answer else None)
        assert (survival.policy._level < level) == is_answer
        assert (3 in past.policy._history) == is_answer


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(ONLINE), seed=st.integers(0, 2**16))
def test_a_lagging_engine_with_cancellations_ends_with_nothing_kept(name: str, seed: int) -> None:
    """Tokens come late, requests are cancelled while they wait or run, and the last token may be in flight."""
    rng = np.random.default_rng(seed)
    mirror = mirror_of(name, 120, Limits(max_running=6))
    left, tokens, lens = 25, dict[str, int](), dict[str, int]()
    for step in range(4000):
        if left and rng.random() < 0.4:
            left -= 1
            limit = int(rng.integers(1, 30))
            request = Request(f"r{left}", int(rng.integers(0, 40)), limit, float(step))
            lens[request.request_id], tokens[request.request_id] = int(rng.integers(1, limit + 1)), 0
            mirror.add(request)
        mirror.follow(tokens.__getitem__)
        evicted = mirror.decide()
        assert mirror.running.next_blocks <= 120
        for request_id in evicted:  # the last token was in flight
            if tokens[request_id] + 1 == lens[request_id]:
                mirror.remove(request_id, lens[request_id])
        for request_id in list(mirror.running_ids()):
            tokens[request_id] += rng.random() < 0.8
            if tokens[request_id] == lens[request_id]:
                mirror.remove(request_id, lens[request_id])
        for request_id in list(mirror.request_ids()):
            if rng.random() < 0.01:
                mirror.remove(request_id, None)
        if not left and not len(mirror):
            break
    assert not len(mirror)
    assert not len(mirror.running)
    assert not mirror.policy.waiting
    kept = {key: value for key, value in vars(mirror.policy).items() if isinstance(value, dict) and value}
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
    mirror = mirror_of(name, 200, Limits(max_running=20))
    lens: dict[str, int] = {}
    generated: dict[str, int] = {}
    while len(lens) < 1500:
        while len(generated) < 30:
            request_id = str(len(lens))
            lens[request_id], generated[request_id] = int(rng.integers(1, 60)), 0
            bound = int(rng.integers(1, 60)) if rng.random() < 0.3 else 1
            mirror.add(Request(request_id, int(rng.integers(1, 40)), 64, output_len_lower_bound=bound))
        if rng.random() < 0.2:
            gone = str(rng.choice(list(generated)))
            mirror.remove(gone, None)
            del generated[gone]
        mirror.decide()
        for request_id in mirror.running_ids():
            generated[request_id] += 1
        mirror.follow(generated.__getitem__)
        for request_id in list(mirror.running_ids()):
            if generated[request_id] >= lens[request_id]:
                mirror.remove(request_id, generated.pop(request_id))
    assert held(mirror) < 400
