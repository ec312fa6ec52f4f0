"""A probe in use: what it reads in an engine, and the renewed forecasts that it gives for running requests."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.predictor_digest import predictor_sha256
from pipelines.probe.renewed_bounds import CalibratedBounds, RenewedBounds
from pipelines.served_model.hidden_states import decoder_layers, state_source
from pipelines.served_model.loading import ServedModel
from predictor.probe.probe import Probe
from scheduler.batch import RunningBatch
from scheduler.integrations.transformers_states import StateReader
from scheduler.renewals import Renewal, RenewalSource
from scheduler.request import Request


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


class ProbeRenewals(RenewalSource):
    """Renews every running request once so many iterations have passed, in one batch, and each after its prefill.

    A forecast is renewed each time, a bound as `CalibratedBounds` lets it.
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
        self._calibrated = CalibratedBounds()
        self._given: dict[int, dict[int, Renewal]] = {}
        self._seconds = 0.0

    def start(self, index: int, running: RunningBatch) -> None:
        """Have a request renewed as soon as its prompt is read."""
        self._new.add(index)
        self._calibrated.start(index)

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
            self._calibrated.keep(running)
            pairs = zip(due, renewed, strict=True)
            bounded = self._calibrated.bounded
            taken = [(index, bounded(index, renewal)) for index, renewal in pairs if renewal is not None]
        for index, renewal in taken if self._keeps else ():
            self._given.setdefault(index, {})[renewal.num_generated] = renewal
        self._seconds += time.perf_counter() - started
        return taken

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
