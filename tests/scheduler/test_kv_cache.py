from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.errors import InputError
from scheduler.kv_cache import FuturePeak, KvCache

SlowPeak = Callable[[Sequence[tuple[int, int]], int], int]
PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)
BLOCK_SIZES = st.integers(1, 17)
SETS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=12)


def profile(kv_cache: KvCache, items: Sequence[tuple[int, int]]) -> FuturePeak:
    """Return the profile of (held, remaining) pairs, built in one go."""
    held, remaining = np.array(items, dtype=np.int64).reshape(-1, 2).T
    return FuturePeak(kv_cache, held, remaining)


@PROPERTY
@given(BLOCK_SIZES, SETS)
def test_the_future_peak_is_that_of_a_simulation(slow_peak: SlowPeak, block_size: int, items: list) -> None:
    """No iteration until the last completion uses more blocks than the profile says, and one uses as many."""
    assert profile(KvCache(1, block_size), items).blocks == slow_peak(items, block_size)


@PROPERTY
@given(BLOCK_SIZES, SETS)
def test_adding_one_by_one_equals_building_at_once(block_size: int, items: list) -> None:
    """The order in which a set comes together does not matter, not even for what fits next."""
    kv_cache = KvCache(10**6, block_size)
    grown = profile(kv_cache, [])
    for count, (held, remaining) in enumerate(items, 1):
        assert grown.try_add(held, remaining)
        assert grown.blocks == profile(kv_cache, items[:count]).blocks


@PROPERTY
@given(BLOCK_SIZES, SETS, st.integers(1, 60), st.integers(0, 12))
def test_a_request_is_rejected_exactly_when_the_peak_would_not_fit(
    slow_peak: SlowPeak, block_size: int, items: list, num_blocks: int, num_running: int
) -> None:
    """From a set that fits, `try_add` agrees with the simulated peak and leaves no trace of what it rejects."""
    kv_cache = KvCache(num_blocks, block_size)
    kept = items[:num_running]
    while slow_peak(kept, block_size) > num_blocks:
        kept.pop()
    grown = profile(kv_cache, kept)
    for item in items[num_running:]:
        fits = slow_peak([*kept, item], block_size) <= num_blocks
        assert grown.try_add(*item) == fits
        if fits:
            kept.append(item)
        assert grown.blocks == slow_peak(kept, block_size)


def test_many_requests_outgrow_the_first_arrays() -> None:
    """The profile of 100 requests, added one by one, is that of all of them."""
    rng = np.random.default_rng(0)
    items = list(zip(rng.integers(0, 50, 100).tolist(), rng.integers(1, 400, 100).tolist(), strict=True))
    kv_cache = KvCache(10**6, 16)
    grown = profile(kv_cache, [])
    assert all(grown.try_add(held, remaining) for held, remaining in items)
    assert grown.blocks == profile(kv_cache, items).blocks


def test_a_peak_worked_by_hand() -> None:
    """Holding 3 with 2 to come and 1 with 5 to come peaks at 8 tokens: (3 + 2) + (1 + 2), then 1 + 5."""
    assert profile(KvCache(8), [(3, 2), (1, 5)]).blocks == 8
    assert profile(KvCache(8), [(3, 2)]).try_add(1, 5)
    assert not profile(KvCache(7), [(3, 2)]).try_add(1, 5)


@given(st.integers(0, 10**6), BLOCK_SIZES)
@PROPERTY
def test_blocks_hold_the_tokens_and_no_block_is_empty(num_tokens: int, block_size: int) -> None:
    """The block count is the ceiling of tokens / block_size, for a number and for an array."""
    blocks = KvCache(1, block_size).blocks(num_tokens)
    assert (blocks - 1) * block_size < num_tokens <= blocks * block_size
    array = KvCache(1, block_size).blocks(np.array([num_tokens, 0, 1, block_size, block_size + 1]))
    assert array.tolist() == [blocks, 0, 1, 1, 2]


@given(st.integers(1, 10**6), BLOCK_SIZES)
@PROPERTY
def test_a_budget_is_never_exceeded_and_less_than_a_block_is_lost(kv_budget: int, block_size: int) -> None:
    """`from_budget` rounds down to whole blocks."""
    if kv_budget < block_size:
        return
    kv_cache = KvCache.from_budget(kv_budget, block_size)
    assert kv_cache.block_size == block_size
    assert 0 <= kv_budget - kv_cache.num_blocks * block_size < block_size


@pytest.mark.parametrize(("kv_budget", "block_size"), [(0, 1), (-5, 1), (15, 16), (100, 0), (100, -1), (0, 0)])
def test_a_budget_without_a_block_is_an_input_error(kv_budget: int, block_size: int) -> None:
    """The one-line message names the field and both values."""
    with pytest.raises(InputError) as raised:
        KvCache.from_budget(kv_budget, block_size)
    message = str(raised.value)
    assert "kv_budget" in message
    assert f"is {kv_budget} tokens" in message
    assert f"block_size {block_size}" in message
    assert "\n" not in message
