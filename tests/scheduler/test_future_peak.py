from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.batch import RunningBatch
from scheduler.future_peak import FuturePeak
from scheduler.kv_cache import KvCache

SlowPeak = Callable[[Sequence[tuple[int, int]], int], int]
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
BLOCK_SIZES = st.integers(1, 17)
ITEMS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=12)


def profile(kv_cache: KvCache, items: Sequence[tuple[int, int]], clock: int = 0) -> FuturePeak:
    """Return the profile of (held, remaining) pairs."""
    peak = FuturePeak(kv_cache)
    for index, (held, remaining) in enumerate(items):
        peak.add(index, clock, held, remaining)
    return peak


@PROPERTY
@given(BLOCK_SIZES, ITEMS, st.tuples(st.integers(0, 40), st.integers(1, 30)), st.integers(1, 60), st.integers(0, 2000))
def test_a_request_fits_exactly_when_no_iteration_is_too_full(
    slow_peak: SlowPeak, block_size: int, items: list, candidate: tuple[int, int], num_blocks: int, clock: int
) -> None:
    """The check agrees with a plain simulation of the set, from a set that fits, wherever the clock stands."""
    while slow_peak(items, block_size) > num_blocks:
        items.pop()
    peak = profile(KvCache(num_blocks, block_size), items, clock)
    fits = slow_peak([*items, candidate], block_size) <= num_blocks
    assert (peak.try_add(99, clock, *candidate) == 0) == fits


@PROPERTY
@given(BLOCK_SIZES, ITEMS, st.tuples(st.integers(0, 40), st.integers(1, 30)), st.integers(1, 60))
def test_a_request_never_fits_sooner_than_said(
    slow_peak: SlowPeak, block_size: int, items: list, candidate: tuple[int, int], num_blocks: int
) -> None:
    """Until the iteration that the check names, a request that waits does not fit, whatever the profile remembers."""
    while slow_peak(items, block_size) > num_blocks:
        items.pop()
    peak = profile(KvCache(num_blocks, block_size), items)
    clock = 0
    for _ in range(40):
        wait = peak.try_add(99, clock, *candidate)
        for later in range(clock, clock + wait):
            left = [(held + later, end - later) for held, end in items if end > later]
            assert slow_peak([*left, candidate], block_size) > num_blocks
        clock += wait
        if not wait:
            break


@PROPERTY
@given(BLOCK_SIZES, st.data())
def test_adding_and_removing_leaves_what_a_fresh_profile_has(block_size: int, data: st.DataObject) -> None:
    """After any history of admissions, ends, stalls and passing time the profile is that of the requests it holds."""
    kv_cache = KvCache(10**6, block_size)
    peak, running, remaining = FuturePeak(kv_cache), RunningBatch(kv_cache), dict[int, int]()
    for index in range(data.draw(st.integers(1, 25))):
        held = data.draw(st.integers(0, 300))
        remaining[index] = data.draw(st.integers(1, 900))
        running.append(index, held, 0)
        peak.add(index, running.clock, held, remaining[index])
        steps = data.draw(st.sampled_from([0, 0, 1, 7, 400, 1500]))
        if steps:
            stalled = data.draw(st.lists(st.sampled_from(list(running)), unique=True)) if steps == 1 else []
            running.advance(steps, stalled)
            remaining = {i: max(0, left - (0 if i in stalled else steps)) for i, left in remaining.items()}
        may_end = [i for i in running if i not in running.stalled]
        ended = data.draw(st.lists(st.sampled_from(may_end), unique=True, max_size=2)) if may_end else []
        for i in ended:
            peak.finish(i)
        peak.follow(running)
        running.stalled = ()
        for i in ended:
            running.remove(i)
            del remaining[i]
    left = [(running.num_tokens(i), remaining[i]) for i in running if remaining[i]]
    fresh = profile(kv_cache, left, running.clock)
    horizon = 3000
    for one in (peak, fresh):
        one._reserve(running.clock, running.clock + horizon, 0)
    start = running.clock + 1
    used = [p._used[start - p._origin : start - p._origin + horizon].tolist() for p in (peak, fresh)]
    assert used[0] == used[1]


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(-2, 50)), min_size=1, max_size=8)


@PROPERTY
@given(BLOCK_SIZES, st.integers(0, 2000), SPANS, st.sampled_from([1, -1]))
def test_changes_made_together_are_those_made_one_by_one(
    block_size: int, clock: int, pairs: list[tuple[int, int]], sign: int
) -> None:
    """Requests that hold so much and last so long, some of which have ended, change the profile alike both ways."""
    spans = [(held - clock, clock + lasting) for held, lasting in pairs]
    together, singly = (profile(KvCache(10**6, block_size), [(9, 40)], clock) for _ in range(2))
    together._change_together(clock, spans, sign)
    singly._change(clock, spans, sign)
    assert together._origin == singly._origin
    assert together._used.tolist() == singly._used.tolist()


