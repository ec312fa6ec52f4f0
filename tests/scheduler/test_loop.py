import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.batch import RunningBatch
from scheduler.executor import SimulatedExecutor
from scheduler.kv_cache import KvCache
from scheduler.latency_bounds import total_latency_lower_bound
from scheduler.loop import Loop, RunResult
from scheduler.policies import POLICIES, make_policy
from scheduler.policy import Decision
from scheduler.request import Request

SlowPeak = Callable[[Sequence[tuple[int, int]], int], int]
PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
EVERY_POLICY = pytest.mark.parametrize("name", POLICIES)
EVERY_MODE = pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])


class SlowLoop:
    """The model of the paper and its policies, written for reading: one plain iteration after the other."""

    def __init__(self, name: str, case: tuple, slow_peak: SlowPeak, *, resume: bool, seed: int) -> None:
        self.requests, self.output_lens, self.kv_cache = case
        self.name, self.slow_peak, self.resume = name, slow_peak, resume
        self.rng = np.random.default_rng(seed)
        everyone = range(len(self.requests))
        self.generated = dict.fromkeys(everyone, 0)
        self.estimate = {i: self.first_estimate(i) for i in everyone}
        self.num_evictions = dict.fromkeys(everyone, 0)
        self.first_token_time: dict[int, int] = {}
        self.finish_time: dict[int, int] = {}
        self.running: list[int] = []  # in order of admission

    def first_estimate(self, i: int) -> int:
        """Return the output length that request `i` is packed by; first come, first served packs by none."""
        request = self.requests[i]
        if self.name.startswith("amin"):
            return request.output_len_lower_bound
        if self.name == "amax":
            return min(request.output_len_upper_bound or request.max_new_tokens, request.max_new_tokens)
        return self.output_lens[i] if self.name == "hindsight" else 0

    def blocks(self, tokens: int) -> int:
        """Return the blocks of `tokens` tokens."""
        return math.ceil(tokens / self.kv_cache.block_size)

    def next_blocks(self, i: int) -> int:
        """Return the blocks of request `i` during the next iteration."""
        return self.blocks(self.requests[i].num_prompt_tokens + self.generated[i] + 1)

    def victims(self) -> list[int]:
        """Return the running requests, first to be evicted first."""
        if not self.name.startswith("amin"):
            return self.running[::-1]
        # A number for each running request, in order of admission, breaks ties as the policy's own generator does.
        tie = dict(zip(self.running, self.rng.random(len(self.running)), strict=True))
        current = {i: self.estimate[i] for i in self.running}
        if self.name == "amin":  # a running request that outlives its bound raises it
            current = {i: max(self.estimate[i], self.generated[i]) for i in self.running}
        return sorted(self.running, key=lambda i: (current[i], tie[i]))

    def evict(self) -> bool:
        """Evict until the next iteration fits; return whether anything was evicted."""
        if self.name == "fcfs-reserve":
            return False
        victims = self.victims()
        count = 0
        while sum(self.next_blocks(i) for i in self.running) > self.kv_cache.num_blocks:
            victim = victims[count]
            count += 1
            self.running.remove(victim)
            self.num_evictions[victim] += 1
            if self.name.startswith("amin"):
                self.estimate[victim] = max(self.estimate[victim], self.generated[victim])
            if not self.resume:
                self.generated[victim] = 0
        return count > 0

    def fits(self, candidate: int) -> bool:
        """Return whether the running requests and the candidate fit together, as the policy sees it."""
        together = [*self.running, candidate]
        if self.name == "fcfs":
            return sum(self.next_blocks(i) for i in together) <= self.kv_cache.num_blocks
        if self.name == "fcfs-reserve":
            reserved = [self.requests[i].num_prompt_tokens + self.requests[i].max_new_tokens for i in together]
            return sum(self.blocks(tokens) for tokens in reserved) <= self.kv_cache.num_blocks
        held = [self.requests[i].num_prompt_tokens + self.generated[i] for i in together]
        remaining = [max(1, self.estimate[i] - self.generated[i]) for i in together]
        items = list(zip(held, remaining, strict=True))
        return self.slow_peak(items, self.kv_cache.block_size) <= self.kv_cache.num_blocks

    def waiting(self, now: int) -> list[int]:
        """Return those that have arrived, do not run and are not done, first to be admitted first."""
        there = [i for i, request in enumerate(self.requests) if request.arrival_time <= now]
        queue = [i for i in there if i not in self.running and i not in self.finish_time]
        return sorted(queue, key=lambda i: (self.estimate[i], self.requests[i].arrival_time, i))

    def run(self) -> None:
        """Run to the end."""
        now = 0
        while len(self.finish_time) < len(self.requests):
            if not self.running and not self.waiting(now):
                now += 1
                continue
            evicted = self.evict()
            if not (evicted and self.name == "fcfs"):  # vLLM admits nothing in an iteration that preempts
                for candidate in self.waiting(now):
                    if self.running and not self.fits(candidate):
                        break
                    self.running.append(candidate)
            now += 1
            for i in list(self.running):
                self.generated[i] += 1
                self.first_token_time.setdefault(i, now)
                if self.generated[i] == self.output_lens[i]:
                    self.finish_time[i] = now
                    self.running.remove(i)


