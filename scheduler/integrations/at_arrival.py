"""Predictions at arrival, beside an engine's loop: on a thread, in batches, with a time limit and a fallback."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

from scheduler.request import Request

MAX_BATCH = 8
"""On a CPU more only makes the first ones wait for the last."""

logger = logging.getLogger(__name__)

Complete = Callable[[Sequence[Request], Sequence[Sequence[int]]], Sequence[Request]]
"""From requests and their prompts' token ids to the requests with bounds or forecast."""


class AtArrival:
    """Holds requests back from a policy until they are predicted, or their time is up."""

    def __init__(self, complete: Complete, fallback: Callable[[Request], Request], timeout: float = 0.05) -> None:
        """Start idle; the thread starts with the first request.

        Args:
            complete: Called on the thread, with what has come in meanwhile, the oldest first.
            fallback: Returns a request as it is handed over without a prediction.
            timeout: Seconds that a request waits at most.
        """
        self._complete, self._fallback, self._timeout = complete, fallback, timeout
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="amin-predictions")
        self._waiting: dict[str, tuple[Request, Sequence[int], float]] = {}  # by id, with the end of its time
        self._batch: futures.Future[Sequence[Request]] | None = None
        self._sent: Sequence[Request] = ()
        self.num_fallbacks = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def request_ids(self) -> Iterator[str]:
        """Yield what is held back."""
        return iter(self._waiting)

    def add(self, request: Request, token_ids: Sequence[int]) -> None:
        """Take a request that arrived just now."""
        self._waiting[request.request_id] = request, token_ids, time.monotonic() + self._timeout
        self._send()

    def discard(self, request_id: str) -> None:
        """Forget a request that will not run."""
        del self._waiting[request_id]

    def take(self, *, wait: bool = False) -> list[Request]:
        """Return the requests that are ready, each once; with `wait` at least one, where any is held back."""
        taken = self._ready()
        while wait and not taken and self._waiting:
            assert self._batch is not None
            limit = min(end for _, _, end in self._waiting.values()) - time.monotonic()
            futures.wait([self._batch], max(0.0, limit))
            taken = self._ready()
        return taken

    def _ready(self) -> list[Request]:
        taken = self._predicted()
        now = time.monotonic()
        for request, _, end in list(self._waiting.values()):
            if end <= now:
                del self._waiting[request.request_id]
                self.num_fallbacks += 1
                taken.append(self._fallback(request))
        return taken

    def _predicted(self) -> list[Request]:
        if self._batch is None or not self._batch.done():
            return []
        batch, self._batch = self._batch, None
        taken: list[Request] = []
        if (error := batch.exception()) is not None:
            logger.error("predictions failed, requests go on without: %s", error, exc_info=error)
            self._expire()
            self._send()
            return taken
        for sent, request in zip(self._sent, batch.result(), strict=True):
            # Given up meanwhile, it is gone, or another request has its name.
            if self._waiting.get(sent.request_id, (None,))[0] is sent:
                del self._waiting[sent.request_id]
                taken.append(request)
        self._send()
        return taken

    def _expire(self) -> None:
        """End the time of all that waits: what failed once would fail again."""
        self._waiting = {name: (request, ids, -math.inf) for name, (request, ids, _) in self._waiting.items()}

    def _send(self) -> None:
        """Let the thread predict what is waiting, unless it is at work."""
        now = time.monotonic()
        batch = [(request, ids) for request, ids, end in self._waiting.values() if end > now]
        if self._batch is None and batch:
            self._sent, prompts = zip(*batch[:MAX_BATCH], strict=True)
            self._batch = self._thread.submit(self._complete, self._sent, prompts)
