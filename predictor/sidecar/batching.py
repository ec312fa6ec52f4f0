"""Dynamic batching: concurrent prompts of similar size share an inference, and none waits beyond its deadline."""

import asyncio
import contextlib
import logging
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Literal, Self, TypeVar

Shed = Literal["queue_full", "deadline", "error", "stopped"]

_log = logging.getLogger(__name__)
# Weight of the newest batch in the running estimate of the seconds per unit of work.
_NEWEST = 0.2
# A prompt joins a batch that it makes at most this many times as much work as its prompts are apart.
_MAX_PADDING = 1.25
# Share of the time left that the work until a prompt's end may take by the estimate. The rest is for its error.
_SAFE_SHARE = 0.8
# Share of the time left that its own batch may take: those who come meanwhile wait as long.
_BATCH_SHARE = 0.4
# Share of its time that the work queued before a prompt may take. Refusing the newcomer costs a third of shedding
# another: it needs no task that waits. The rest is for the batch that runs, its own, and errors of the estimate.
_QUEUE_SHARE = 0.4

Item = TypeVar("Item")
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[Item, Row]):
    prompt: Item
    size: int
    arrival: float
    deadline: float
    answer: asyncio.Future[Row | Shed]


class Batcher(Generic[Item, Row]):
    """Predicts prompts in batches on worker threads; for use inside one event loop.

    Earliest deadline first, as long as all that wait can be in time by the recent speed. Where they cannot, newest
    first, and those who would be late are told immediately: in an overload the oldest have the least time left,
    and work spent on them comes too late, so that in the end nobody would be in time.

    The work of a batch is its largest prompt's size times its prompts, since all are padded to that size. On a CPU work
    is time, so a batch pays only up to some work and among prompts of similar size: prompts join the most urgent one
    while the work stays below `max_work` and little of it is padding. A batch starts when a worker is free and the next
    is full, or its oldest prompt has waited `max_wait` seconds. Idle workers share what waits.

    A prompt is shed, with the reason instead of a prediction, when more than `max_queue` prompts wait (the oldest one),
    when its turn would come too late, or when its deadline passes. An idle worker always takes a prompt, whatever the
    estimate, so that the estimate can recover. A prompt that cannot be predicted fails alone.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Item]], Iterable[Row]],
        *,
        size: Callable[[Item], int] = lambda prompt: 1,
        max_wait: float = 0.002,
        max_batch: int = 8,
        max_work: int = 8,
        max_queue: int = 256,
        num_workers: int = 1,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        """`predict` maps N prompts to N predictions; `size` is what a prompt costs apart, at least 1.

        With `num_workers` above 1, `predict` is called from several threads. `on_batch` is told the prompts and
        the seconds of each batch.
        """
        if min(max_batch, max_queue, num_workers) < 1:
            given = f"{max_batch}, {max_queue} and {num_workers}"
            raise ValueError(f"max_batch, max_queue and num_workers: must be at least 1, not {given}")
        self._predict, self._size, self._on_batch = predict, size, on_batch
        self._max_wait, self._max_batch, self._max_work, self._max_queue = max_wait, max_batch, max_work, max_queue
        self._waiting: list[_Waiting[Item, Row]] = []  # by deadline
        self._changed = asyncio.Event()
        self._stopping = False
        self._num_workers = num_workers
        self._expected_ends: dict[int, float] = {}  # of the batches on the workers, by identity
        self._seconds_per_work = 0.0
        self._workers = ThreadPoolExecutor(num_workers, thread_name_prefix="predict")
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Answer what waits, then end the workers."""
        self._stopping = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._workers.shutdown()

    @property
    def is_running(self) -> bool:
        """Whether prompts are being predicted."""
        return self._task is not None and not self._task.done() and not self._stopping

    @property
    def num_waiting(self) -> int:
        """Prompts in the queue."""
        return len(self._waiting)

    async def predict(self, prompts: Sequence[Item], time_limit: float) -> list[Row | Shed]:
        """Return one prediction per prompt, or why it has none, after at most about `time_limit` seconds."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._is_saturated(now, now + time_limit):
            return ["deadline"] * len(prompts)
        answers = [self._submit(prompt, now, now + time_limit) for prompt in prompts]
        self._shed_late(now)
        timer = loop.call_at(now + time_limit, self._give_up, answers)
        try:
            return [await answer for answer in answers]
        except BaseException:
            self._give_up(answers)
            raise
        finally:
            timer.cancel()

    def _give_up(self, answers: Sequence[asyncio.Future[Row | Shed]]) -> None:
        """Take those that wait out of the queue, and answer those that have no prediction by now."""
        given_up = set(answers)
        self._waiting = [item for item in self._waiting if item.answer not in given_up]
        for answer in answers:
            if not answer.done():
                answer.set_result("deadline")

    def _submit(self, prompt: Item, now: float, deadline: float) -> asyncio.Future[Row | Shed]:
        answer: asyncio.Future[Row | Shed] = asyncio.get_running_loop().create_future()
        if not self.is_running:
            answer.set_result("stopped")
            return answer
        if len(self._waiting) >= self._max_queue:
            self._shed(min(self._waiting, key=_arrival), "queue_full")
        insort(self._waiting, _Waiting(prompt, self._size(prompt), now, deadline, answer), key=_deadline)
        self._changed.set()
        return answer

    def _shed(self, item: _Waiting[Item, Row], reason: Shed) -> None:
        self._waiting.remove(item)
        if not item.answer.done():
            item.answer.set_result(reason)

    def _shed_late(self, now: float) -> None:
        """Answer immediately where a deadline would be missed; the newest one is left to an idle worker."""
        if self._are_in_time(self._waiting, now):
            return
        newest_first = sorted(self._waiting, key=_arrival, reverse=True)
        is_idle = len(self._expected_ends) < self._num_workers
        work = 0.0
        for item in newest_first:
            if self._is_in_time(item, work, now) or (is_idle and item is newest_first[0]):
                work += item.size
            else:
                self._shed(item, "deadline")

    def _is_saturated(self, now: float, deadline: float) -> bool:
        """Whether the work to be done before one that comes now takes most of its time: then it is not even queued."""
        if len(self._expected_ends) < self._num_workers:
            return False
        work = sum(item.size for item in self._waiting if item.deadline <= deadline)
        return work * self._seconds_per_work / self._num_workers > _QUEUE_SHARE * (deadline - now)

    def _are_in_time(self, ordered: Sequence[_Waiting[Item, Row]], now: float) -> bool:
        work = 0.0
        for item in ordered:
            if not self._is_in_time(item, work, now):
                return False
            work += item.size
        return True

    def _is_in_time(self, item: _Waiting[Item, Row], work_before: float, now: float) -> bool:
        free_at = min(self._expected_ends.values()) if len(self._expected_ends) == self._num_workers else now
        work = (work_before / self._num_workers + item.size) * self._seconds_per_work
        return max(free_at - now, 0.0) + work <= _SAFE_SHARE * (item.deadline - now)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as batches:
            while not self._stopping or self._waiting:
                self._changed.clear()
                if len(self._expected_ends) == self._num_workers or not self._waiting:
                    await self._changed.wait()
                    continue
                await self._fill()
                if batch := self._take():
                    self._start(batches, batch)

    async def _fill(self) -> None:
        """Wait until a batch is full or its oldest prompt has waited long enough."""
        loop = asyncio.get_running_loop()
        while self._waiting and not self._stopping:
            left = min(item.arrival for item in self._waiting) + self._max_wait - loop.time()
            if left <= 0 or self._is_batch():
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def _is_batch(self) -> bool:
        """Whether those that wait need no more company: they are many, or more of the first one's size are too many."""
        return len(self._waiting) >= self._max_batch or self._waiting[0].size * self._max_batch > self._max_work

    def _take(self) -> list[_Waiting[Item, Row]]:
        """Remove and return the next batch: one idle worker's share, so large that its first prompt is in time."""
        now = asyncio.get_running_loop().time()
        self._shed_late(now)
        if not self._waiting:
            return []
        ordered = self._waiting
        if not self._are_in_time(ordered, now):
            ordered = sorted(ordered, key=_arrival, reverse=True)
        left = _BATCH_SHARE * (ordered[0].deadline - now)
        in_time = left / self._seconds_per_work if self._seconds_per_work else self._max_work
        most = min(self._max_batch, -(-len(ordered) // (self._num_workers - len(self._expected_ends))))
        batch = ordered[:1]
        largest = total = batch[0].size
        for item in ordered[1:]:
            work = max(largest, item.size) * (len(batch) + 1)
            fits = work <= min(self._max_work, in_time) and work <= _MAX_PADDING * (total + item.size)
            if fits and len(batch) < most:
                batch.append(item)
                largest, total = max(largest, item.size), total + item.size
        taken = set(batch)
        self._waiting = [item for item in self._waiting if item not in taken]
        return batch

    def _start(self, batches: asyncio.TaskGroup, batch: Sequence[_Waiting[Item, Row]]) -> None:
        work = len(batch) * max(item.size for item in batch)
        self._expected_ends[id(batch)] = asyncio.get_running_loop().time() + work * self._seconds_per_work
        batches.create_task(self._predict_batch(batch, work))

    async def _predict_batch(self, batch: Sequence[_Waiting[Item, Row]], work: int) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            predictions = await loop.run_in_executor(self._workers, self._predict_each, [item.prompt for item in batch])
        finally:  # before the answers: who asks again right after one finds the worker idle
            del self._expected_ends[id(batch)]
            self._changed.set()
        for item, prediction in zip(batch, predictions, strict=True):
            if not item.answer.done():
                item.answer.set_result(prediction)
        seconds = loop.time() - start
        weight = _NEWEST if self._seconds_per_work else 1.0
        self._seconds_per_work += weight * (seconds / work - self._seconds_per_work)
        self._on_batch(len(batch), seconds)

    def _predict_each(self, prompts: Sequence[Item]) -> list[Row | Shed]:
        """Return a prediction per prompt, on a worker thread; one that cannot be predicted fails alone."""
        try:
            rows: list[Row | Shed] = list(self._predict(prompts))
            if len(rows) != len(prompts):
                raise RuntimeError(f"{len(rows)} predictions of {len(prompts)} prompts")
        # A panic in the tokenizer's Rust code is no Exception, and would end the batcher.
        except BaseException:
            if len(prompts) > 1:
                return [row for prompt in prompts for row in self._predict_each([prompt])]
            _log.exception(
                "a prompt of size %d cannot be predicted; it gets the marginal bound", self._size(prompts[0])
            )
            return ["error"]
        return rows


def _deadline(item: _Waiting[Item, Row]) -> float:
    return item.deadline


def _arrival(item: _Waiting[Item, Row]) -> float:
    return item.arrival
