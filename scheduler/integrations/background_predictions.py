"""Predictions for requests as they arrive, on a thread next to a loop: in batches, with a time limit and a fallback."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scheduler.request import Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    request: Request
    prompt: Any
    deadline: float


class BackgroundPredictions:
    """Holds requests back from a policy until they are predicted, or their time is up.

    Where a batch cannot be predicted, its requests are tried one by one; one that fails alone goes on with the fallback
    immediately, and the others with their predictions.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Request], Sequence[Any]], Sequence[Request]],
        fallback: Callable[[Request], Request],
        timeout: float = 0.05,
        max_batch: int = 16,
    ) -> None:
        """Start idle; the thread starts with the first request.

        Args:
            predict: From requests and their prompts, as they were added, to the requests with bounds or forecast.
                Called on the thread, with what has come in meanwhile, in batches of similar prompt length.
            fallback: Returns a request as it is handed over without a prediction.
            timeout: Seconds that a request waits at most; inf for as long as it takes.
            max_batch: Requests to a call; more make the first ones wait for the last.
        """
        self._predict, self._fallback, self._timeout, self._max_batch = predict, fallback, timeout, max_batch
        self._held: dict[str, _Held] = {}
        self._unsent: dict[_Held, None] = {}  # in order; a set would not keep it
        self._planned: list[_Held] = []
        self._done: dict[str, Request] = {}  # predicted, and not taken yet
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self.num_fallbacks = 0
        self.busy_seconds = 0.0
        """Time that the thread spent predicting."""

    def __contains__(self, request_id: str) -> bool:
        with self._changed:
            return request_id in self._held or request_id in self._done

    def request_ids(self) -> Iterator[str]:
        """Yield what has not been taken yet, predicted or not."""
        with self._changed:
            return iter([*self._held, *self._done])

    def add(self, request: Request, prompt: Any) -> None:
        """Take a request that arrived just now."""
        self.add_all([(request, prompt)])

    def add_all(self, arrived: Iterable[tuple[Request, Any]]) -> None:
        """Take requests that arrived just now, together."""
        deadline = time.monotonic() + self._timeout
        with self._changed:
            for request, prompt in arrived:
                self._done.pop(request.request_id, None)  # an earlier one of this name, let go without a word
                self._held[request.request_id] = held = _Held(request, prompt, deadline)
                self._unsent[held] = None
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="amin-predictions", daemon=True)
                self._thread.start()

    def discard(self, request_id: str) -> None:
        """Let go of a request that will not run, predicted or not; one that was taken stays with whoever took it."""
        with self._changed:
            self._done.pop(request_id, None)
            held = self._held.pop(request_id, None)
            if held is not None:
                self._unsent.pop(held, None)

    def take(self, *, wait: bool = False) -> list[Request]:
        """Return the requests that are ready, each once; with `wait` at least one, where any is held back."""
        with self._changed:
            taken = self._ready()
            while wait and not taken and self._held:
                left = min(held.deadline for held in self._held.values()) - time.monotonic()
                self._changed.wait(None if left == math.inf else max(0.0, left))
                taken = self._ready()
            return taken

    def stop(self) -> None:
        """Let the thread end by itself, after the batch that it is at; a finalizer may call this on any thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the thread, and wait until it has ended."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _ready(self) -> list[Request]:
        now = time.monotonic()
        late = [held for held in self._held.values() if held.deadline <= now]
        taken = [*self._done.values(), *(self._give_up(held) for held in late)]
        self._done.clear()
        return taken

    def _give_up(self, held: _Held) -> Request:
        del self._held[held.request.request_id]
        self._unsent.pop(held, None)
        self.num_fallbacks += 1
        return self._fallback(held.request)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._unsent and not self._planned and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                batch = self._next_batch()
            if batch:
                started = time.perf_counter()
                self._complete(batch)
                self.busy_seconds += time.perf_counter() - started

    def _next_batch(self) -> list[_Held]:
        """Return what is predicted next; what comes in waits until all that came before is done, so nobody starves."""
        if not self._planned:
            self._planned = sorted(self._unsent, key=lambda held: held.request.num_prompt_tokens)
            self._unsent.clear()
        batch, self._planned = self._planned[: self._max_batch], self._planned[self._max_batch :]
        return [held for held in batch if self._is_held(held)]

    def _complete(self, batch: Sequence[_Held]) -> None:
        """Predict for requests and hand over those that still wait."""
        try:
            predicted = self._predict([held.request for held in batch], [held.prompt for held in batch])
            pairs = list(zip(batch, predicted, strict=True))
        except BaseException as error:  # a tokenizer's panic is not an Exception, and must not end the thread
            if len(batch) > 1:
                for held in batch:
                    if self._is_held(held):
                        self._complete([held])
                return
            logger.error("request %s goes on without a prediction: %s", batch[0].request.request_id, error)
            pairs = []
        with self._changed:
            for held, request in pairs:
                if self._is_held(held):
                    del self._held[request.request_id]
                    self._done[request.request_id] = request
            if not pairs and self._is_held(batch[0]):
                self._held[batch[0].request.request_id] = replace(batch[0], deadline=-math.inf)
            self._changed.notify_all()

    def _is_held(self, held: _Held) -> bool:
        """Return whether a request still waits; given up meanwhile, it is gone, or another one has its name."""
        return self._held.get(held.request.request_id) is held
