"""The cells of docs/results/beyond.md: which requests, at which load, on which worker, under which policies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.studies.ablation import PARTS
from pipelines.studies.paper import STYLISED_KV_BUDGET
from scheduler.cost_model import CostModel
from scheduler.deployments.deployment import read_deployment
from scheduler.deployments.workers import worker_of
from scheduler.kv_cache import KvCache
from scheduler.simulation.simulate import MakePolicy
from scheduler.worker import Worker

KV_BUDGET = 16_492
MODELS = ("Llama-3.1-8B-Instruct", "Qwen2.5-7B-Instruct-1M", "gemma-3-4b-it")
OTHERS = ("amin", "sjf", "svf", "tie", "amin-survival")
EVERYONE = ("hindsight", "hindsight-svf", "fcfs", "amax", "amin-eviction", "past-future", *OTHERS)
A100 = CostModel(0.010, 1.0e-4, 2.0e-5, 8.2e-8)
"""An 8B model in bf16 on one A100 of 80 GB, from its data sheet, not measured: 16 GB of weights and 131 kB of KV cache
a token (Llama-3.1-8B) read at 80 % of 2.0 TB/s, 16 GFLOP a prefill token at half of 312 TFLOP/s, 20 us a request."""
ABLATION: Mapping[str, Mapping[str, Any]] = {
    "amin-survival": {},
    "pack at 0.1": {"pack_level": 0.1},
    "pack at 0.5": {"pack_level": 0.5},
    "pack at 0.75": {"pack_level": 0.75},
    "no reserve": {"reserve_sd": 0.0},
    "reserve 0.3 sd": {"reserve_sd": 0.3},
    "reserve 0.6 sd, no limit": {"max_reserve": 0.9},
    "reserve 1.2 sd, no limit": {"reserve_sd": 1.2, "max_reserve": 0.9},
    "reserve 2.4 sd, no limit": {"reserve_sd": 2.4, "max_reserve": 0.9},
    "tail 0": {"tail": 0.0},
    "tail 0.3": {"tail": 0.3},
    "tail 3": {"tail": 3.0},
    "first come first served": {"tail": 1e6},
    "level does not follow": {"adaptation": 0.0},
}
FORECASTS = (
    "as predicted", "perfect", "noise:0.2", "noise:0.4", "noise:0.8", "noise:1.6", "same for all", "2x too high",
    "2x too low", "wrong model",
)  # fmt: skip
TAUS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy with options, on some forecast; with `tau` the lower bounds are that quantile, not calibrated."""

    policy: str | MakePolicy = "amin-survival"
    forecast: str = "as predicted"
    tau: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """Requests at a load on a worker, and the variants that serve them; `load` None means all at once."""

    group: str
    source: str
    load: float | None
    variants: Mapping[str, Variant]
    kv_budget: int = KV_BUDGET
    resume: bool = False
    cost_model: CostModel | None = None
    deployment: str | None = None

    @property
    def name(self) -> str:
        """What tells it from the others."""
        load = "at once" if self.load is None else f"load {self.load:g}"
        if self.deployment:
            return f"{self.group}: {self.source} on {self.deployment}, {load}"
        clock = "iterations" if self.cost_model is None else "seconds"
        eviction = "resume" if self.resume else "restart"
        return f"{self.group}: {self.source}, {load}, M {self.kv_budget}, {eviction}, {clock}"

    def worker(self) -> Worker:
        """Return what its requests run on."""
        if self.deployment:
            return worker_of(read_deployment(self.deployment))
        return Worker(KvCache(self.kv_budget), resume=self.resume, cost_model=self.cost_model)


def cells() -> Iterator[Cell]:
    """Yield the cells, those of the goals first."""
    llama, everyone, others = MODELS[0], _policies(EVERYONE), _policies(OTHERS)
    for load in (None, 0.95, 0.8):
        yield Cell("policies", llama, load, everyone)
    for load in (0.5, 0.7, 1.2):
        yield Cell("loads", llama, load, others)
    ablation = {name: Variant(options=options) for name, options in ABLATION.items()}
    ablation |= {name: Variant(make) for name, make in PARTS.items()}
    for load in (None, 0.95):
        yield Cell("ablation", llama, load, ablation)
    for kind in FORECASTS:
        variants = {f"{name}, {kind}": Variant(name, kind) for name in ("amin", "sjf", "amin-survival")}
        for load in (None, 0.8, 0.95):
            yield Cell("forecasts", llama, load, variants)
    for model in MODELS[1:]:
        for load in (None, 0.8, 0.95):
            yield Cell("models", model, load, others)
    for kv_budget in (8_000, 33_000, 66_000):
        for load in (None, 0.95):
            yield Cell("budgets", llama, load, others, kv_budget)
    for load in (None, 0.8, 0.95):
        yield Cell("resume", llama, load, others, resume=True)
    for load in (None, 0.8, 0.95):
        yield Cell("seconds", llama, load, others, resume=True, cost_model=A100)
    for load in (None, 0.8, 0.95):
        yield Cell("lmsys", "lmsys", load, others)
    for trace, kv_budget in (("azure_conv", 66_000), ("azure_code", 66_000), ("mooncake_conversation", 500_000)):
        for load in (0.8, 0.95):
            yield Cell("traces", trace, load, others, kv_budget)
    for load in (None, 0.8, 0.95):
        yield on_deployment(llama, "llama-3.1-8b-b60", load)
    taus = {f"amin, tau {tau:g}": Variant("amin", tau=tau) for tau in TAUS}
    for load in (None, 0.95):
        yield Cell("tau", llama, load, taus)
    stylised = _policies(("amin", "amin-eviction", "svf", "amin-survival"))
    for family, value in (("two-point", 0.7), ("geometric", 0.7), ("linear-geometric", 0.5)):
        for inverse in (5, 20):
            yield Cell("stylised", f"{family}:{inverse}:{value}", None, stylised, STYLISED_KV_BUDGET)


def on_deployment(source: str, name: str, load: float | None) -> Cell:
    """Return a cell on a deployment that exists, with its memory, clock, slots and prefix cache."""
    found = read_deployment(name)
    variants = _policies(("sjf", "svf", "amin-survival", "hindsight-svf"))
    return Cell("deployment", source, load, variants, found.kv_tokens, True, found.clock, name)


def _policies(names: Sequence[str]) -> dict[str, Variant]:
    return {name: Variant(name) for name in names}
