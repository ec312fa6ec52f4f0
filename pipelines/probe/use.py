"""A probe in use: what it reads in an engine, and the renewed forecasts that it gives for running requests."""

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.predictor_digest import predictor_sha256
from pipelines.served_model.hidden_states import decoder_layers, state_source
from pipelines.served_model.loading import ServedModel
from predictor.bounds.bins import LengthBins
from predictor.bounds.distribution import FloatArray
from predictor.probe.conditioned import conditioned
from predictor.probe.probe import Probe, ProbeInputs
from predictor.probe.states import POSITIONS
from scheduler.batch import RunningBatch
from scheduler.forecast import Floats, Forecast
from scheduler.integrations.transformers_states import StateReader
from scheduler.renewals import Renewal, RenewalSource
from scheduler.request import Request

_log = logging.getLogger(__name__)
LEAST_ALIVE = 1e-9
"""A remaining length above one token that is less probable than this is taken to have been ruled out."""


def read_probe(folder: Path, tau: float) -> Probe:
    """Return the probe of a folder; InputError where there is none, or where `tau` is finer than its calibration."""
    probe = Probe.load(folder)
    probe.calibration.level_over_answer(tau)
    return probe


def require_model(probe: Probe, folder: Path, served: ServedModel, option: str = "--probe") -> None:
    """Raise InputError, in one line that names the field, where the probe is of another model, layer or template."""
    probe.source.require(state_source(served, probe.source.layers, option), folder)


def state_reader(probe: Probe, served: ServedModel, max_batch_tokens: int) -> StateReader:
    """Return what reads the states of a probe's layer while an engine runs; the caller closes it."""
    layers = decoder_layers(served)
    return StateReader(
        layers[max(0, probe.layer - 1)],
        is_input=probe.layer == 0,
        hidden_size=probe.source.hidden_size,
        window=probe.source.window,
        max_batch_tokens=max_batch_tokens,
    )


def is_mixed(probe: Probe, prompt_predictor: Path | None) -> bool:
    """Return whether a probe was trained next to this prompt-only predictor: both together are then read."""
    if probe.mixture is None or prompt_predictor is None:
        return False
    return probe.mixture.predictor == predictor_sha256(prompt_predictor)


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
        prompt = self._prompt_survival(inputs, forecasts) if self._is_mixed else None
        renewed = self._probe.renew(inputs, self._tau, over_answer=True, prompt_survival=prompt)
        found: list[Renewal | None] = []
        for out, survival, bound, failed in zip(
            generated, renewed.survival, renewed.lower_bounds, renewed.failed, strict=True
        ):
            forecast = None if failed else whole_length(self._probe.bins, survival, out)
            found.append(None if forecast is None else Renewal(out + 1, forecast, max(int(bound), out + 2)))
        self._count(len(found), int(renewed.failed.sum()))
        return found

    def of_prompts(
        self, states: Any, num_prompt_tokens: Sequence[int], forecasts: Sequence[Forecast | None]
    ) -> list[Renewal | None]:
        """Return for each request that waits what the state at its prompt's last token tells; arguments as `renew`."""
        inputs = ProbeInputs(states, np.zeros(len(num_prompt_tokens), np.int64), np.asarray(num_prompt_tokens))
        prompt = self._prompt_survival(inputs, forecasts) if self._is_mixed else None
        told = self._probe.renew(inputs, self._tau, over_answer=True, prompt_survival=prompt)
        num_failed = int(told.failed.sum())
        self._count(num_failed, num_failed)  # nothing was renewed
        rows = zip(told.survival, told.lower_bounds, told.failed, strict=True)
        return [
            None if failed else Renewal(0, at_arrival(self._probe.bins, survival), max(1, int(bound)))
            for survival, bound, failed in rows
        ]

    def _count(self, num_asked: int, num_failed: int) -> None:
        """Count, and say when failures have doubled: a broken model would fill the log."""
        self.num_renewed += num_asked - num_failed
        before, self.num_failed = self.num_failed, self.num_failed + num_failed
        if self.num_failed.bit_length() > before.bit_length():
            _log.warning("states that were not numbers so far: %d; the forecasts stay", self.num_failed)

    def _prompt_survival(self, inputs: ProbeInputs, forecasts: Sequence[Forecast | None]) -> FloatArray:
        """Return P(remaining > edge) on the probe's bins, [N, K+1]."""
        known = [forecast for forecast in forecasts if forecast is not None]
        assert len(known) == len(forecasts), "a mixture without the prompt's forecasts"
        bins = LengthBins(tuple(known[0].edges.tolist()))
        survival = np.stack([forecast.survival for forecast in known])
        return conditioned(bins, survival, inputs.generated, self._probe.bins)


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


