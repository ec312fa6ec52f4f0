"""What the predictor adds to a request: bounds, median and forecast; and what stands in where it did not answer."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.bounds.distribution import FloatArray, quantile
from predictor.resolve import resolve_predictor
from predictor.spec import LengthPredictorLike
from scheduler.forecast import Forecast
from scheduler.request import Request

UPPER_LEVEL = 0.95
"""Quantile that serves as the upper bound of amax: the predictor's, since the cap alone would say nothing."""

BATCH_SIZE = 16
"""Prompts that go through the network together: more gain nothing on a CPU, fewer lose a tenth or more."""


class RequestBounds:
    """A predictor, the served model that it predicts for, and the probability allowed below the bound."""

    def __init__(
        self, length_predictor: LengthPredictorLike, model: str | None, tau: float, max_batch: int = BATCH_SIZE
    ) -> None:
        """Read the marginal lengths off the calibration; `max_batch` requests are best predicted in one call.

        Raises:
            InputError: The predictor does not know `model`, or `tau` is finer than its calibration supports.
        """
        self._predictor, self.tau, self.max_batch = length_predictor, tau, max_batch
        self.spec, self.bins = length_predictor.spec, length_predictor.bins
        self.model = self.spec.choose(model)
        self.calibration = calibration = self.spec.calibration(self.model)
        calibration.level(tau)
        self._edges = self.bins.as_array()
        self._marginal_bound = calibration.marginal_bound(tau)
        lengths, weights = np.array(calibration.lengths.scores), np.array(calibration.lengths.cumulated)
        self._marginal = _survival(lengths, weights, self._edges)

    @classmethod
    def read(cls, path: Path, model: str | None, tau: float) -> "RequestBounds":
        """Return those of a run folder or an export, which then predicts next to the engine, on half of the cores.

        Raises:
            InputError: There is no predictor, or as in the constructor.
        """
        if (path / "manifest.json").is_file():
            from predictor.serving import LengthPredictor

            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            count = max(1, cores // 2)
            exported = LengthPredictor(path, batch_size=BATCH_SIZE, num_threads=1, num_batches_at_once=count)
            return cls(exported, model, tau, BATCH_SIZE * count)
        return cls(resolve_predictor(path), model, tau)

    def predicted(self, requests: Sequence[Request], prompts: Sequence[str]) -> list[Request]:
        """Return the requests with what the predictor says of their prompts."""
        keys = [(prompt, request.max_new_tokens) for prompt, request in zip(prompts, requests, strict=True)]
        distinct = {key: row for row, key in enumerate(dict.fromkeys(keys))}  # several draws of a prompt are one
        predictions = self._predictor.predict(
            [prompt for prompt, _ in distinct],
            tau=self.tau,
            max_new_tokens=[limit for _, limit in distinct],
            model=self.model,
        )
        uppers = quantile(self._predictor.bins, predictions.survival, UPPER_LEVEL)
        rows = [distinct[key] for key in keys]
        lowers, medians = predictions.lower_bounds, predictions.medians
        return [
            with_bounds(
                request,
                (int(lowers[row]), int(medians[row]), int(uppers[row])),
                Forecast(self._edges, predictions.survival[row], self.calibration.tail),
            )
            for request, row in zip(requests, rows, strict=True)
        ]

    def marginal(self, request: Request) -> Request:
        """Return a request with what holds for any prompt: the fallback where there is no prediction."""
        forecast = Forecast(self._edges, self._marginal, self.calibration.tail)
        median, upper = int(forecast.quantile(0.5)), int(forecast.quantile(UPPER_LEVEL))
        return with_bounds(request, (self._marginal_bound, median, upper), forecast)


def with_bounds(request: Request, bounds: tuple[int, int, int], forecast: Forecast) -> Request:
    """Return a request with a lower bound, a median and an upper bound, in order and within its limit."""
    lower, median, upper = (max(1, min(bound, request.max_new_tokens)) for bound in bounds)
    return replace(
        request,
        output_len_lower_bound=lower,
        output_len_upper_bound=max(lower, upper),
        output_len_prediction=max(lower, median),
        forecast=forecast,
    )


def _survival(lengths: FloatArray, cumulated: FloatArray, edges: IntArray) -> FloatArray:
    """Return P(length > edge) on the edges [K+1] of ascending lengths [N] with their cumulated weights [N]."""
    at_most = np.concatenate([[0.0], cumulated / cumulated[-1]])
    return np.asarray(1.0 - at_most[np.searchsorted(lengths, edges, side="right")])
