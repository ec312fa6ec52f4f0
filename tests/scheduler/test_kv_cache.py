import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.errors import InputError
from scheduler.kv_cache import KvCache
from scheduler.worker import Worker

PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)
BLOCK_SIZES = st.integers(1, 17)


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_running": 0}, "max_running is 0, must be >= 1"),
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0, must be >= 1"),
        ({"watermark_blocks": -1}, "watermark_blocks is -1, must be >= 0"),
    ],
)
def test_a_limit_out_of_range_is_an_input_error(values: dict[str, int], message: str) -> None:
    """The message names the field and its value."""
    with pytest.raises(InputError) as raised:
        Worker(KvCache(10), **values)
    assert str(raised.value) == message
