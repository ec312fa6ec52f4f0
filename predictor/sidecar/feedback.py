"""Recent predictions by request id, and what is heard of them: the memory behind the online correction."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from predictor.bounds.distribution import FloatArray
from predictor.bounds.online import WINDOW, Adaptation, OnlineCalibration
from predictor.spec import LIKE, PredictorSpec

State = Literal["running", "finished", "aborted"]
Verdict = Literal["covered", "missed", "pending", "lost", "unknown"]

MAX_TRACKS = 64
# A client's share is of so many answers: of more, it could place all of its own in a row.
_CLIENT_WINDOW = 100


@dataclass(frozen=True, slots=True)
class TrackKey:
    """What is counted together: the wanted `tau`, the served `model`, and where bounds come from (`source`)."""

    tau: float
    model: str
    source: str


@dataclass(slots=True)
class Track:
    """How well the bounds of one key did lately."""

    reached: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    lengths: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def coverage(self) -> float:
        """Share of the last `WINDOW` ended answers that reached their bound; nan before the first."""
        return sum(self.reached) / len(self.reached) if self.reached else float("nan")

    @property
    def tightness(self) -> float:
        """Mean bound / mean length of the last `WINDOW` finished answers; nan before the first."""
        total = sum(length for _, length in self.lengths)
        return sum(bound for bound, _ in self.lengths) / total if total else float("nan")


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """How far reports correct the bounds."""

    adapt: Adaptation = "both"
    """Whether bounds follow the traffic both ways, only downwards, or not at all."""
    max_remembered: int = 65_536
    """Most predictions remembered for feedback."""
    patience: float = 600.0
    """Seconds without a word after which a remembered prediction is given up."""
    only_asked: bool = False
    """Whether reports without the id of a prediction that was asked here are left out."""
    max_client_share: float = 1.0
    """Most of any 100 answers that corrections are made from that may come from one client."""


@dataclass(slots=True)
class _Prediction:
    key: TrackKey
    calibration: OnlineCalibration
    ticket: int
    bound: int
    max_new_tokens: int | None
    last_heard: float


class FeedbackLedger:
    """Remembers predictions and turns reports about them into corrections, a calibration for each served model.

    A prediction of which nothing is heard for `patience` seconds, or the least recently heard one where room is needed,
    is given up. Not safe to share between threads.
    """

    def __init__(
        self,
        spec: PredictorSpec,
        settings: LedgerSettings | None = None,
        own_tau: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds. `own_tau` is counted however many other taus are asked for."""
        self._spec, self._settings, self._own_tau, self._clock = spec, settings or LedgerSettings(), own_tau, clock
        self._calibrations: dict[str, OnlineCalibration] = {}
        self._tracks: dict[TrackKey, Track] = {}
        self._predictions: OrderedDict[str, _Prediction] = OrderedDict()  # least recently heard first
        self._clients: deque[str] = deque(maxlen=_CLIENT_WINDOW - 1)  # and the one that comes

    def __len__(self) -> int:
        return len(self._predictions)

    @property
    def tracks(self) -> Iterator[tuple[TrackKey, Track]]:
        """What was counted so far."""
        return iter(self._tracks.items())

    @property
    def calibrations(self) -> Mapping[str, OnlineCalibration]:
        """The corrected calibrations so far, by served model."""
        return self._calibrations

    def calibration(self, model: str) -> OnlineCalibration:
        """Return the corrected calibration of a served model that the predictor knows."""
        if model not in self._calibrations:
            shipped = self._spec.calibration(model)
            self._calibrations[model] = OnlineCalibration(
                self._spec.bins, shipped, adapt=self._settings.adapt, clock=self._clock
            )
        return self._calibrations[model]

    def track(self, key: TrackKey) -> Track:
        """Return what is counted for `key`; beyond `MAX_TRACKS` one that nobody keeps, but for `own_tau`."""
        if key not in self._tracks and len(self._tracks) >= MAX_TRACKS and key.tau != self._own_tau:
            return Track()
        return self._tracks.setdefault(key, Track())

    def remember(
        self,
        request_id: str,
        key: TrackKey,
        bound: int,
        survival: FloatArray | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        """Note a bound (tokens) given out now by a survival [K+1]; an older one of the same id is given up."""
        self._give_up(request_id)
        self._give_up_stale()
        if len(self._predictions) >= self._settings.max_remembered:
            self._give_up(next(iter(self._predictions)))
        calibration = self.calibration(key.model)
        ticket = calibration.issue(survival)
        self._predictions[request_id] = _Prediction(key, calibration, ticket, bound, max_new_tokens, self._clock())

    def report(self, request_id: str, num_tokens: int, state: State, client: str = "") -> Verdict:
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
        if state == "running":
            prediction.calibration.progress(prediction.ticket, num_tokens)
            return judge(prediction.bound, num_tokens, state)
        del self._predictions[request_id]
        return self._end(prediction, num_tokens, state, client)

    def report_unremembered(self, key: TrackKey, bound: int, num_tokens: int, client: str = "") -> Verdict:
        """Return whether a finished request covered `bound`, where the client itself kept the bound.

        Without its prediction a cover says little, so such reports lower bounds and hardly lift them.
        """
        self._give_up_stale()
        if self._settings.only_asked:
            return "unknown"
        verdict = judge(bound, num_tokens, "finished")
        self._count(self.track(key), bound, num_tokens, verdict)
        if self._may_count(client):
            self.calibration(key.model).add_by_bound(bound, num_tokens, key.tau)
        return verdict

    def state(self) -> dict[str, Any]:
        """Return what has been learnt, for JSON, by served model."""
        return {model: calibration.state() for model, calibration in self._calibrations.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned, of the models that the predictor knows; ValueError where it is not that."""
        for model, learnt in state.items():
            if model in self._spec.choices or model.startswith(LIKE):
                self.calibration(model).restore(learnt)

    def _end(self, prediction: _Prediction, num_tokens: int, state: State, client: str) -> Verdict:
        verdict = judge(prediction.bound, num_tokens, state)
        if state == "finished":
            self._count(self.track(prediction.key), prediction.bound, num_tokens, verdict)
        if self._may_count(client):
            cap = prediction.max_new_tokens
            is_cut = state == "aborted" or (cap is not None and num_tokens >= cap)
            prediction.calibration.end(prediction.ticket, num_tokens, is_cut=is_cut)
        else:
            prediction.calibration.drop(prediction.ticket)
        return verdict

    def _count(self, track: Track, bound: int, num_tokens: int, verdict: Verdict) -> None:
        track.reached.append(verdict == "covered")
        track.lengths.append((bound, num_tokens))

    def _may_count(self, client: str) -> bool:
        """Return whether one more answer of a client may correct the bounds, and note it."""
        if self._clients.count(client) >= self._settings.max_client_share * _CLIENT_WINDOW:
            return False
        self._clients.append(client)
        return True

    def _give_up_stale(self) -> None:
        now = self._clock()
        while self._predictions:
            request_id, oldest = next(iter(self._predictions.items()))
            if now - oldest.last_heard <= self._settings.patience:
                break
            self._give_up(request_id)

    def _give_up(self, request_id: str) -> None:
        prediction = self._predictions.pop(request_id, None)
        if prediction is not None:
            prediction.calibration.drop(prediction.ticket)


def judge(bound: int, num_tokens: int, state: State) -> Literal["covered", "missed", "pending", "lost"]:
    """Return what `num_tokens` generated so far say about a lower bound in tokens."""
    if num_tokens >= bound:
        return "covered"
    unknown: dict[State, Literal["missed", "pending", "lost"]]
    unknown = {"finished": "missed", "running": "pending", "aborted": "lost"}
    return unknown[state]