class ProbeRenewals(RenewalSource):
    """Renews every running request once so many iterations have passed, in one batch, and each after its prefill.

    A forecast is renewed each time, a bound once for each position that states are collected at, at the first renewal
    from there on: all bounds of an answer hold together for as many as were calibrated, and fewer do with every further
    one. An admission starts anew.
    """

    def __init__(
        self,
        bounds: RenewedBounds,
        states: StateReader,
        request: Callable[[int], Request],
        every: int,
        *,
        keeps: bool = False,
    ) -> None:
        """Start with nothing admitted.

        Args:
            bounds: The probe.
            states: Of the engine; a request goes by its index.
            request: Returns a request with what its prompt alone told.
            every: Iterations, and so tokens, from one renewal of all to the next.
            keeps: Whether all renewals are kept for `in_order`.
        """
        self.bounds, self._states, self._request, self._every = bounds, states, request, every
        self._keeps = keeps
        self._new: set[int] = set()
        self._bounds: dict[int, tuple[int, int]] = {}  # of each request: positions passed at its newest bound, and that
        self._given: dict[int, dict[int, Renewal]] = {}
        self._seconds = 0.0

    def start(self, index: int, running: RunningBatch) -> None:
        """Have a request renewed as soon as its prompt is read."""
        self._new.add(index)
        self._bounds.pop(index, None)

    def wait(self, running: RunningBatch) -> float:
        """Return 1: whether a prompt has been read shows after each iteration."""
        return 1

    def take(self, running: RunningBatch) -> Sequence[tuple[int, Renewal]]:
        """Return the renewals that are due now, in order of request index."""
        started = time.perf_counter()
        self._new.intersection_update(running)
        asked = running if running.clock % self._every == 0 else self._new
        due = sorted(index for index in asked if self._has_new_state(index, running))
        taken = []
        if due:
            self._new.difference_update(due)
            generated = [running.num_generated(index) - 1 for index in due]
            states = self._states.read([str(index) for index in due])
            requests = [self._request(index) for index in due]
            sizes = [request.num_prompt_tokens for request in requests]
            renewed = self.bounds.renew(states, generated, sizes, [request.forecast for request in requests])
            self._bounds = {index: each for index, each in self._bounds.items() if index in running}
            pairs = zip(due, renewed, strict=True)
            taken = [(index, self._bounded(index, renewal)) for index, renewal in pairs if renewal is not None]
        for index, renewal in taken if self._keeps else ():
            self._given.setdefault(index, {})[renewal.num_generated] = renewal
        self._seconds += time.perf_counter() - started
        return taken

    def _bounded(self, index: int, renewal: Renewal) -> Renewal:
        """Return a renewal with the bound that a request has had since the last position, if there was none since."""
        passed = bisect_right(POSITIONS, renewal.num_generated - 1)
        before, bound = self._bounds.get(index, (0, 0))
        if passed > before:
            self._bounds[index] = (passed, renewal.output_len_lower_bound)
            return renewal
        return replace(renewal, output_len_lower_bound=max(bound, renewal.num_generated + 1))

    @property
    def all_seconds(self) -> float:
        """Time spent on states and renewals."""
        return self._seconds + self._states.noting_seconds

    def in_order(self) -> dict[int, list[Renewal]]:
        """Return what the policy got, by request and tokens out; a restarted request goes through the same again."""
        return {index: [each[out] for out in sorted(each)] for index, each in self._given.items()}

    def _has_new_state(self, index: int, running: RunningBatch) -> bool:
        """Return whether the newest state of a request is the one that gave its newest token."""
        generated = running.num_generated(index)
        return generated > 0 and self._states.num_generated(str(index)) == generated - 1
