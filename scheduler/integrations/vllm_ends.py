"""Whether a vLLM request that ended was answered: stop strings included, which vLLM's engine does not know of."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from vllm.v1.request import RequestStatus

from scheduler.policy import Status

ANSWERED = frozenset(
    {RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_REPETITION}
)
WINDOW = 64
"""Tokens at the end of an answer in which a stop string is looked for, in addition to its own length."""

logger = logging.getLogger(__name__)


class Ends:
    """Tells answers from requests that were aborted, refused or failed.

    vLLM finds stop strings in its front end, which then aborts the request: to the engine such an answer looks like a
    client that left. The text tells them apart. The tokenizer is loaded on a thread when the first request with stop
    strings arrives, since that takes a second; an answer that ends before counts as cancelled.
    """

    def __init__(self, load_tokenizer: Callable[[], Any]) -> None:
        """Load nothing yet; `load_tokenizer` may return None where there is no tokenizer."""
        self._load = load_tokenizer
        self._tokenizer: Future[Any] | None = None

    def expect(self, request: Any) -> None:
        """Take note of a request that arrived."""
        if self._tokenizer is None and _stop_strings(request):
            thread = ThreadPoolExecutor(1, thread_name_prefix="amin-tokenizer")
            self._tokenizer = thread.submit(self._load_or_none)
            thread.shutdown(wait=False)

    def status(self, request: Any) -> Status:
        """Return how a request ended."""
        if request.status in ANSWERED:
            return Status.ANSWERED
        stops = _stop_strings(request)
        if request.status != RequestStatus.FINISHED_ABORTED or not stops or not request.num_output_tokens:
            return Status.CANCELLED
        return Status.ANSWERED if any(stop in self._last_words(request, stops) for stop in stops) else Status.CANCELLED

    def _load_or_none(self) -> Any:
        try:
            return self._load()
        except Exception:
            logger.exception("no tokenizer: answers that a stop string ends are taken for cancelled requests")
            return None

    def _last_words(self, request: Any, stops: Sequence[str]) -> str:
        if self._tokenizer is None or not self._tokenizer.done() or (tokenizer := self._tokenizer.result()) is None:
            return ""
        return str(tokenizer.decode(list(request.output_token_ids)[-WINDOW - max(map(len, stops)) :]))


def _stop_strings(request: Any) -> Sequence[str]:
    stops = getattr(request.sampling_params, "stop", None) or ()
    return (stops,) if isinstance(stops, str) else tuple(stops)
