"""Prompts of waiting requests, read by the served model between iterations for what a probe makes of their states."""

import time
from collections.abc import Callable, Sequence

from pipelines.probe.renewed_bounds import RenewedBounds
from pipelines.served_model.loading import ServedModel
from pipelines.served_model.prompt_states import prompt_states
from scheduler.look_ahead import PromptReader
from scheduler.renewals import Renewal
from scheduler.request import Request


class ModelReader(PromptReader):
    """Reads prompts with the model that serves them, up to the probe's layer."""

    def __init__(
        self,
        bounds: RenewedBounds,
        layer: int,
        served: ServedModel,
        prompts: Sequence[Sequence[int]],
        request: Callable[[int], Request],
    ) -> None:
        """Start with nothing read.

        Args:
            bounds: The probe.
            layer: That it reads.
            served: The model.
            prompts: Token ids by request index.
            request: Returns a request with what its prompt alone told.
        """
        self._bounds, self._layer, self._served, self._prompts, self._request = bounds, layer, served, prompts, request
        self.given: dict[int, Renewal] = {}
        """What was found out, by request."""
        self.num_tokens = 0
        """Prompt tokens that were read."""
        self.seconds = 0.0
        """Time that reading took, the probe included."""

    def can_read(self, index: int) -> bool:
        """Return True: every prompt has a last state."""
        return True

    def read(self, indices: Sequence[int]) -> Sequence[tuple[int, Renewal]]:
        """Return what the states tell; a request whose state is not a number is left out."""
        started = time.perf_counter()
        prompts = [self._prompts[index] for index in indices]
        sizes = list(map(len, prompts))
        forecasts = [self._request(index).forecast for index in indices]
        told = self._bounds.of_prompts(prompt_states(self._served, self._layer, prompts), sizes, forecasts)
        found = [(index, renewal) for index, renewal in zip(indices, told, strict=True) if renewal is not None]
        self.given |= found
        self.num_tokens += sum(sizes)
        self.seconds += time.perf_counter() - started
        return found
