"""Prompts that begin alike are stored once, and a policy next to an engine counts them so."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.kv_cache import KvCache
from scheduler.policies import POLICIES, Reads, make_policy, policies_that_read
from scheduler.policy import Status
from scheduler.prefixes.shared import SharedPrefixes
from scheduler.request import Request
from scheduler.worker import Worker

ONLINE = sorted(POLICIES.keys() - policies_that_read(Reads.OUTPUT_LEN))
SIZE = 16


def chains(depth: int) -> st.SearchStrategy[tuple[str, ...]]:
    """Prefixes of a binary tree: a block is named by the path to it."""
    paths = st.text("ab", min_size=0, max_size=depth)
    return paths.map(lambda path: tuple(path[: i + 1] for i in range(len(path))))


@given(st.lists(chains(4), max_size=8), st.lists(st.tuples(st.sampled_from("trx"), st.integers(0, 7)), max_size=40))
def test_common_and_held_blocks_are_those_counted_by_hand(prefixes: list[tuple[str, ...]], steps: list) -> None:  # type: ignore[type-arg]
    """After any admissions, evictions and ends, each in any order."""
    shared = SharedPrefixes()
    live = dict(enumerate(prefixes))
    taken: dict[int, tuple[str, ...]] = {}
    for index, prefix in live.items():
        shared.add(index, prefix)
    for action, index in steps:
        known = Counter(block for prefix in live.values() for block in prefix)
        common = tuple(block for block in live.get(index, ()) if known[block] > 1)
        held = {block for blocks in taken.values() for block in blocks}
        assert shared.num_common(index) == len(common)
        assert shared.num_new(index) == len(set(common) - held)
        if action == "t" and index in live and index not in taken:
            shared.take(index)
            taken[index] = common
        elif action == "r":
            shared.release(index)
            taken.pop(index, None)
        elif action == "x":
            shared.remove(index)
            taken.pop(index, None)
            live.pop(index, None)
        assert shared.num_held == len({block for blocks in taken.values() for block in blocks})
        assert shared.num_taken(index) == len(taken.get(index, ()))
    for index in range(8):
        shared.remove(index)
    assert not shared
    assert shared.num_held == 0


@pytest.mark.parametrize("name", ONLINE)
def test_a_prompt_that_everyone_has_takes_its_blocks_once(name: str) -> None:
    """24 requests with 96 tokens in common on 14 blocks: what runs fits, counted block by block, and all end."""
    worker = Worker(KvCache(14, SIZE), resume=True, prefix_caching=True)
    runner = PolicyRunner(make_policy(name, worker, np.random.default_rng(0)))
    prefix = tuple(range(6))
    for i in range(24):
        bounds = {"output_len_lower_bound": 15, "output_len_prediction": 20, "output_len_upper_bound": 24}
        runner.add(Request(str(i), 97, 40, prefix=prefix, **bounds))  # type: ignore[arg-type]
    generated = dict.fromkeys(runner.request_ids(), 0)
    most = 0
    for _ in range(400):
        runner.decide()
        running = list(runner.running_ids())
        own = [KvCache(14, SIZE).blocks(generated[request_id] + 2) for request_id in running]
        shares = len(prefix) if running else 0
        assert sum(own) + shares == runner.running.next_blocks <= 14
        most = max(most, len(running))
        for request_id in running:
            generated[request_id] += 1
            if generated[request_id] == 20:
                runner.end(request_id, Status.ANSWERED, 20)
        if not len(runner):
            break
        runner.follow(generated.__getitem__)
    assert not len(runner)
    assert runner.running.next_blocks == 0
    assert most >= 4 or name in ("fcfs-reserve", "sglang", "past-future", "amax")  # those reserve more than the answer


def test_blocks_that_others_hold_are_not_given_away() -> None:
    """What the engine holds outside the policy's hands narrows admissions, and evicts where it grows."""
    runner = PolicyRunner(make_policy("fcfs", Worker(KvCache(10, SIZE), resume=True), np.random.default_rng(0)))
    runner.num_outside_blocks = 4
    for i in range(5):
        runner.add(Request(str(i), 30, 40))
    assert runner.decide() == []
    assert list(runner.running_ids()) == ["0", "1", "2"]
    runner.num_outside_blocks = 7
    assert runner.decide() == ["2", "1"]


def test_several_tokens_in_an_iteration_are_as_many_iterations() -> None:
    """One request got three tokens, one got one, one none: the clock moves by three, and the counts agree."""
    runner = PolicyRunner(
        make_policy("amin-survival", Worker(KvCache(50, SIZE), resume=True), np.random.default_rng(0))
    )
    for name in "abc":
        runner.add(Request(name, 30, 40, output_len_lower_bound=20))
    runner.decide()
    assert runner.follow({"a": 3, "b": 1, "c": 0}.__getitem__) == []
    runner.decide()
    assert runner.running.clock == 3
    assert [runner.running.num_generated(index) for index in runner.running] == [3, 1, 0]
