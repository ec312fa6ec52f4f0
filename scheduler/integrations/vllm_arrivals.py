"""From vLLM's requests to what a policy is told of them: with a bound of their own, predicted, or with neither."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.integrations.vllm_metrics import Metrics
from scheduler.integrations.vllm_requests import Bounds, extra_args, max_new_tokens, read_bounds, shared_blocks
from scheduler.integrations.vllm_settings import group_and_class
from scheduler.policy import Status
from scheduler.request import Request

logger = logging.getLogger(__name__)


class Predictions(Protocol):
    """What predicts requests as they arrive."""

    background: BackgroundPredictions
    """Holds requests back until they are predicted."""

    def marginal(self, request: Request) -> Request:
        """Return a request with the bound that holds for any prompt."""

    def learn(self, request_id: str, status: Status, num_generated: int) -> None:
        """Take note of how a request ended that was handed over."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What of vLLM's configuration decides how much a request can take.

    Attributes:
        max_model_len: Most tokens of a request, prompt included.
        block_size: Tokens in a block.
        hash_block_size: Tokens that a name of a block covers; `block_size` is a multiple of it.
        num_extra_tokens: Slots that speculative decoding takes beyond a request's tokens.
    """

    max_model_len: int
    block_size: int
    hash_block_size: int
    num_extra_tokens: int = 0


class Arrivals:
    """Keeps what is known of each request's length, from its arrival to its end."""

    def __init__(self, limits: EngineLimits, predictions: Predictions | None, metrics: Metrics) -> None:
        """Start with no request; without `predictions` only the bounds count that requests bring."""
        self._limits, self._predictions, self._metrics = limits, predictions, metrics
        self._lower_bounds: dict[str, int] = {}
        self._bounded: set[str] = set()
        self._num_taken, self._num_marginal, self._has_complained = 0, 0, False

    @property
    def know_something(self) -> bool:
        """Whether there is anything to schedule by: a predictor, or a request that brought a bound."""
        return self._predictions is not None or bool(self._bounded)

    def add(self, request: Any) -> Request | None:
        """Return what is known of a vLLM request; None where it is held back until it is predicted."""
        facts, name = self.facts(request), request.request_id
        if self._bounds(request).lower is not None:
            self._bounded.add(name)
        elif self._predictions is not None:
            token_ids = _prompt(request)
            if token_ids is not None:
                self._predictions.background.add(facts, token_ids)
                return None
            self._num_marginal += 1
            facts = self._predictions.marginal(facts)
        else:
            return facts
        self._lower_bounds[name] = facts.output_len_lower_bound
        return facts

    def take(self, *, wait: bool) -> list[Request]:
        """Return the requests that have been predicted, or whose time for it is up."""
        if self._predictions is None:
            return []
        background, metrics = self._predictions.background, self._metrics
        ready = background.take(wait=wait)
        self._lower_bounds.update((request.request_id, request.output_len_lower_bound) for request in ready)
        self._num_taken += len(ready)
        metrics.predicted = self._num_taken - background.num_fallbacks
        metrics.fallbacks = self._num_marginal + background.num_fallbacks
        metrics.prediction_seconds = background.busy_seconds
        return ready

    def end(self, request_id: str, status: Status, num_generated: int) -> None:
        """Count whether a request kept to its bound, learn from it and forget it."""
        if self._predictions is not None:
            if request_id in self._predictions.background:
                self._predictions.background.discard(request_id)
            elif request_id not in self._bounded:
                self._predictions.learn(request_id, status, num_generated)
        self._bounded.discard(request_id)
        lower_bound = self._lower_bounds.pop(request_id, None)
        if lower_bound is not None:
            self._metrics.count_end(lower_bound, status, num_generated)

    def facts(self, request: Any) -> Request:
        """Return what a request says of itself.

        vLLM stores the keys and values of a token in the iteration after it was generated, so that s prompt and g
        generated tokens take the blocks of s + g in the next one, where policies count s + g + 1: hence s - 1 here.
        """
        limits, bounds = self._limits, self._bounds(request)
        group, service_class = group_and_class(request.request_id, extra_args(request))
        return Request(
            request.request_id,
            max(0, request.num_prompt_tokens - 1 + limits.num_extra_tokens),
            max_new_tokens(request, limits.max_model_len),
            request.arrival_time,
            output_len_lower_bound=bounds.lower or 1,
            output_len_upper_bound=bounds.upper,
            output_len_prediction=bounds.prediction,
            priority=request.priority,
            prefix=shared_blocks(request, limits.block_size, limits.hash_block_size),
            group=group,
            service_class=service_class,
        )

    def _bounds(self, request: Any) -> Bounds:
        bounds, complaint = read_bounds(extra_args(request), max_new_tokens(request, self._limits.max_model_len))
        if complaint and not self._has_complained:
            self._has_complained = True
            logger.warning("request %s: %s; further such requests are not reported", request.request_id, complaint)
        return bounds


def _prompt(request: Any) -> Sequence[int] | None:
    """Return the tokens of a prompt that are words; None where it is embeddings alone."""
    token_ids: Sequence[int] | None = request.prompt_token_ids
    is_word: Sequence[bool] | None = getattr(request, "prompt_is_token_ids", None)
    if token_ids is None or is_word is None:
        return token_ids
    return [token for token, is_token in zip(token_ids, is_word, strict=True) if is_token] or None
