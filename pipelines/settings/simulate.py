"""What `amin simulate` and `amin map` are asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pipelines.settings.option import Metavar, Positional
from pipelines.settings.worker import WorkerSettings
from predictor.ranges import Count, Range, check_ranges

Routing = Literal["round-robin", "least-requests", "power-of-two", "least-predicted-work"]


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Where requests come from."""

    workload: Annotated[str, Positional("WORKLOAD")]
    """JSONL, a line per request; any log or trace of docs/data-formats.md; or made
    up: lmsys-shaped:N (chats), reasoning:N (long answers), reasoning-mixed:N (three classes of them)."""
    bins: Path | None = None
    """JSON list of length-bin edges that the field survival is on; default: WORKLOAD.bins.json where there is one."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """What numbers in the workload's column of times count; default: as found and printed."""
    max_new_tokens: Count | None = None
    """Cap of requests that state none; default: none, but what the KV cache holds."""
    skip_too_large: bool = False
    """Leave out requests that the KV cache can never hold, as engines refuse them."""


@dataclass(frozen=True, slots=True)
class SimulateSettings:
    """Settings of `amin simulate`; times in iterations, or in seconds with a clock.

    Examples:
      amin simulate workload.jsonl --kv-budget 16492 --out out
      amin simulate lmsys-shaped:2000 --deployment llama-3.1-8b-h100 --predictions noise:0.4 --load 0.9 --out out
      amin simulate azure_conv.parquet --deployment qwen3-32b-h100 --load 0.9 --predictions noise:0.4 --out out
    """

    source: SourceSettings
    """requests"""
    worker: WorkerSettings
    """what they run on"""
    out: Path
    """Folder for results.json and requests.parquet."""
    policies: Annotated[str, Metavar("NAMES|all")] = "all"
    """Names separated by commas; all: those that these requests have what they read for."""
    arrivals: str | None = None
    """all-at-once, poisson:RATE, gamma:RATE:CV (requests per iteration or second), or a file with a time a line;
    default: the workload's own. With --load: poisson (the default where all arrive at once), gamma:CV or a file."""
    load: Annotated[float, Range(0, 1000, (True, False))] | None = None
    """Arrival rate as a share of what can be served, by KV cache or slots, whichever binds; stretches a trace."""
    predictions: str | None = None
    """Make predictions from true lengths: interval:LOW:HIGH, bins:WIDTH:COUNT, relative:X, exact, noise:SIGMA[:TAU]
    (log-normal error), or skill:R2[:TAU] (calibrated, explains R2 of log length); default: the workload's own."""
    look_ahead: Count | None = None
    """Prompt tokens of waiting requests that an iteration reads ahead, after all that runs and without keeping them;
    what they tell is the workload's renewal after 0 tokens. Default: none."""
    scheduling: Path | None = None
    """What amin tune wrote, or its folder: the levels that policies are built with."""
    routing: Routing = "round-robin"
    """Who gets a request, with --replicas: each in turn; the one with the fewest requests; the better of two
    drawn ones; the one with the least predicted output tokens."""
    sibling_correlation: Annotated[float, Range(0, 0.95)] = 0.6
    """How alike the lengths of requests with the same group are, seen through their forecasts: when one ends, or
    lasts, the forecasts of the others move; 0: they do not."""
    max_overtakes: Annotated[str | None, Metavar("[K][,CLASS=K...]")] = None
    """How often a request may be overtaken while it waits, by one that arrived later and is admitted before. 50: all
    requests; apps=4,chat=9: those of two classes, others without bound; 3,apps=4: 4 in class apps, 3 elsewhere. 0 is
    first come first served; default: as each policy's order has it."""
    ttft_target: Annotated[float, Range(0, 1e9, (True, False))] | None = None
    """Time to the first token that goodput counts, in the unit of the clock."""
    tpot_target: Annotated[float, Range(0, 1e9, (True, False))] | None = None
    """Time per output token after the first that goodput counts."""
    seeds: Count = 5
    """Runs per policy; they differ in random arrivals, predictions and ties."""
    force: bool = False
    """Replace the results that are there."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        for each in (self, self.source, self.worker):
            check_ranges(each)

    def defaults(self) -> Mapping[str, Any]:
        """Return what the deployment gives where no option does."""
        return self.worker.defaults()


@dataclass(frozen=True, slots=True)
class MapSettings:
    """Settings of `amin map`.

    Examples:
      amin map lmsys-shaped:2000 --deployment llama-3.1-8b-h100 --out map
    """

    source: SourceSettings
    """requests"""
    worker: WorkerSettings
    """what they run on"""
    out: Path
    """Folder for map.json and map.png."""
    policy: str = "amin-survival"
    """The policy to compare with fcfs."""
    loads: str = "0.5,0.7,0.8,0.9,1.0,1.2"
    """Shares of what can be served, separated by commas."""
    noise: str = "0,0.2,0.4,0.8,1.6"
    """Standard deviations, separated by commas, of the log-normal error of the predictions; 0 is perfect, 0.4 good."""
    arrivals: str = "poisson"
    """poisson, gamma:CV, or a file with a time a line."""
    seeds: Annotated[int, Range(2, 1000)] = 10
    """Runs per cell; they differ in arrivals and predictions."""
    force: bool = False
    """Replace the map that is there."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        for each in (self, self.source, self.worker):
            check_ranges(each)

    def defaults(self) -> Mapping[str, Any]:
        """Return what the deployment gives where no option does."""
        return self.worker.defaults()
