"""Predictions in vLLM's process that follow the answers: what ended corrects the level, and survives a restart."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.request_bounds import RequestBounds
from pipelines.watched_folder import WatchedFolder
from predictor.bounds.online import OnlineCalibration
from predictor.sidecar.state import read_state, write_state
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.policy import Status
from scheduler.request import Request

SAVE_SECONDS = 30.0

logger = logging.getLogger(__name__)


def state_file_of(path: Path, rank: int) -> Path:
    """Return where a data-parallel rank keeps what it learns: `path` for rank 0, then learnt.1.json for learnt.json.

    Each rank learns from its own answers, and two that write one file would lose what the other wrote.
    """
    return path if rank == 0 else path.with_name(f"{path.stem}.{rank}{path.suffix}")


class LearningPredictions:
    """A predictor on a thread, its bounds corrected by the last answers (`predictor.bounds.online`).

    Only that thread touches what is learnt: an end is put down, and taken in after the next batch of predictions. By
    then every request that ended has its ticket, one that left while it was being predicted included.
    """

    def __init__(
        self,
        bounds: RequestBounds,
        decode: Callable[[Sequence[int]], str],
        timeout: float = 0.05,
        state: Path | None = None,
        renewed: WatchedFolder[RequestBounds] | None = None,
    ) -> None:
        """Start idle.

        Args:
            bounds: The predictor.
            decode: Returns the text that the predictor reads from a prompt's token ids.
            timeout: The most seconds that a request waits for its prediction.
            state: File that keeps what is learnt, read now if it is there.
            renewed: Where another predictor comes from while the engine runs; closed with this.

        Raises:
            InputError: The file is not one that this class wrote, or of another predictor.
        """
        self._bounds, self._decode, self._state, self._renewed = bounds, decode, state, renewed
        self._online = OnlineCalibration(bounds.bins, bounds.calibration)
        if state is not None:
            nothing: dict[str, object] = {"answers": []}
            read_state(state, bounds.spec, lambda learnt: self._online.restore(learnt.get(bounds.model, nothing)))
        self._marginal_bound = self._online.marginal_bound(bounds.tau)
        self._tickets: dict[str, tuple[int, int]] = {}  # by request, with the most tokens that it may generate
        self._ended: deque[tuple[str, Status, int]] = deque()
        self._next_save = time.monotonic() + SAVE_SECONDS
        self.background = BackgroundPredictions(self._predict, self.marginal, timeout, bounds.max_batch)

    def marginal(self, request: Request) -> Request:
        """Return a request with what holds for any prompt."""
        bound = min(self._marginal_bound, request.max_new_tokens)
        request = self._bounds.marginal(request)
        return replace(request, output_len_lower_bound=min(bound, request.output_len_upper_bound or bound))

    def learn(self, request_id: str, status: Status, num_generated: int) -> None:
        """Take note of how a request ended that was handed over."""
        self._ended.append((request_id, status, num_generated))

    def close(self) -> None:
        """Stop the thread, and keep what was learnt."""
        if self._renewed is not None:
            self._renewed.close()
        self.background.close()
        self._take_in_ends()
        self._save()

    def _take_over(self, bounds: RequestBounds) -> None:
        """Predict by another predictor from now on; what was learnt of the one before does not hold for it."""
        self._bounds, self._online = bounds, OnlineCalibration(bounds.bins, bounds.calibration)
        self._tickets.clear()

    def _predict(self, requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
        if self._renewed is not None and (bounds := self._renewed.take()) is not None:
            self._take_over(bounds)
        predicted = self._bounds.predicted(requests, [self._decode(ids) for ids in prompts])
        corrected = [self._correct(request) for request in predicted]
        self._take_in_ends()
        self._marginal_bound = self._online.marginal_bound(self._bounds.tau)
        if time.monotonic() >= self._next_save:
            self._save()
        return corrected

    def _correct(self, request: Request) -> Request:
        assert request.forecast is not None
        survival = request.forecast.survival
        self._tickets[request.request_id] = self._online.issue(survival), request.max_new_tokens
        bound = min(self._online.bound(survival, self._bounds.tau), request.max_new_tokens)
        upper = max(bound, request.output_len_upper_bound or bound)
        return replace(request, output_len_lower_bound=bound, output_len_upper_bound=upper)

    def _take_in_ends(self) -> None:
        while self._ended:
            request_id, status, num_generated = self._ended.popleft()
            ticket, limit = self._tickets.pop(request_id, (None, 0))
            if ticket is not None:
                is_cut = status is Status.CANCELLED or num_generated >= limit
                self._online.end(ticket, num_generated, is_cut=is_cut)

    def _save(self) -> None:
        if self._state is None:
            return
        self._next_save = time.monotonic() + SAVE_SECONDS
        try:
            write_state(self._state, self._bounds.spec, {self._bounds.model: self._online.state()})
        except OSError as error:
            logger.error("%s: what was learnt cannot be written: %s", self._state, error)
