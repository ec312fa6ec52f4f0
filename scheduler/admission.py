"""The pieces that policies share: who makes room, and who is let in."""

import math
from collections.abc import Callable, Iterable, Sequence

from scheduler.batch import RunningBatch
from scheduler.future_peak import FuturePeak
from scheduler.policy import Decision, Policy


def evict_while_full(running: RunningBatch, num_blocks: int, order: Iterable[int]) -> list[int]:
    """Return the shortest prefix of `order` without which the next iteration fits `num_blocks`."""
    excess = running.next_blocks - num_blocks
    if excess <= 0:
        return []
    evicted = []
    for index in order:
        evicted.append(index)
        excess -= running.blocks(index)
        if excess <= 0:
            break
    return evicted


def evict_and_requeue(
    policy: Policy, running: RunningBatch, order: Iterable[int], key: Callable[[int], float] | None = None
) -> list[int]:
    """Return which of `order` are evicted so that the next iteration fits.

    They wait again by `key`, or else by the key they came with.
    """
    if policy.waiting.has_priorities:
        order = sorted(order, key=lambda index: -policy.waiting.request(index).priority)
    preempted = evict_while_full(running, policy.worker.kv_cache.num_blocks, order)
    for index in preempted:
        kept = running.num_generated(index) if policy.worker.resume else 0
        policy.waiting.requeue(index, kept, key(index) if key else None)
    return preempted


def admit_while_current_fits(policy: Policy, running: RunningBatch) -> list[int]:
    """Pop waiting requests in order while the next iteration fits; return their indices.

    Stops at the first that does not fit, and never leaves the worker idle.
    """
    waiting, worker, size = policy.waiting, policy.worker, policy.worker.kv_cache.block_size
    admitted: list[int] = []
    if not waiting:
        return admitted
    free = worker.kv_cache.num_blocks - running.next_blocks
    slots, watermark = worker.free_slots(len(running)), worker.watermark_blocks
    while waiting:
        free += -(waiting.head()[1] + 1) // size - waiting.head_common_blocks()
        if (free < watermark or slots <= len(admitted)) and (admitted or len(running)):
            break
        admitted.append(waiting.pop())
    return admitted


def admit_or_evict(
    policy: Policy,
    running: RunningBatch,
    victims: Callable[[RunningBatch], Iterable[int]],
    key: Callable[[int], float] | None = None,
) -> Decision:
    """Return the admissions that fit now, or else the evictions that the next iteration needs, in order of `victims`.

    No request is admitted in an iteration that evicts (vLLM v1 `Scheduler.schedule`).
    """
    if running.next_blocks <= policy.worker.kv_cache.num_blocks:
        return Decision((), admit_while_current_fits(policy, running), math.inf)
    return Decision(evict_and_requeue(policy, running, victims(running), key))


def admit_while_peak_fits(
    policy: Policy,
    running: RunningBatch,
    preempted: Sequence[int],
    peak: FuturePeak,
    estimate: Callable[[int], int],
    reserve: Callable[[int, Sequence[int]], int] | None = None,
    renew: Callable[[], None] | None = None,
) -> Decision:
    """Pop waiting requests in order while the future peak stays within the cache; return the whole decision.

    Stops at the first that does not fit, and never leaves the worker idle.

    Args:
        policy: Whose queue and worker they are.
        running: The running requests, those to be preempted included.
        preempted: Requests that make room; they are in the queue again.
        peak: Profile of the other running requests; the admitted ones are added.
        estimate: Output length of a request; it is taken to end with that token, or else with the next.
        reserve: Blocks that the admission of a request, after others in this decision, leaves free in the next
            iteration. Default: the watermark.
        renew: Gives new estimates to what has outlived its own. Most decisions do not depend on them.
    """
    waiting, worker, clock = policy.waiting, policy.worker, running.clock
    admitted: list[int] = []
    valid_for = math.inf
    if not waiting:
        return Decision((), (), valid_for)
    size, free = worker.kv_cache.block_size, worker.kv_cache.num_blocks - running.next_blocks
    for index in preempted:
        free += running.blocks(index)
    count = len(running) - len(preempted)
    slots = worker.free_slots(count)
    while waiting:
        index, held, num_generated = waiting.head()
        remaining, common = max(1, estimate(index) - num_generated), waiting.head_common_blocks()
        free += -(held + 1) // size - common
        if count:
            if slots <= len(admitted) or free < (reserve(index, admitted) if reserve else worker.watermark_blocks):
                break  # until a request ends
            wait = peak.try_add(index, clock, held, remaining, common)
            if wait < 0:
                assert renew is not None, "bounds are outlived, and nobody renews them"
                renew()
                wait = peak.try_add(index, clock, held, remaining, common)
            if wait:
                valid_for = wait
                break
        else:
            peak.add(index, clock, held, remaining, common)
        waiting.pop()
        admitted.append(index)
        count += 1
    return Decision(preempted, admitted, valid_for)
