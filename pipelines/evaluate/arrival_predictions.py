"""Predictions at arrival for the loop of a measured run."""

import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence

from scheduler.arrival_source import ArrivalSource
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.request import Request

POLL_SECONDS = 0.001


class PredictedArrivals(ArrivalSource):
    """Hands over a request when its prediction is there, or at its time limit with the fallback.

    A thread plays the server's front end: it wakes at each arrival and passes on what has come in since to
    `BackgroundPredictions`. Data flows one way: arrivals to the threads, finished requests to the loop, which polls.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        predict: Callable[[Sequence[int]], Sequence[Request]],
        fallback: Callable[[Request], Request],
        clock: Callable[[], float],
        timeout: float | None,
        max_batch: int = 16,
    ) -> None:
        """Prepare; `start` starts the thread.

        Args:
            requests: At least one, with arrival times on `clock`.
            predict: Returns the requests at some indices with what is predicted of them; called on a thread.
            fallback: Returns a request with what stands in for a prediction.
            clock: The executor's clock, in seconds.
            timeout: Seconds from its arrival on that a request waits for its prediction; None for as long as it takes.
            max_batch: Indices to a call of `predict`.
        """
        self._requests, self._fallback, self._clock = requests, fallback, clock
        self._arrival_times = sorted(request.arrival_time for request in requests)
        self._index = {request.request_id: index for index, request in enumerate(requests)}
        self._order = sorted(range(len(requests)), key=lambda i: (requests[i].arrival_time, i))
        self._predictions = BackgroundPredictions(
            lambda _, indices: predict(indices),
            self._without_prediction,
            math.inf if timeout is None else timeout,
            max_batch,
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._arrive, name="arrivals", daemon=True)
        self.next_time = requests[self._order[0]].arrival_time
        self.handed_over: dict[int, Request] = {}
        """By index, as the policy got them."""
        self.times: dict[int, float] = {}
        """When the policy got them."""
        self.fallbacks: set[int] = set()

    @property
    def busy_seconds(self) -> float:
        """Time spent predicting."""
        return self._predictions.busy_seconds

    def start(self) -> None:
        """Let requests arrive; the clock must run."""
        self._thread.start()

    def take(self, now: float) -> Sequence[tuple[int, Request]]:
        """Return the requests whose prediction has come, and those whose time limit has passed."""
        taken = [(self._index[request.request_id], request) for request in self._predictions.take()]
        now = max(now, self._clock())  # nothing is done before it has arrived
        for index, request in taken:
            self.handed_over[index], self.times[index] = request, now
        self.num_held = bisect_right(self._arrival_times, now) - len(self.handed_over)
        is_complete = len(self.handed_over) == len(self._requests)
        self.next_time = math.inf if is_complete else now + POLL_SECONDS
        return taken

    def _without_prediction(self, request: Request) -> Request:
        self.fallbacks.add(self._index[request.request_id])
        return self._fallback(request)

    def _arrive(self) -> None:
        start, order, requests = 0, self._order, self._requests
        while start < len(order) and not self._closing.is_set():
            wait = requests[order[start]].arrival_time - self._clock()
            if wait > 0:
                self._closing.wait(wait)
                continue
            now, end = self._clock(), start + 1
            while end < len(order) and requests[order[end]].arrival_time <= now:
                end += 1
            self._predictions.add_all((requests[index], index) for index in order[start:end])
            start = end

    def close(self) -> None:
        """Stop the threads, after the batch that they are at."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._predictions.close()