def assert_same(result: RunResult, slow: SlowLoop) -> None:
    """Compare request by request."""
    everyone = range(len(slow.requests))
    assert result.finish_time.tolist() == [slow.finish_time[i] for i in everyone]
    assert result.first_token_time.tolist() == [slow.first_token_time[i] for i in everyone]
    assert result.num_evictions.tolist() == [slow.num_evictions[i] for i in everyone]


@EVERY_MODE
@EVERY_POLICY
@PROPERTY
@given(data=st.data(), seed=st.integers(0, 3))
def test_the_loop_agrees_with_a_slow_one(
    cases: Callable, run_policy: Callable, slow_peak: SlowPeak, name: str, resume: bool, data: st.DataObject, seed: int
) -> None:
    """Every request starts and ends in the same iteration, evicted as often, as in the plain reference."""
    # Beside a request whose upper bound exceeds the cache by itself no set fits; the model leaves open what Amax does.
    case = data.draw(cases(fits=name == "amax"))
    slow = SlowLoop(name, case, slow_peak, resume=resume, seed=seed)
    slow.run()
    assert_same(run_policy(name, case, resume=resume, seed=seed), slow)


@EVERY_MODE
@EVERY_POLICY
def test_the_loop_agrees_with_a_slow_one_on_a_crowd(
    make_case: Callable, run_policy: Callable, slow_peak: SlowPeak, name: str, resume: bool
) -> None:
    """The same with enough requests that all columns and profiles outgrow their first arrays."""
    rng = np.random.default_rng(7)
    output_lens = np.ceil(rng.lognormal(1.5, 0.6, 130)).astype(int)
    lower = np.maximum(1, (output_lens * rng.uniform(0.3, 1.0, 130)).astype(int))
    case = make_case(
        output_lens.tolist(),
        400,
        prompt=rng.integers(0, 3, 130).tolist(),
        lower=lower.tolist(),
        upper=(output_lens + rng.integers(0, 4, 130)).tolist(),
    )
    slow = SlowLoop(name, case, slow_peak, resume=resume, seed=1)
    slow.run()
    assert_same(run_policy(name, case, resume=resume, seed=1), slow)


@EVERY_MODE
@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_what_holds_in_every_run(
    cases: Callable, run_policy: Callable, name: str, resume: bool, data: st.DataObject
) -> None:
    """Each request gets its tokens, no faster than one an iteration, within the budget, and none is lost or made."""
    case = data.draw(cases(fits=False))
    requests, output_lens, kv_cache = case
    result = run_policy(name, case, resume=resume)
    timeline = result.timeline
    first_iteration = np.ceil(result.arrival_time)
    assert (result.finish_time >= first_iteration + output_lens).all()
    assert (result.first_token_time > first_iteration).all()
    assert (result.first_token_time <= result.finish_time - np.array(output_lens) + 1).all()
    assert max(timeline.kv_blocks) <= kv_cache.num_blocks
    assert timeline.end == sorted(set(timeline.end))
    assert timeline.end[-1] == result.finish_time.max()
    prompts = np.array([request.num_prompt_tokens for request in requests])
    thrown_away = result.num_recomputed_tokens - result.num_evictions * prompts
    again = 0 if resume else thrown_away.sum()
    assert sum(timeline.num_running) == sum(output_lens) + again
    assert (thrown_away >= result.num_evictions).all()  # it had a token at least
    for end, num_running, num_waiting in zip(timeline.end, timeline.num_running, timeline.num_waiting, strict=True):
        present = (result.arrival_time <= end - 1) & (result.finish_time >= end)
        assert num_running + num_waiting == present.sum()


