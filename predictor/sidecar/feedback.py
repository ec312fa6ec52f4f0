"""Recent predictions by request id, and what is heard of them: the memory behind the online correction."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from predictor.sidecar.online import OnlineTau

State = Literal["running", "finished", "aborted"]
Verdict = Literal["covered", "missed", "pending", "lost", "unknown"]

MAX_TRACKS = 64


@dataclass(frozen=True, slots=True)
class TrackKey:
    """What shares one correction: the wanted `tau`, the served `model`, and where bounds come from (`source`)."""

    tau: float
    model: str
    source: str


@dataclass(slots=True)
class _Prediction:
    track: OnlineTau
    ticket: int | None  # None once its outcome is known
    bound: int
    last_heard: float


class FeedbackLedger:
    """Remembers at most `max_remembered` predictions and turns reports about them into online corrections.

    A prediction of which nothing is heard for `patience` seconds, or the least recently heard one where room is needed,
    is given up as lost, so that it holds back no other; likewise the earliest of more than `max_remembered` whose
    outcomes wait. Not safe to share between threads.
    """

    def __init__(
        self,
        *,
        step: float = 0.005,
        may_raise: bool = False,
        own_tau: float | None = None,
        max_remembered: int = 65_536,
        patience: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args as `OnlineTau`; `step` 0 keeps the static calibration and only counts. `clock` gives seconds.

        Requests with `own_tau` have their correction however many other taus are asked for.
        """
        if max_remembered < 1:
            raise ValueError(f"max_remembered: must be at least 1, not {max_remembered}")
        self._step, self._may_raise = step, may_raise
        self._max_remembered, self._patience, self._clock = max_remembered, patience, clock
        self._own_tau = own_tau
        self._tracks: dict[TrackKey, OnlineTau] = {}
        self._predictions: OrderedDict[str, _Prediction] = OrderedDict()  # least recently heard first

    def __len__(self) -> int:
        return len(self._predictions)

    @property
    def tracks(self) -> Iterator[tuple[TrackKey, OnlineTau]]:
        """The corrections so far."""
        return iter(self._tracks.items())

    def track(self, key: TrackKey) -> OnlineTau:
        """Return the correction of `key`; beyond `MAX_TRACKS` a static one that nobody keeps, but for `own_tau`."""
        if key in self._tracks:
            return self._tracks[key]
        if len(self._tracks) >= MAX_TRACKS and key.tau != self._own_tau:
            return OnlineTau(key.tau, step=0.0)
        track = OnlineTau(key.tau, step=self._step, may_raise=self._may_raise, max_pending=self._max_remembered)
        return self._tracks.setdefault(key, track)

    def remember(self, request_id: str, key: TrackKey, bound: int) -> None:
        """Note a bound (tokens) given out now; an older prediction of the same id is given up."""
        self._give_up(request_id)
        self._give_up_stale()
        if len(self._predictions) >= self._max_remembered:
            self._give_up(next(iter(self._predictions)))
        track = self.track(key)
        self._predictions[request_id] = _Prediction(track, track.issue(), bound, self._clock())

    def report(self, request_id: str, num_tokens: int, state: State) -> Verdict:
        """Return what is now known of a request that has generated `num_tokens`; it is forgotten when it ends.

        "pending": still below its bound. "lost": aborted below its bound. "unknown": not remembered.
        """
        prediction = self._predictions.get(request_id)
        if prediction is not None:
            prediction.last_heard = self._clock()
            self._predictions.move_to_end(request_id)
        self._give_up_stale()
        if prediction is None:
            return "unknown"
        verdict = judge(prediction.bound, num_tokens, state)
        if prediction.ticket is None:
            verdict = "covered"
        elif verdict != "pending":
            prediction.track.resolve(prediction.ticket, verdict)
            prediction.ticket = None
        if state == "running":
            return verdict
        if state == "finished":
            prediction.track.add_finished(prediction.bound, num_tokens)
        del self._predictions[request_id]
        return verdict

    def report_unremembered(self, key: TrackKey, bound: int, num_tokens: int) -> Verdict:
        """Return whether a finished request covered `bound`, where the client itself kept the bound.

        Its place in the order of issue is not known, so it counts as issued now: report every request, or none.
        """
        self._give_up_stale()
        track = self.track(key)
        verdict: Literal["covered", "missed"] = "covered" if num_tokens >= bound else "missed"
        track.resolve(track.issue(), verdict)
        track.add_finished(bound, num_tokens)
        return verdict

    def _give_up_stale(self) -> None:
        now = self._clock()
        while self._predictions:
            request_id, oldest = next(iter(self._predictions.items()))
            if now - oldest.last_heard <= self._patience:
                break
            self._give_up(request_id)

    def _give_up(self, request_id: str) -> None:
        prediction = self._predictions.pop(request_id, None)
        if prediction is not None and prediction.ticket is not None:
            prediction.track.resolve(prediction.ticket, "lost")


def judge(bound: int, num_tokens: int, state: State) -> Literal["covered", "missed", "pending", "lost"]:
    """Return what `num_tokens` generated so far say about a lower bound in tokens."""
    if num_tokens >= bound:
        return "covered"
    unknown: dict[State, Literal["missed", "pending", "lost"]]
    unknown = {"finished": "missed", "running": "pending", "aborted": "lost"}
    return unknown[state]
