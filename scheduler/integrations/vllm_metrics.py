"""What the plug-in counts, and how it gets on vLLM's own `/metrics`.

The scheduler runs in vLLM's engine process, `/metrics` is answered by its API server. prometheus_client carries counts
between processes in files, in the folder that PROMETHEUS_MULTIPROC_DIR names; vLLM reads them from there. vLLM sets the
variable itself for several API servers; for one, its user does:

    PROMETHEUS_MULTIPROC_DIR=$(mktemp -d) vllm serve MODEL --scheduler-cls ...
"""

import time
from collections import deque
from dataclasses import dataclass, field, fields
from functools import cache

from prometheus_client import Counter, Gauge

from scheduler.policy import Status

WINDOW = 1000
"""Answers over which coverage is reported."""
PUBLISH_SECONDS = 1.0

HELP = {
    "evictions": "Running requests that the policy evicted.",
    "recomputed_tokens": "Tokens whose cache entries evictions gave up, prompts included.",
    "bounds_covered": "Answers that reached their lower bound.",
    "bounds_missed": "Answers that ended below their lower bound.",
    "predicted": "Requests that were predicted at arrival.",
    "prediction_seconds": "Seconds that predictions took, on their own thread.",
    "fallbacks": "Requests that went on with the bound that holds for any prompt.",
    "decisions": "Iterations that the policy decided.",
    "decision_seconds": "Seconds that the plug-in took of these iterations, in the engine's loop.",
    "left_to_vllm": "Iterations that were left to vLLM: nothing to go by, shadow mode, or a failure before.",
    "renewals": "Forecasts of running requests renewed from the served model's states.",
    "renewal_seconds": "Seconds that states and renewals took, in the worker and in the engine's loop.",
    "states_failed": "States that were not numbers; their requests kept the forecast that they had.",
    "unrenewed": "Answers whose forecast was never renewed; those of one token never are.",
    "failures": "Exceptions of the plug-in; after one vLLM decides alone, or nothing is renewed.",
}


@dataclass(slots=True)
class Metrics:
    """Counts since the engine started; each is the Prometheus counter `amin_NAME_total`."""

    engine: str = "0"
    evictions: int = 0
    recomputed_tokens: int = 0
    bounds_covered: int = 0
    bounds_missed: int = 0
    predicted: int = 0
    prediction_seconds: float = 0.0
    fallbacks: int = 0
    decisions: int = 0
    decision_seconds: float = 0.0
    left_to_vllm: int = 0
    renewals: int = 0
    renewal_seconds: float = 0.0
    states_failed: int = 0
    unrenewed: int = 0
    failures: int = 0
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _published: dict[str, float] = field(default_factory=dict)
    _next: float = 0.0

    @property
    def coverage(self) -> float:
        """Share of the last `WINDOW` answers that reached their bound; nan before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else float("nan")

    def count_end(self, lower_bound: int, status: Status, num_generated: int) -> None:
        """Count whether an ended request reached its bound; one that was cancelled below it says nothing."""
        if num_generated < lower_bound and status is Status.CANCELLED:
            return
        is_covered = num_generated >= lower_bound
        self._recent.append(is_covered)
        self.bounds_covered += is_covered
        self.bounds_missed += not is_covered

    def publish(self, now: float | None = None) -> None:
        """Bring Prometheus up to date, at most once in `PUBLISH_SECONDS`."""
        now = time.monotonic() if now is None else now
        if now < self._next:
            return
        self._next = now + PUBLISH_SECONDS
        counters, coverage = _prometheus()
        for name, counter in counters.items():
            value = float(getattr(self, name))
            counter.labels(self.engine).inc(value - self._published.get(name, 0.0))
            self._published[name] = value
        if self._recent:
            coverage.labels(self.engine).set(self.coverage)

    def summary(self) -> str:
        """Return all counts in a line."""
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.name in HELP}
        return ", ".join(f"{name} {value:.4g}" for name, value in counts.items()) + f", coverage {self.coverage:.3f}"


@cache
def _prometheus() -> tuple[dict[str, Counter], Gauge]:
    """Return the process's counters and the gauge; Prometheus refuses the same name twice."""
    counters = {name: Counter(f"amin_{name}", text, ["engine"]) for name, text in HELP.items()}
    text = f"Share of the last {WINDOW} answers that reached their lower bound."
    return counters, Gauge("amin_coverage", text, ["engine"], multiprocess_mode="mostrecent")