@EVERY_MODE
@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_every_request_finishes_exactly_once(cases: Callable, name: str, resume: bool, data: st.DataObject) -> None:
    """`on_finish` names each index once, in the iteration that `finish_time` gives."""
    requests, output_lens, kv_cache = data.draw(cases(fits=False))
    policy = make_policy(name, kv_cache, np.random.default_rng(0), resume=resume, output_lens=output_lens)
    executor = SimulatedExecutor(kv_cache, output_lens)
    told: list[tuple[int, float]] = []
    loop = Loop(policy, executor, requests, kv_cache, resume=resume)
    result = loop.run(lambda indices: told.extend((index, executor.now) for index in indices))
    assert sorted(told) == list(enumerate(result.finish_time))


@EVERY_MODE
@EVERY_POLICY
@PROPERTY
@given(data=st.data())
def test_no_run_beats_the_volume_bound(
    cases: Callable, run_policy: Callable, name: str, resume: bool, data: st.DataObject
) -> None:
    """The total latency of requests that all arrive at 0 respects the limit of every schedule."""
    case = data.draw(cases(at_once=True, fits=False))
    prompts = [request.num_prompt_tokens for request in case.requests]
    kv_budget = case.kv_cache.num_blocks * case.kv_cache.block_size
    total = run_policy(name, case, resume=resume).finish_time.sum()
    assert total >= total_latency_lower_bound(prompts, case.output_lens, kv_budget) * (1 - 1e-12)


@EVERY_MODE
@pytest.mark.parametrize("name", ["amax", "hindsight", "fcfs-reserve"])
@PROPERTY
@given(data=st.data())
def test_a_safe_policy_never_evicts_when_the_bounds_are_true(
    cases: Callable, run_policy: Callable, name: str, resume: bool, data: st.DataObject
) -> None:
    """With lower <= o <= upper <= max_new_tokens a reservation by an upper bound always suffices."""
    case = data.draw(cases(bounds="true", fits=data.draw(st.booleans())))
    assert run_policy(name, case, resume=resume).num_evictions.sum() == 0


@EVERY_MODE
@pytest.mark.parametrize("name", ["amin", "amin-eviction"])
@PROPERTY
@given(data=st.data())
def test_a_bound_never_falls_and_an_eviction_raises_it_to_what_was_generated(
    cases: Callable, run_policy: Callable, recorder: type, name: str, resume: bool, data: st.DataObject
) -> None:
    """Between two decisions the bound of request i is unchanged, or max(bound_i, generated_i) if it was evicted."""
    case = data.draw(cases(fits=False))
    amin = make_policy(name, case.kv_cache, np.random.default_rng(0), resume=resume, output_lens=None)
    expected = [request.output_len_lower_bound for request in case.requests]

    def check(running: RunningBatch, decision: Decision) -> None:
        for row in decision.preempt:
            index = int(running.indices[row])
            expected[index] = max(expected[index], int(running.num_generated[row]))
        arrived = sorted({*running.indices.tolist(), *decision.admit})
        assert [int(amin._bound[index]) for index in arrived] == [expected[index] for index in arrived]

    run_policy(recorder(amin, after_schedule=check), case, resume=resume)
    for bound, request, output_len in zip(expected, case.requests, case.output_lens, strict=True):
        assert request.output_len_lower_bound <= bound <= max(request.output_len_lower_bound, output_len)


def test_a_schedule_worked_by_hand() -> None:
    """Of two requests of 3 tokens in a cache of 4 Amin evicts one after two tokens, and restarts it at once."""
    kv_cache = KvCache(4)
    requests = [Request("a", 0, 3), Request("b", 0, 3, output_len_lower_bound=2)]
    policy = make_policy("amin", kv_cache, np.random.default_rng(0), resume=False, output_lens=None)
    result = Loop(policy, SimulatedExecutor(kv_cache, [3, 3]), requests, kv_cache).run()
    evicted = int(result.num_evictions.argmax())
    assert result.num_evictions.sum() == 1
    assert result.num_recomputed_tokens[evicted] == 2
    assert result.first_token_time.tolist() == [1, 1]
    assert sorted(result.finish_time) == [3, 5]


def test_the_clock_jumps_over_idle_time() -> None:
    """A request that arrives at 2.5 after all else is done starts at 3, and idle time has no row in the timeline."""
    kv_cache = KvCache(10)
    requests = [Request("late", 1, 4, arrival_time=2.5), Request("early", 1, 4)]
    policy = make_policy("fcfs", kv_cache, np.random.default_rng(0), resume=False, output_lens=None)
    result = Loop(policy, SimulatedExecutor(kv_cache, [2, 1]), requests, kv_cache).run()
    assert result.finish_time.tolist() == [5, 1]
    assert result.timeline.end == [1, 4, 5]
    assert result.timeline.kv_blocks == [2, 2, 3]
