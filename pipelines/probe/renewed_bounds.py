"""Renewed forecasts and bounds from what a probe says of the remaining lengths."""

import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from predictor.bounds.bins import IntArray, LengthBins
from predictor.bounds.distribution import FloatArray
from predictor.probe.conditioned import conditioned
from predictor.probe.probe import Probe, ProbeInputs, remaining_survival
from predictor.probe.states import POSITIONS
from scheduler.batch import RunningBatch
from scheduler.forecast import Floats, Forecast
from scheduler.renewals import Renewal

_log = logging.getLogger(__name__)
LEAST_ALIVE = 1e-9
"""A remaining length above one token that is less probable than this is taken to have been ruled out."""


class RenewedBounds:
    """Renews forecasts with a probe, and counts what it did."""

    def __init__(self, probe: Probe, tau: float, device: Any = "cpu", *, is_mixed: bool = False) -> None:
        """Move the probe to the engine's device. It stays in single precision: it is small, and calibrated in it.

        Args:
            probe: The probe.
            tau: Probability allowed below the bounds.
            device: Of the engine.
            is_mixed: Whether the prompt's forecasts are of the predictor that the probe was trained next to.
        """
        probe.network.to(device)
        self._probe, self._tau, self._is_mixed = probe, tau, is_mixed
        self.num_renewed = self.num_failed = 0
        """Renewals, and those left out since a state was not a number: the forecast that was there stays."""

    def renew(
        self,
        states: Any,
        generated: Sequence[int],
        num_prompt_tokens: Sequence[int],
        forecasts: Sequence[Forecast | None],
    ) -> list[Renewal | None]:
        """Return a renewal for each request whose last state was at the token before its newest.

        The bounds of an answer hold together, since Amin goes by the largest of them.

        Args:
            states: Last, recent mean and prompt mean, [N, 3, H].
            generated: Tokens out at the last state, [N]; one more is out now, and the answer goes on.
            num_prompt_tokens: [N].
            forecasts: Of the whole length, from the prompt alone, [N]; read where they go with the probe.
        """
        inputs = ProbeInputs(states, np.asarray(generated), np.asarray(num_prompt_tokens))
        return self.renew_from(remaining_survival(self._probe.network, inputs), generated, forecasts)

    def of_prompts(
        self, states: Any, num_prompt_tokens: Sequence[int], forecasts: Sequence[Forecast | None]
    ) -> list[Renewal | None]:
        """Return for each request that waits what the state at its prompt's last token tells; arguments as `renew`."""
        inputs = ProbeInputs(states, np.zeros(len(num_prompt_tokens), np.int64), np.asarray(num_prompt_tokens))
        prompt = self._prompt_survival(inputs.generated, forecasts) if self._is_mixed else None
        told = self._probe.renew(inputs, self._tau, over_answer=True, prompt_survival=prompt)
        num_failed = int(told.failed.sum())
        self._count(num_failed, num_failed)  # nothing was renewed
        rows = zip(told.survival, told.lower_bounds, told.failed, strict=True)
        return [
            None if failed else Renewal(0, at_arrival(self._probe.bins, survival), max(1, int(bound)))
            for survival, bound, failed in rows
        ]

    def renew_from(
        self, survival: FloatArray, generated: Sequence[int], forecasts: Sequence[Forecast | None]
    ) -> list[Renewal | None]:
        """Return what `renew` does, from what the network gave: P(remaining > edge) [N, K+1], NaN without a state.

        A request without a forecast of its prompt goes by the probe alone.
        """
        mixed = [row for row, forecast in enumerate(forecasts) if self._is_mixed and forecast is not None]
        alone = sorted(set(range(len(forecasts))).difference(mixed))
        found: list[Renewal | None] = [None] * len(forecasts)
        for rows, prompts in ((mixed, [forecasts[row] for row in mixed]), (alone, None)):
            if rows:
                renewed = self._renew_alike(survival[rows], [generated[row] for row in rows], prompts)
                for row, renewal in zip(rows, renewed, strict=True):
                    found[row] = renewal
        return found

    def _renew_alike(
        self, survival: FloatArray, generated: Sequence[int], forecasts: Sequence[Forecast | None] | None
    ) -> list[Renewal | None]:
        out = np.asarray(generated)
        prompt = None if forecasts is None else self._prompt_survival(out, forecasts)
        renewed = self._probe.renewal(survival, out, self._tau, over_answer=True, prompt_survival=prompt)
        found: list[Renewal | None] = []
        for t, row, bound, failed in zip(
            generated, renewed.survival, renewed.lower_bounds, renewed.failed, strict=True
        ):
            forecast = None if failed else whole_length(self._probe.bins, row, t)
            found.append(None if forecast is None else Renewal(t + 1, forecast, max(int(bound), t + 2)))
        self._count(len(found), int(renewed.failed.sum()))
        return found

    def _count(self, num_asked: int, num_failed: int) -> None:
        """Count, and say when failures have doubled: a broken model would fill the log."""
        self.num_renewed += num_asked - num_failed
        before, self.num_failed = self.num_failed, self.num_failed + num_failed
        if self.num_failed.bit_length() > before.bit_length():
            _log.warning("states that were not numbers so far: %d; the forecasts stay", self.num_failed)

    def _prompt_survival(self, generated: IntArray, forecasts: Sequence[Forecast | None]) -> FloatArray:
        """Return P(remaining > edge) on the probe's bins, [N, K+1]."""
        known = [forecast for forecast in forecasts if forecast is not None]
        bins = LengthBins(tuple(known[0].edges.tolist()))
        survival = np.stack([forecast.survival for forecast in known])
        return conditioned(bins, survival, generated, self._probe.bins)


