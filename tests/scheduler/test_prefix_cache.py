"""What evicted and ended requests leave is found again until it is overwritten, block by block."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.cost_model import CostModel
from scheduler.kv_cache import KvCache
from scheduler.loop import RunResult
from scheduler.policies import POLICIES
from scheduler.prefixes.cache import PrefixCache
from scheduler.prefixes.shared import PrefixNames, SharedPrefixes, whole_blocks
from scheduler.request import Request
from scheduler.simulation.simulate import simulate
from scheduler.worker import Worker
from scheduler.workload import Workload

NUM_BLOCKS, SIZE = 24, 4


@dataclass
class Pool:
    """A pool of single blocks, each with what it holds: the free ones in a list, taken from its head."""

    free: list[Hashable] = field(default_factory=lambda: [None] * NUM_BLOCKS)
    users: dict[Hashable, int] = field(default_factory=dict)

    def admit(self, blocks: list[Hashable]) -> int:
        """Use blocks; return how many of the first of them are there."""
        there = [block in self.users or block in self.free for block in blocks]
        found = there.index(False) if False in there else len(there)
        for place, block in enumerate(blocks):
            if place < found and block in self.free:
                self.free.remove(block)
            elif block not in self.users:
                del self.free[0]
            self.users[block] = self.users.get(block, 0) + 1
        return found

    def release(self, blocks: list[Hashable]) -> None:
        """Queue the blocks that have no user any more, the last first."""
        for block in reversed(blocks):
            self.users[block] -= 1
            if not self.users[block]:
                del self.users[block]
                self.free.append(block)


prompts = st.text("ab", max_size=4).map(lambda path: tuple(path[: i + 1] for i in range(len(path))))


@settings(deadline=None)
@given(
    st.lists(st.tuples(prompts, st.integers(0, 3)), min_size=1, max_size=6),
    st.sampled_from([1, 2]),
    st.lists(st.integers(0, 5), max_size=60),
)
def test_what_is_found_is_what_a_pool_of_single_blocks_has(
    requests: list[tuple[tuple[str, ...], int]], each: int, steps: list[int]
) -> None:
    """Requests that share prompts come and go in any order, as far as memory allows."""
    prefixes, pool, running = SharedPrefixes(), Pool(), set[int]()
    cache = PrefixCache(KvCache(NUM_BLOCKS, SIZE), prefixes)
    blocks: list[list[Hashable]] = []
    for index, (prefix, own) in enumerate(requests):
        if prefix:
            prefixes.add(index, prefix, each)
        named: list[Hashable] = [(name, k) for name in prefix for k in range(each)]
        blocks.append([*named, *((index, k) for k in range(own))])
    for index in (step for step in steps if step < len(requests)):
        mine = blocks[index]
        if index in running:
            running.remove(index)
            cache.evict(index, len(mine) * SIZE + 3)
            pool.release(mine)
        elif sum(block not in pool.users for block in mine) <= NUM_BLOCKS - len(pool.users):
            running.add(index)
            found, _ = cache.admit(index, len(mine) * SIZE + 3)
            assert found == pool.admit(mine) * SIZE
        cache.overwrite(NUM_BLOCKS - len(pool.users))


@pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])
@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"longest-first"}))
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_loop_with_prefix_caching_agrees_with_a_slow_one(
    cases: Callable, run_policy: Callable, slow_loop: Callable, name: str, resume: bool, data: st.DataObject, seed: int
) -> None:
    """Whatever the limits: the same ends, and the same tokens computed again."""
    case = data.draw(cases(bounds="any", engine=True))
    case = case._replace(worker=replace(case.worker, prefix_caching=True))
    result, slow = run_policy(name, case, resume=resume, seed=seed), slow_loop(name, case, resume=resume, seed=seed)
    everyone = range(len(case.requests))
    assert result.finish_time.tolist() == [float(slow.finish_time[i]) for i in everyone]
    assert result.num_evictions.tolist() == [slow.num_evictions[i] for i in everyone]
    assert result.num_recomputed_tokens.tolist() == [slow.num_recomputed[i] for i in everyone]


def same(left: RunResult, right: RunResult) -> bool:
    """Whether two runs ended alike."""
    names = ("finish_time", "first_token_time", "num_evictions", "num_recomputed_tokens")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in names)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(POLICIES)))
def test_without_an_eviction_or_a_common_prefix_nothing_changes(
    cases: Callable, run_policy: Callable, data: st.DataObject, name: str
) -> None:
    """A cache that nobody asks for what it has; where something is evicted, no more is computed again than without."""
    case = data.draw(cases(bounds="any", engine=True))
    with_cache = case._replace(worker=replace(case.worker, prefix_caching=True))
    plain, cached = run_policy(name, case, resume=True), run_policy(name, with_cache, resume=True)
    assert same(plain, cached) or plain.num_evictions.any()
    if case.worker.cost_model is None and case.worker.max_batch_tokens is None:  # prefill is free: the same schedule
        assert plain.finish_time.tolist() == cached.finish_time.tolist()
        assert (cached.num_recomputed_tokens <= plain.num_recomputed_tokens).all()


@pytest.mark.parametrize("resume", [False, True], ids=["restart", "resume"])
def test_a_victim_computes_nothing_again_where_memory_is_plenty(resume: bool) -> None:
    """One slot and a cache for all: what is evicted for shorter ones is found whole, its answer only if it is kept."""
    requests = [Request(f"r{i}", 10, 40, arrival_time=3.0 * i) for i in range(5)]
    workload = Workload(requests, [40, 30, 20, 10, 2])
    worker = Worker(KvCache(1000), resume=resume, max_running=1, prefix_caching=True)
    result = simulate("srpt", workload, worker, 0)
    assert result.num_evictions.sum() >= 4
    without = simulate("srpt", workload, replace(worker, prefix_caching=False), 0)
    assert without.num_recomputed_tokens.sum() >= 40
    generated = 0 if resume else without.num_recomputed_tokens.sum() - 10 * without.num_evictions.sum()
    assert result.num_recomputed_tokens.sum() == generated


@pytest.mark.parametrize("tokens_each", [16, 64])
def test_a_prompt_in_common_is_prefilled_once_and_stays_after_its_request(tokens_each: int) -> None:
    """Three requests with 128 tokens in common, each after the end of the last: two have their first token early."""
    seconds = CostModel(1.0, seconds_per_prefill_token=1.0)
    names = PrefixNames().chain(range(128 // tokens_each))
    requests = [Request(f"r{i}", 130, 4, 1000.0 * i, prefix=names, prefix_tokens=tokens_each) for i in range(3)]
    workload, worker = Workload(requests, [4] * 3), Worker(KvCache(64, 16), True, cost_model=seconds)
    waits = {}
    for caching in (False, True):
        result = simulate("fcfs", workload, replace(worker, prefix_caching=caching), 0)
        waits[caching] = (result.first_token_time - result.arrival_time).tolist()
    assert waits == {False: [131.0] * 3, True: [131.0, 3.0, 3.0]}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_common_prompt_takes_its_blocks_once_in_the_simulator(name: str) -> None:
    """40 requests with 96 tokens in common on 20 blocks: more run at once, and nothing is held at the end."""
    bounds = {"output_len_lower_bound": 15, "output_len_prediction": 20, "output_len_upper_bound": 24}
    requests = [Request(f"r{i}", 97, 24, prefix=tuple(range(6)), **bounds) for i in range(40)]  # type: ignore[arg-type]
    most = {}
    for caching in (False, True):
        worker = Worker(KvCache(20, 16), resume=True, prefix_caching=caching)
        result = simulate(name, Workload(requests, [20] * 40), worker, 0)
        assert result.timeline.kv_blocks.max() <= 20
        most[caching] = int(result.timeline.num_running.max())
    assert most[True] > most[False]


def test_names_of_parts_become_names_of_whole_blocks() -> None:
    """Parts of 512 are 32 blocks of 16; a block of 48 is three parts of 16; the last token is never looked for."""
    assert whole_blocks("abc", 512, 1537, 16) == ("abc", 32)
    assert whole_blocks("abc", 512, 1536, 16) == ("ab", 32)
    assert whole_blocks("abcdefg", 16, 112, 48) == ("cf", 1)
    assert PrefixNames().chain("aab") == (0, 1, 2)  # the second is not the first
