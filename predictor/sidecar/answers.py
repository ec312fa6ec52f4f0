"""What `amin serve` answers, apart from HTTP: a bound for every prompt in time, by the model or without it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import FloatArray, cdf, quantile
from predictor.sidecar.asks import Ask, Unusable
from predictor.sidecar.batching import Batcher, Shed
from predictor.sidecar.feedback import FeedbackLedger, LedgerSettings, TrackKey
from predictor.spec import AVERAGE, LIKE, NO_LIMIT, LengthPredictorLike, PredictorSpec

Source = Literal["model", "fallback"]
_MODEL: Source = "model"
_FALLBACK: Source = "fallback"
# Most served models of which only the name is known: each has a correction of its own, and clients choose the names.
MAX_ALIKE = 64
_MOST_SUPPORTED = 256
LIKE_REQUESTED = "request"
"""As `SidecarSettings.like`: the name that the request itself gives."""
Reason = Shed | Unusable | Literal["long_prompt"]


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """Options of `amin serve` with their units and defaults."""

    tau: float = 0.1
    """Probability allowed below the bound where a request names none."""
    deadline: float = 0.1
    """Seconds after which a prompt that is not predicted gets the marginal bound, where a request names none."""
    max_wait: float = 0.002
    """Seconds that a small prompt may wait for others to share its batch."""
    max_batch: int = 8
    """Most prompts in one inference."""
    max_queue: int = 256
    """Most prompts that wait; further ones get the marginal bound immediately."""
    num_workers: int = 1
    """Inferences at the same time, each on a thread of its own."""
    max_prompts: int = 256
    """Most prompts in one request."""
    max_prompt_chars: int = 20_000
    """Prompts with more characters get the marginal bound immediately: reading them would hold up the others."""
    max_body_bytes: int = 1 << 20
    """Largest request body."""
    body_timeout: float = 10.0
    """Seconds in which a request body must arrive."""
    max_active: int = 512
    """Most requests that are answered at a time; others get 503, probes and metrics excepted."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server may be called, besides the loopback ones; "*" for any."""
    api_key: str | None = None
    """Key that requests to predict and reports must carry."""
    like: str | None = None
    """Name by which a served model is read that the predictor does not know, or `LIKE_REQUESTED`; else as `average`."""
    state_file: Path | None = None
    """File that keeps what is learnt over a restart."""
    feedback: LedgerSettings = field(default_factory=LedgerSettings)
    """How far reports correct the bounds."""


def check_settings(spec: PredictorSpec, settings: SidecarSettings) -> None:
    """Raise InputError where a predictor cannot do what a server is set to: its `tau`, its `like`."""
    spec.calibration().level(settings.tau)
    if settings.like is not None:
        spec.calibration(LIKE + settings.like)