@PROPERTY
@given(BLOCK_SIZES, ITEMS, ITEMS, st.tuples(st.integers(0, 40), st.integers(1, 30)), st.integers(1, 90), st.data())
def test_new_estimates_are_asked_for_only_where_they_count(
    slow_peak: SlowPeak,
    block_size: int,
    items: list,
    outlived: list,
    candidate: tuple,
    num_blocks: int,
    data: st.DataObject,
) -> None:
    """What is said without the new estimates holds whatever these are."""
    clock = 7
    peak = profile(KvCache(num_blocks, block_size), items, clock)
    for place, (held, _) in enumerate(outlived):
        peak.add(100 + place, clock - 1, held - 1, 1)
    peak.outlive(range(100, 100 + len(outlived)))
    said = peak.try_add(99, clock, *candidate)
    lasting = [data.draw(st.integers(1, 40)) for _ in outlived]
    others = [*items, *((held, each) for (held, _), each in zip(outlived, lasting, strict=True))]
    if said < 0:
        assert outlived
        peak.extend(clock, {100 + place: clock + each for place, each in enumerate(lasting)})
        assert not peak.outlived
        said = peak.try_add(99, clock, *candidate)
    meanwhile = [(held, min(left, candidate[1])) for held, left in others]
    assert (said == 0) == (slow_peak([*meanwhile, candidate], block_size) <= num_blocks)


@PROPERTY
@given(BLOCK_SIZES, st.integers(1, 400), st.data())
def test_the_batch_knows_its_blocks_and_how_long_they_fit(
    block_size: int, num_blocks: int, data: st.DataObject
) -> None:
    """Blocks kept up to date are those counted afresh, and the number of iterations that fit is the largest one."""
    kv_cache = KvCache(num_blocks, block_size)
    running = RunningBatch(kv_cache)
    for index in range(data.draw(st.integers(1, 12))):
        running.append(index, data.draw(st.integers(0, 50)), data.draw(st.integers(0, 9)))
        running.advance(data.draw(st.integers(1, 70)))
        running.advance(1, data.draw(st.lists(st.sampled_from(list(running)), unique=True)))
        if data.draw(st.booleans()):
            running.remove(data.draw(st.sampled_from(list(running))))

    def blocks(later: int) -> int:
        return sum(kv_cache.blocks(running.num_tokens(i) + later) for i in running)

    assert running.next_blocks == blocks(1)
    assert running.current_blocks == blocks(0)
    assert running.total_tokens == sum(running.num_tokens(i) for i in running)
    assert [running.blocks(i) for i in running] == [kv_cache.blocks(running.num_tokens(i) + 1) for i in running]
    indices, held, generated = running.columns()
    assert indices.tolist() == list(running)
    assert held.tolist() == [running.num_tokens(i) for i in running]
    assert generated.tolist() == [running.num_generated(i) for i in running]
    fit = running.num_iterations_that_fit()
    if not len(running):
        assert fit == float("inf")
    else:
        assert fit == 0 or blocks(fit) <= num_blocks
        assert blocks(fit + 1) > num_blocks


def test_a_peak_worked_by_hand() -> None:
    """Holding 3 with 2 to come and 1 with 5 to come peaks at 8 tokens: (3 + 2) + (1 + 2), then 1 + 5."""
    assert profile(KvCache(8), [(3, 2)]).try_add(2, 0, 1, 5) == 0
    assert profile(KvCache(7), [(3, 2)]).try_add(2, 0, 1, 5) == 1  # an iteration later it holds 1 less


def test_many_tokens_to_come_outgrow_the_first_arrays() -> None:
    """Requests of more tokens than the first arrays hold are counted in full."""
    peak = profile(KvCache(10_000), [(2_000, 5_000)])
    assert peak.try_add(2, 0, 0, 5_000) > 0
    assert peak.try_add(2, 0, 0, 1_500) == 0
    expected = 2_000 + np.arange(1, 5001)
    expected[:1500] += np.arange(1, 1501)
    assert np.array_equal(peak._used[1:5001], expected)


@pytest.mark.parametrize("remaining", [1, 3])
def test_a_request_that_stalls_is_expected_later(remaining: int) -> None:
    """One that got no token holds as much as before and ends one iteration later."""
    kv_cache = KvCache(100)
    peak, running = FuturePeak(kv_cache), RunningBatch(kv_cache)
    running.append(0, 4, 0)
    peak.add(0, 0, 4, remaining)
    running.advance(1, [0])
    peak.follow(running)
    assert peak._used[2 : remaining + 3].tolist() == [*range(5, 5 + remaining), 0]
