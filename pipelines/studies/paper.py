"""Reproduce the experiments of arXiv 2508.14544 on the iteration clock; needs no torch."""

import logging
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines.files import atomic_file, write_json
from pipelines.results import print_table
from pipelines.settings.paper import PaperSettings
from pipelines.simulate.traces import read_requests
from pipelines.studies.paper_figures import FIGURES, claims
from scheduler.kv_cache import KvCache
from scheduler.metrics import summarize
from scheduler.simulation.simulate import simulate
from scheduler.simulation.synthesis import lmsys_shaped, synthesize
from scheduler.worker import Worker
from scheduler.workload import Workload, workload_from_columns

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Lengths = tuple[Ints, Ints]
Row = dict[str, Any]

KV_BUDGET, MAX_NEW_TOKENS, NUM_REQUESTS = 16_492, 1_000, 2_000
SAME_FOR_ALL, TEN_BINS = "interval:1:1000", "bins:100:10"
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
OTHER_BINS = ("bins:500:2", "bins:250:4", "bins:50:20")
WITHOUT_PROMPTS = (SAME_FOR_ALL, TEN_BINS, "relative:0.5", "relative:0.9", "relative:0.99")

STYLISED_KV_BUDGET, LOW = 4_000, 10
CURVE_SIZE, CONFIRMED_SIZE, AMAX_SIZE = 20_000, 20_000, 40_000
REFINEMENTS = ("amin-eviction", "amin")
FAMILIES: Mapping[str, Callable[[Ints, float], NDArray[Any]]] = {
    "two-point": lambda k, p: np.where(k == 1, p, 0.0) + np.where(k == k[-1], 1 - p, 0.0),
    "geometric": lambda k, q: q**k,
    "linear-geometric": lambda k, q: k * q**k,
    "power": lambda k, exponent: 1 / k**exponent,
}
"""Probability of the length k * LOW up to a factor, k = 1 .. 1/alpha."""
CURVES: Mapping[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "two-point": ((2, 5, 10, 20), (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)),
    "geometric": ((2, 5, 10, 20), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    "linear-geometric": ((2, 5, 10, 20), (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
}
"""1/alpha and the grid of p or q over which the ratio's supremum is taken."""
GROWTH = (2, 5, 10, 20, 40)
AMAX_POINTS = ((0, 20), (0, 50), (0, 100), (0, 200), (0, 400), (40, 40), (40, 60), (40, 160), (40, 360))
"""Prompt tokens s and upper bound u; M is a multiple of s+u and of s+l. Hindsight's last batch of M/(s+l) weighs by
M/(s+l)/AMAX_SIZE, at most 1 %."""


@dataclass(frozen=True, slots=True)
class Instance:
    """Requests with interval predictions, and where they stand in the experiments.

    Attributes:
        experiment: latency (1), sensitivity (variations of 1), ratio (2), confirmed (its largest points on fresh
            seeds), growth (of the ratio with 1/alpha) or amax (all true lengths l).
        setting: The predictions, or the family of lengths.
        x: What a figure has on its axis: requests, the x of relative:x, 1/alpha, or (s+u)/(s+l).
        parameter: p or q of the family, or prompt tokens.
        num_requests: All arrive at 0.
        kv_budget: Tokens.
        seed: Of the lengths and of ties.
        policies: Besides hindsight.
    """

    experiment: str
    setting: str
    x: float
    parameter: float | None
    num_requests: int
    kv_budget: int
    seed: int
    policies: tuple[str, ...]
    make: Callable[[], Workload]


def run(settings: PaperSettings) -> None:
    """Run every experiment, write paper.json and the figures, print the claims."""
    lengths = None if settings.lengths is None else _read_lengths(settings.lengths)
    scale = 10 if settings.quick else 1
    seeds = range(settings.seeds)
    planned = [*_latency(lengths, seeds, scale), *_ratio(seeds, scale)]
    num_confirmed = len(CURVES) * len(REFINEMENTS) * settings.seeds * 2 * CONFIRMED_SIZE // scale
    total = sum(point.num_requests * (1 + len(point.policies)) for point in planned) + num_confirmed
    with tqdm(total=total, desc="paper", unit="request", disable=not settings.progress) as bar:
        rows = list(_run(planned, bar.update))
        rows += _run(_confirmed(rows, seeds, scale), bar.update)
    verdicts = claims(rows)
    results = {**_setting(settings), "claims": [asdict(verdict) for verdict in verdicts], "runs": rows}
    for name, draw in FIGURES.items():
        with atomic_file(settings.out / f"{name}.png") as aside:
            aside.write_bytes(draw(rows))
    write_json(settings.out / "paper.json", results)
    print_table(["claim", "figure", "verdict"], [[v.claim, v.figure, v.verdict] for v in verdicts])
    if settings.quick:
        print("--quick: with a tenth of the requests no ratio has settled, and no verdict is one on the paper")


def _read_lengths(path: Path) -> Lengths:
    """Return prompt and output lengths of a file, prompts being made up where it has none."""
    base = read_requests(path, MAX_NEW_TOKENS)
    prompts = np.array([request.num_prompt_tokens for request in base.requests], dtype=np.int64)
    if not prompts.any():
        logger.warning("%s: prompts are drawn as scheduler.simulation.synthesis.lmsys_shaped does", path)
        prompts, _ = lmsys_shaped(prompts.size, np.random.default_rng(0))
    return prompts, np.array(base.output_lens, dtype=np.int64)


def _latency(lengths: Lengths | None, seeds: Iterable[int], scale: int) -> Iterator[Instance]:
    """Yield the instances of the first experiment and its variations."""
    most = NUM_REQUESTS // scale
    policies = ("fcfs", "amax", *REFINEMENTS)
    for seed in seeds:

        def point(name: str, predictions: str, x: float, size: int, with_prompts: bool, seed: int = seed) -> Instance:
            make = partial(_sampled, lengths, predictions, size, seed, with_prompts)
            setting = predictions if with_prompts else f"{predictions}, no prompts"
            return Instance(name, setting, x, None, size, KV_BUDGET, seed, policies, make)

        for size in range(most // 10, most + 1, most // 10):
            yield from (point("latency", setting, size, size, True) for setting in (SAME_FOR_ALL, TEN_BINS))
        yield from (point("latency", f"relative:{share}", share, most, True) for share in SHARES)
        yield from (point("sensitivity", setting, most, most, True) for setting in OTHER_BINS)
        yield from (point("sensitivity", setting, most, most, False) for setting in WITHOUT_PROMPTS)


def _sampled(lengths: Lengths | None, predictions: str, size: int, seed: int, with_prompts: bool) -> Workload:
    """Return the first `size` of the seed's sample, so that a larger workload contains the smaller one."""
    rng = np.random.default_rng(seed)
    if lengths is None:
        prompts, outputs = lmsys_shaped(NUM_REQUESTS, rng)
    else:
        rows = rng.choice(lengths[1].size, NUM_REQUESTS, replace=lengths[1].size < NUM_REQUESTS)
        prompts, outputs = lengths[0][rows], lengths[1][rows]
    base = _workload(prompts[:size] * with_prompts, outputs[:size], MAX_NEW_TOKENS)
    return Workload(synthesize(base.requests, base.output_lens, predictions, rng), base.output_lens)


def _workload(prompts: Ints, outputs: Ints, max_new_tokens: int) -> Workload:
    places = [f"r{i}" for i in range(outputs.size)]
    return workload_from_columns(places, prompts, outputs, np.zeros(outputs.size), max_new_tokens)


def _ratio(seeds: Iterable[int], scale: int) -> Iterator[Instance]:
    """Yield the instances of the second experiment: curves on one seed, growth and Amax's limit."""
    size = CURVE_SIZE // scale
    policies = ("amax", *REFINEMENTS)
    for family, (inverses, grid) in CURVES.items():
        for inverse in inverses if scale == 1 else inverses[:-1]:
            for value in grid if scale == 1 else grid[2::3]:
                yield _stylised("ratio", family, inverse, value, size, 0, policies)
    for inverse in GROWTH:
        yield from (_stylised("growth", "power", inverse, 2.0, size, seed, policies) for seed in seeds)
    size = AMAX_SIZE // scale
    for prompt, upper in AMAX_POINTS:
        limit, make = (prompt + upper) / (prompt + LOW), partial(_interval, np.full(size, LOW), upper, prompt)
        yield Instance("amax", "all lengths l", limit, prompt, size, STYLISED_KV_BUDGET, 0, ("amax",), make)


def _confirmed(rows: list[Row], seeds: Iterable[int], scale: int) -> Iterator[Instance]:
    """Yield, for each family and refinement, the point of the largest ratio, larger and on seeds not seen before."""
    for family in CURVES:
        for policy in REFINEMENTS:
            tried = [r for r in rows if (r["experiment"], r["setting"], r["policy"]) == ("ratio", family, policy)]
            top = max(tried, key=lambda row: row["ratio_to_hindsight"])
            where = (family, int(top["x"]), top["parameter"], CONFIRMED_SIZE // scale)
            yield from (_stylised("confirmed", *where, 1 + seed, (policy,)) for seed in seeds)


def _stylised(
    experiment: str, family: str, inverse: int, value: float, size: int, seed: int, policies: tuple[str, ...]
) -> Instance:
    def make() -> Workload:
        steps = np.arange(1, inverse + 1)
        weights = FAMILIES[family](steps, value)
        outputs = LOW * np.random.default_rng(seed).choice(steps, size, p=weights / weights.sum())
        return _interval(outputs, LOW * inverse, 0)

    return Instance(experiment, family, inverse, value, size, STYLISED_KV_BUDGET, seed, policies, make)


def _interval(outputs: Ints, upper: int, prompt: int) -> Workload:
    """Return requests that are all predicted to take LOW to `upper` tokens."""
    base = _workload(np.full(outputs.size, prompt), outputs, upper)
    rng = np.random.default_rng(0)  # not drawn from: intervals have no noise
    return Workload(synthesize(base.requests, base.output_lens, f"interval:{LOW}:{upper}", rng), base.output_lens)


def _run(instances: Iterable[Instance], progress: Callable[[int], object]) -> Iterator[Row]:
    """Yield a row for each instance and policy; `progress` is told how many requests have ended."""
    for point in instances:
        workload, kv_cache = point.make(), KvCache.from_budget(point.kv_budget, 1)
        least = 0.0
        for policy in ("hindsight", *point.policies):
            result = simulate(policy, workload, Worker(kv_cache), point.seed)
            progress(point.num_requests)
            figures = summarize(result, kv_cache)
            total = float(result.finish_time.sum())
            least = least or total
            kept = {name: figures[name] for name in ("mean_latency", "num_evictions", "recomputed_share")}
            place = {name: getattr(point, name) for name in Instance.__slots__ if name not in ("policies", "make")}
            yield {**place, "policy": policy, "total_latency": total, "ratio_to_hindsight": total / least, **kept}


def _setting(settings: PaperSettings) -> Row:
    return {
        "command": "amin " + " ".join(sys.argv[1:]),
        "lengths": "lmsys_shaped" if settings.lengths is None else settings.lengths.name,
        "seeds": settings.seeds,
        "quick": settings.quick,
        "kv_budget": KV_BUDGET,
        "stylised": {"kv_budget": STYLISED_KV_BUDGET, "lower_bound": LOW, "num_prompt_tokens": 0},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("amin", "numpy", "matplotlib")}},
    }
