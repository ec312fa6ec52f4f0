"""Predictions at arrival: in batches, on a thread beside the scheduling loop, with a time limit and a fallback."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from scheduler.arrival_source import ArrivalSource
from scheduler.request import Request

MAX_BATCH = 8
"""On a CPU more only makes the first ones wait for the last."""
POLL_SECONDS = 0.001


class PredictedArrivals(ArrivalSource):
    """Hands over a request when its prediction is there, or at its time limit with the fallback.

    A thread plays the server's front end: it wakes at each arrival and predicts, as one batch, what has come in
    since. Data flows one way: arrivals to the thread, finished requests to the loop, which polls.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        predict: Callable[[Sequence[int]], Sequence[Request]],
        fallback: Callable[[Request], Request],
        clock: Callable[[], float],
        timeout: float | None,
    ) -> None:
        """Prepare; `start` starts the thread.

        Args:
            requests: At least one, with arrival times on `clock`.
            predict: Returns the requests at some indices with what is predicted of them; called on the thread.
            fallback: Returns a request with what stands in for a prediction.
            clock: The executor's clock, in seconds.
            timeout: Seconds from its arrival on that a request waits for its prediction; None for as long as it takes.
        """
        self._requests, self._predict, self._fallback, self._clock = requests, predict, fallback, clock
        self._timeout = math.inf if timeout is None else timeout
        self._order = sorted(range(len(requests)), key=lambda i: (requests[i].arrival_time, i))
        self._num_arrived = 0
        self._pending: dict[int, float] = {}  # arrived and not handed over: index -> time limit
        self._done: SimpleQueue[tuple[int, Request]] = SimpleQueue()
        self._error: Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="predictions", daemon=True)
        self.next_time = requests[self._order[0]].arrival_time
        self.handed_over: dict[int, Request] = {}
        """By index, as the policy got them."""
        self.times: dict[int, float] = {}
        """When the policy got them."""
        self.fallbacks: set[int] = set()
        self.busy_seconds = 0.0
        """Time that the thread spent predicting."""

    def start(self) -> None:
        """Start predicting; the clock must run."""
        self._thread.start()

    def take(self, now: float) -> Sequence[tuple[int, Request]]:
        """Return the requests whose prediction has come, and those whose time limit has passed.

        Raises:
            Exception: What went wrong on the thread.
        """
        if self._error is not None:
            raise self._error
        done = [self._done.get() for _ in range(self._done.qsize())]
        now = max(now, self._clock())  # nothing is done before it has arrived
        self._note_arrivals(now)
        taken = [(index, request) for index, request in done if self._pending.pop(index, None) is not None]
        for index in [index for index, limit in self._pending.items() if limit <= now]:
            del self._pending[index]
            self.fallbacks.add(index)
            taken.append((index, self._fallback(self._requests[index])))
        for index, request in taken:
            self.handed_over[index], self.times[index] = request, now
        if self._pending:
            self.next_time = now + POLL_SECONDS
        return taken

    def _note_arrivals(self, now: float) -> None:
        order, requests = self._order, self._requests
        while self._num_arrived < len(order) and requests[order[self._num_arrived]].arrival_time <= now:
            index = order[self._num_arrived]
            self._pending[index] = requests[index].arrival_time + self._timeout
            self._num_arrived += 1
        left = self._num_arrived < len(order)
        self.next_time = requests[order[self._num_arrived]].arrival_time if left else math.inf

    def _run(self) -> None:
        try:
            start = 0
            while start < len(self._order) and not self._closing.is_set():
                wait = self._requests[self._order[start]].arrival_time - self._clock()
                if wait > 0:
                    self._closing.wait(wait)
                    continue
                start = self._predict_from(start)
        except Exception as error:  # the loop raises it
            self._error = error

    def _predict_from(self, start: int) -> int:
        """Predict for the requests that have arrived, from the `start`-th on; return where the next batch starts."""
        now, end = self._clock(), start
        while end < min(start + MAX_BATCH, len(self._order)) and self._arrival(end) <= now:
            end += 1
        batch = [index for index in self._order[start:end] if now < self._requests[index].arrival_time + self._timeout]
        if batch:
            started = time.perf_counter()
            for item in zip(batch, self._predict(batch), strict=True):
                self._done.put(item)
            self.busy_seconds += time.perf_counter() - started
        return end

    def _arrival(self, place: int) -> float:
        return self._requests[self._order[place]].arrival_time

    def close(self) -> None:
        """Stop the thread, after the batch that it is at."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