def whole_length(bins: LengthBins, survival: FloatArray, generated: int) -> Forecast:
    """Return the forecast of the whole length once one more token than at the state is out and the answer goes on.

    Args:
        bins: Of the remaining length.
        survival: P(remaining > edge) after `generated` tokens, [K+1]; remaining > 1 is known by now.
        generated: Tokens out at the state.
    """
    edges = bins.as_array()
    alive = float(np.interp(1, edges, survival))
    later = edges > 1
    left: Floats = survival[later] / alive if alive > LEAST_ALIVE else np.zeros(int(later.sum()))
    at = np.concatenate([[0, generated + 1], generated + edges[later]])
    return Forecast(at, np.concatenate([[1.0, 1.0], np.minimum(left, 1.0)]))


def at_arrival(bins: LengthBins, survival: FloatArray) -> Forecast:
    """Return the forecast of the whole length with nothing out, on as many edges as `whole_length` has."""
    edges = bins.as_array()
    later = edges > 1
    at = np.concatenate([[0, 1], edges[later]])
    first = [1.0, float(np.interp(1, edges, survival))]
    return Forecast(at, np.concatenate([first, survival[later]]))


class CalibratedBounds:
    """Lets a request have a new bound once for each position that states are collected at.

    All bounds of an answer hold together for as many as were calibrated, and fewer do with every further one: of the
    renewals from one position to the next the first has a new bound. An admission starts anew.
    """

    def __init__(self) -> None:
        """Start with no request."""
        self._bounds: dict[int, tuple[int, int]] = {}  # positions passed at the newest bound, and that bound

    def start(self, index: int) -> None:
        """Take note that a request was admitted."""
        self._bounds.pop(index, None)

    def keep(self, running: RunningBatch) -> None:
        """Forget what does not run."""
        self._bounds = {index: each for index, each in self._bounds.items() if index in running}

    def bounded(self, index: int, renewal: Renewal) -> Renewal:
        """Return a renewal with the bound that a request has had since the last position, if there was none since."""
        passed = bisect_right(POSITIONS, renewal.num_generated - 1)
        before, bound = self._bounds.get(index, (0, 0))
        if passed > before:
            self._bounds[index] = (passed, renewal.output_len_lower_bound)
            return renewal
        return replace(renewal, output_len_lower_bound=max(bound, renewal.num_generated + 1))
