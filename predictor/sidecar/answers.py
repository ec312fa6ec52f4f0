"""What `amin serve` answers, apart from HTTP: a bound for every prompt in time, by the model or without it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from predictor.bounds.distribution import FloatArray, bound_and_median, cdf
from predictor.sidecar.asks import Ask, Unusable
from predictor.sidecar.batching import Batcher, Shed
from predictor.sidecar.feedback import FeedbackLedger, TrackKey
from predictor.sidecar.online import level_at, marginal_bound_at
from predictor.spec import AVERAGE, NO_LIMIT, PredictorSpec

Source = Literal["model", "fallback"]
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
    """Most prompts that wait; further ones get the marginal bound at once."""
    num_workers: int = 1
    """Inferences at the same time, each on a thread of its own."""
    max_prompts: int = 256
    """Most prompts in one request."""
    max_prompt_chars: int = 20_000
    """Prompts with more characters get the marginal bound at once: reading them would hold up the others."""
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
    step: float = 0.005
    """Step of the online correction; 0 counts coverage and corrects nothing."""
    may_raise: bool = False
    """Whether the online correction may lift bounds above the static calibration's."""
    max_remembered: int = 65_536
    """Most predictions remembered for feedback."""
    patience: float = 600.0
    """Seconds without a word after which a remembered prediction is given up."""


def num_tokens_about(prompt: str, max_tokens: int) -> int:
    """Return about how many tokens the network reads of a prompt: a token in four characters, and the special ones."""
    return min(len(prompt) // 4 + 4, max_tokens)


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
        spec: PredictorSpec,
        batcher: Batcher,
        settings: SidecarSettings,
        on_answers: Callable[[Iterable[Answer]], None],
    ) -> None:
        self.spec, self.batcher, self.settings = spec, batcher, settings
        self.ledger = FeedbackLedger(
            step=settings.step,
            may_raise=settings.may_raise,
            own_tau=settings.tau,
            max_remembered=settings.max_remembered,
            patience=settings.patience,
        )
        self._on_answers = on_answers

    async def predict(
        self,
        asks: Sequence[Ask],
        tau: float | None = None,
        model: str | None = None,
        deadline: float | None = None,
        ends_within: Sequence[int] = (),
    ) -> list[Answer]:
        """Return one answer per prompt, in order, after at most about `deadline` seconds.

        Raises:
            InputError: `tau` is outside (0, 1) or finer than the calibration supports.
        """
        tau, model = self.check(tau, model)
        longest = self.settings.max_prompt_chars
        predicted: list[FloatArray | Reason] = [ask.unusable or "long_prompt" for ask in asks]
        short = [i for i, ask in enumerate(asks) if ask.unusable is None and len(ask.prompt) <= longest]
        if short:
            limit = self.settings.deadline if deadline is None else deadline
            rows = await self.batcher.predict([asks[i].prompt for i in short], limit)
            for i, row in zip(short, rows, strict=True):
                predicted[i] = self._of_model(row, model)
        answers = [self._answer(ask, row, tau, model, ends_within) for ask, row in zip(asks, predicted, strict=True)]
        for ask, answer in zip(asks, answers, strict=True):
            if ask.request_id is not None:
                self.ledger.remember(ask.request_id, TrackKey(tau, model, answer.source), answer.lower_bound)
        self._on_answers(answers)
        return answers

    def check(self, tau: float | None, model: str | None) -> tuple[float, str]:
        """Return `tau` and the served model that is read, with defaults filled in; InputError as `predict`."""
        tau = self.settings.tau if tau is None else tau
        name = self.model_of(model)
        calibration = self.spec.calibration(name)
        calibration.level(tau)
        calibration.marginal_bound(tau)
        return tau, name

    def model_of(self, name: str | None) -> str:
        """Return the served model that a name means: itself, in other case or without its owner, else `average`."""
        if name is None or name in self.spec.choices:
            return self.spec.choose(name)
        wanted = name.rstrip("/").rpartition("/")[2].casefold()
        found = [choice for choice in self.spec.choices if choice.rpartition("/")[2].casefold() == wanted]
        return self.spec.choose(found[0] if len(found) == 1 else AVERAGE)

    def _of_model(self, row: FloatArray | Shed, model: str) -> FloatArray | Reason:
        """Return the survival [K+1] of one served model in a row [M, K+1]; "error" where it is not a number."""
        if isinstance(row, str):
            return row
        survival = self.spec.survival_of(row[None], model)[0]
        return survival if np.isfinite(survival).all() else "error"

    def _answer(self, ask: Ask, row: FloatArray | Reason, tau: float, model: str, ends_within: Sequence[int]) -> Answer:
        calibration = self.spec.calibration(model)
        source: Source = "fallback" if isinstance(row, str) else "model"
        value = self.ledger.track(TrackKey(tau, model, source)).value
        if isinstance(row, str):
            bound, middle = marginal_bound_at(calibration, value), calibration.marginal_median()
            survival, reason = None, row
        else:
            level = level_at(calibration, value)
            bound, middle = (int(value[0]) for value in bound_and_median(self.spec.bins, row[None], level))
            survival, reason = row, None
        limit = ask.max_new_tokens or NO_LIMIT
        curve = calibration.marginal_survival(self.spec.bins) if survival is None else survival
        ends = self._ends_within(ask, curve, ends_within) if ends_within else None
        return Answer(ask.request_id, min(bound, limit), min(middle, limit), source, survival, reason, ends)

    def _ends_within(self, ask: Ask, survival: FloatArray, horizons: Sequence[int]) -> tuple[float, ...]:
        """Return P(length <= generated + h | length > generated) by a survival [K+1]; 1 from the request's cap on."""
        lengths = ask.generated + np.asarray([0, *horizons])
        gone = cdf(self.spec.bins, survival[None], lengths[None])[0]
        alive = 1.0 - gone[0]
        ends = (gone[1:] - gone[0]) / alive if alive > 0 else np.ones(len(horizons))
        if ask.max_new_tokens is not None:
            ends = np.where(lengths[1:] >= ask.max_new_tokens, 1.0, ends)
        return tuple(float(value) for value in ends)
