"""Prometheus metrics of the sidecar."""

from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from predictor.sidecar.answers import Answer, Sidecar
from predictor.sidecar.feedback import FeedbackLedger

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
_PROMPTS = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._latency = Histogram(
            "amin_request_seconds",
            "Seconds from a complete request to its response",
            ["path", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "amin_batch_prompts", "Prompts per inference", buckets=_PROMPTS, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "amin_batch_seconds", "Seconds per inference", buckets=_SECONDS, registry=self.registry
        )
        self._predictions = Counter(
            "amin_predictions", "Prompts answered, by source", ["source"], registry=self.registry
        )
        self._fallbacks = Counter(
            "amin_fallbacks", "Prompts answered with the marginal bound, by reason", ["reason"], registry=self.registry
        )
        self._waits = Histogram(
            "amin_proxy_added_seconds",
            "Seconds that a request waited for a hint",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._verdicts = Counter("amin_feedback", "Reports received, by verdict", ["verdict"], registry=self.registry)
        # Finding a labelled metric takes longer than counting. Paths, statuses, sources and reasons are few.
        self._latency_of = cache(self._latency.labels)
        self._predictions_of, self._fallbacks_of = cache(self._predictions.labels), cache(self._fallbacks.labels)

    @contextmanager
    def watching(self, sidecar: Sidecar) -> Iterator[None]:
        """Show the queue and the online correction of `sidecar` meanwhile."""
        gauges = _LiveGauges(sidecar)
        self.registry.register(gauges)
        try:
            yield
        finally:
            self.registry.unregister(gauges)

    def add_request(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._latency_of(path, str(status)).observe(seconds)

    def add_wait(self, seconds: float) -> None:
        """Count a request that passes."""
        self._waits.observe(seconds)

    def add_batch(self, size: int, seconds: float) -> None:
        """Count one inference."""
        self._batch_size.observe(size)
        self._batch_seconds.observe(seconds)

    def add_answers(self, answers: Iterable[Answer]) -> None:
        """Count answered prompts."""
        for answer in answers:
            self._predictions_of(answer.source).inc()
            if answer.reason is not None:
                self._fallbacks_of(answer.reason).inc()

    def add_verdicts(self, verdicts: Iterable[str]) -> None:
        """Count feedback."""
        for verdict, count in Counts(verdicts).items():
            self._verdicts.labels(verdict).inc(count)

    def text(self) -> bytes:
        """Return everything in the Prometheus text format."""
        return generate_latest(self.registry)


class _LiveGauges(Collector):
    """Reads the gauges when they are asked for."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    def collect(self) -> Iterator[Metric]:
        ledger, batcher = self._sidecar.ledger, self._sidecar.batcher
        yield GaugeMetricFamily("amin_queue_prompts", "Prompts that wait for an inference", batcher.num_waiting)
        yield GaugeMetricFamily("amin_remembered_predictions", "Predictions remembered for feedback", len(ledger))
        yield from _corrections(ledger)


def _corrections(ledger: FeedbackLedger) -> Iterator[Metric]:
    labels = ["tau", "model", "source"]
    coverage = GaugeMetricFamily("amin_live_coverage", "Share of the last 1000 that reached their bound", labels=labels)
    tightness = GaugeMetricFamily("amin_live_tightness", "Mean bound / mean length, last 1000 finished", labels=labels)
    level = GaugeMetricFamily("amin_level", "CDF level at which predictions are read now", labels=["tau", "model"])
    shipped = GaugeMetricFamily("amin_shipped_level", "That level without correction", labels=["tau", "model"])
    answers = GaugeMetricFamily("amin_answers", "Ended answers that the correction is made from", labels=["model"])
    running = GaugeMetricFamily("amin_running", "Requests that are running, as far as is known", labels=["model"])
    for key, track in ledger.tracks:
        names = [repr(key.tau), key.model, key.source]
        coverage.add_metric(names, track.coverage)
        tightness.add_metric(names, track.tightness)
        if key.source == "model":
            calibration = ledger.calibration(key.model)
            level.add_metric(names[:2], calibration.level(key.tau))
            shipped.add_metric(names[:2], calibration.shipped.level(key.tau))
    for model, calibration in ledger.calibrations.items():
        answers.add_metric([model], calibration.num_answers)
        running.add_metric([model], calibration.num_running)
    yield from (coverage, tightness, level, shipped, answers, running)