@dataclass(frozen=True, slots=True)
class Served:
    """A predictor in use and what has been learnt of it; another pair takes its place whole."""

    length_predictor: LengthPredictorLike
    ledger: FeedbackLedger
    supported: set[tuple[float, str]] = field(default_factory=set)
    """Taus and served models of which it is known that the calibration is fine enough; clients choose the taus."""

    @property
    def spec(self) -> PredictorSpec:
        """What the predictor states."""
        return self.length_predictor.spec


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and the predictor that was in use when it came."""

    ask: Ask
    length_predictor: LengthPredictorLike

    @property
    def size(self) -> int:
        """About how many tokens the network reads: a token in four characters, and the special ones."""
        return min(len(self.ask.prompt) // 4 + 4, self.length_predictor.spec.max_prompt_tokens)


def survivals_of(tasks: Sequence[Task]) -> list[FloatArray]:
    """Return the predicted survival [M, K+1] of each prompt for every served model of its predictor."""
    length_predictor = tasks[0].length_predictor
    if any(task.length_predictor is not length_predictor for task in tasks):  # another took over just now
        return [survival for task in tasks for survival in survivals_of([task])]
    prompts, contexts = [task.ask.prompt for task in tasks], [task.ask.context for task in tasks]
    return list(length_predictor.survivals(prompts, contexts))


@dataclass(frozen=True, slots=True)
class Answer:
    """Lengths in tokens; `survival` [K+1] on the length bins and no `reason` where the model predicted."""

    request_id: str | None
    lower_bound: int
    median: int
    source: Source
    survival: FloatArray | None = None
    reason: Reason | None = None
    ends_within: tuple[float, ...] | None = None
    """P(length <= generated + h | length > generated) for each h that was asked."""


class Sidecar:
    """Predicts through a batcher, corrects by feedback, and falls back on marginal bounds."""

    def __init__(
        self,
        length_predictor: LengthPredictorLike,
        batcher: Batcher[Task, FloatArray],
        settings: SidecarSettings,
        on_answers: Callable[[Iterable[Answer]], None],
    ) -> None:
        self.batcher, self.settings = batcher, settings
        self.served = self._with_fresh_ledger(length_predictor)
        self._on_answers = on_answers

    @property
    def spec(self) -> PredictorSpec:
        """What the predictor in use states."""
        return self.served.spec

    @property
    def ledger(self) -> FeedbackLedger:
        """What has been learnt of it."""
        return self.served.ledger

    def take_over(self, length_predictor: LengthPredictorLike) -> None:
        """Answer by another predictor from now on; what was learnt of the one before does not hold for it.

        Raises:
            InputError: the server's own tau is finer than its calibration supports, or it has none for new models.
        """
        check_settings(length_predictor.spec, self.settings)
        self.served = self._with_fresh_ledger(length_predictor)

    def _with_fresh_ledger(self, length_predictor: LengthPredictorLike) -> Served:
        return Served(
            length_predictor, FeedbackLedger(length_predictor.spec, self.settings.feedback, self.settings.tau)
        )

    async def predict(
        self,
        asks: Sequence[Ask],
        tau: float,
        model: str,
        deadline: float | None = None,
        ends_within: Sequence[int] = (),
    ) -> list[Answer]:
        """Return one answer per prompt, in order, after at most about `deadline` seconds.

        `tau` and `model` are those that `check` returned.
        """
        served, longest = self.served, self.settings.max_prompt_chars
        predicted: list[FloatArray | Reason] = [ask.unusable or "long_prompt" for ask in asks]
        short = [i for i, ask in enumerate(asks) if ask.unusable is None and len(ask.prompt) <= longest]
        if short:
            limit = self.settings.deadline if deadline is None else deadline
            rows = await self.batcher.predict([Task(asks[i], served.length_predictor) for i in short], limit)
            for i, row in zip(short, rows, strict=True):
                predicted[i] = _of_model(served.spec, row, model)
        answers = [_answer(served, ask, row, tau, model, ends_within) for ask, row in zip(asks, predicted, strict=True)]
        for ask, answer in zip(asks, answers, strict=True):
            if ask.request_id is not None:
                key = TrackKey(tau, model, answer.source)
                served.ledger.remember(ask.request_id, key, answer.lower_bound, answer.survival, ask.max_new_tokens)
        self._on_answers(answers)
        return answers

    def check(self, tau: float | None, model: str | None) -> tuple[float, str]:
        """Return `tau` and the served model that is read, with defaults filled in.

        Raises:
            InputError: `tau` is outside (0, 1) or finer than the calibration supports.
        """
        tau = self.settings.tau if tau is None else tau
        name = self.model_of(model)
        supported = self.served.supported
        if (tau, name) not in supported:
            calibration = self.spec.calibration(name)
            calibration.level(tau)
            calibration.marginal_bound(tau)
            if len(supported) < _MOST_SUPPORTED:
                supported.add((tau, name))
        return tau, name

    def model_of(self, name: str | None) -> str:
        """Return the served model that a name means: itself, in other case or without its owner.

        Of one that the predictor does not know: `like:` and the name that the settings give it, else `average`.
        """
        if name is None or name in self.spec.choices:
            return self.spec.choose(name)
        wanted = name.rstrip("/").rpartition("/")[2].casefold()
        found = [choice for choice in self.spec.choices if choice.rpartition("/")[2].casefold() == wanted]
        if len(found) == 1:
            return self.spec.choose(found[0])
        like = wanted if self.settings.like == LIKE_REQUESTED else self.settings.like
        if name.startswith(LIKE):
            like = name.removeprefix(LIKE)
        return self._like(like) if like else self.spec.choose(AVERAGE)

    def _like(self, name: str) -> str:
        model, known = self.spec.choose(LIKE + name), self.ledger.calibrations
        num_alike = sum(other.startswith(LIKE) for other in known)
        return model if model in known or num_alike < MAX_ALIKE else self.spec.choose(AVERAGE)


def _of_model(spec: PredictorSpec, row: FloatArray | Shed, model: str) -> FloatArray | Reason:
    """Return the survival [K+1] of one served model in a row [M, K+1]; "error" where it is not a number."""
    if isinstance(row, str):
        return row
    survival = spec.survival_of(row[None], model)[0]
    return survival if np.isfinite(survival).all() else "error"


def _answer(
    served: Served, ask: Ask, row: FloatArray | Reason, tau: float, model: str, ends_within: Sequence[int]
) -> Answer:
    calibration = served.ledger.calibration(model)
    if isinstance(row, str):
        bound = calibration.marginal_bound(tau)
        middle = max(bound, calibration.marginal_median())
        source, survival, reason = _FALLBACK, None, row
    else:
        bound = calibration.bound(row, tau)
        middle = max(bound, round(float(quantile(served.spec.bins, row[None], 0.5)[0])))
        source, survival, reason = _MODEL, row, None
    limit = ask.max_new_tokens or NO_LIMIT
    ends = None
    if ends_within:
        curve = calibration.shipped.marginal_survival(served.spec.bins) if survival is None else survival
        ends = _ends_within(served.spec.bins, ask, curve, ends_within)
    return Answer(ask.request_id, min(bound, limit), min(middle, limit), source, survival, reason, ends)


def _ends_within(bins: LengthBins, ask: Ask, survival: FloatArray, horizons: Sequence[int]) -> tuple[float, ...]:
    """Return P(length <= generated + h | length > generated) by a survival [K+1]; 1 from the request's cap on."""
    lengths = ask.generated + np.asarray([0, *horizons])
    gone = cdf(bins, survival[None], lengths[None])[0]
    alive = 1.0 - gone[0]
    ends = (gone[1:] - gone[0]) / alive if alive > 0 else np.ones(len(horizons))
    if ask.max_new_tokens is not None:
        ends = np.where(lengths[1:] >= ask.max_new_tokens, 1.0, ends)
    return tuple(float(value) for value in ends)
