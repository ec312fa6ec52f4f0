"""Generation under one policy with one seed, on an honest clock."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines.evaluate.arrival_predictions import PredictedArrivals
from pipelines.evaluate.case import Case
from pipelines.evaluate.state_use import StateUse
from pipelines.evaluate.timed_policy import TimedPolicy
from pipelines.results import PolicyRun
from pipelines.served_model.loading import ServedModel
from pipelines.settings.evaluate import EvaluateSettings
from predictor.probe.probe import Probe
from scheduler.integrations.transformers_cb import TransformersExecutor
from scheduler.integrations.transformers_fifo import EngineFifo
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop, RunResult
from scheduler.policies import POLICIES, Reads, make_policy
from scheduler.renewals import Renewal
from scheduler.request import Request
from scheduler.simulation.arrivals import arrival_times
from scheduler.worker import Worker

ENGINE_FIFO = "engine-fifo"
"""The engine's own scheduler, without our loop: the control."""
WARM_UP_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A run with what it takes to replay it."""

    run: PolicyRun
    order: list[int]
    """Position in the prompts of each request."""
    entry_times: NDArray[np.float64]
    """When the policy was told of each request: its arrival, or later if it waited for its prediction."""
    iterations: NDArray[np.float64]
    """Seconds, prefill tokens, decoding requests and KV tokens of each iteration, shape [iterations, 4]."""
    num_identical: int
    """Answers equal to the unconstrained ones; 0 if not compared."""
    renewals: Mapping[int, Sequence[Renewal]] = field(default_factory=dict)
    """Renewed forecasts as the policy got them, by request."""
    attention: str = ""
    """Which attention the engine ran, and on a GPU in how many CUDA graphs."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """What one run serves: requests in order of arrival, with the prompts and lengths that belong to them."""

    name: str
    seed: int
    order: list[int]
    requests: list[Request]
    prompts: list[list[int]]
    lens: list[int] | None
    """True lengths where they are known, for policies that know them."""
    forced_lens: list[int] | None
    """Lengths that the answers are made to have."""
    forced_tokens: list[list[int]] | None
    """Tokens that they are made to have, where their states are read."""
    title: str


def run_policy(
    name: str,
    seed: int,
    settings: EvaluateSettings,
    served: ServedModel,
    case: Case,
    kv_cache: KvCache,
    warm_up: bool = False,
    probe: Probe | None = None,
) -> MeasuredRun:
    """Return the run of one policy; with `warm_up` of a few requests, to be thrown away.

    With a `probe` the forecasts of running requests are renewed under policies that read predictions.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(case.facts)).tolist()
    times = arrival_times(settings.arrivals, len(order), rng)
    if warm_up:
        order, times = order[:WARM_UP_REQUESTS], times[:WARM_UP_REQUESTS] * 0
    requests = [replace(case.facts[i], arrival_time=float(t)) for i, t in zip(order, times, strict=True)]
    lens = None if case.output_lens is None else [case.output_lens[i] for i in order]
    forced = lens if settings.decoding == "forced" else None
    tokens = None if case.tokens is None else [case.tokens[i] for i in order]
    title = "warm-up" if warm_up else f"{name} seed {seed}"
    trial = _Trial(name, seed, order, requests, [case.prompts[i] for i in order], lens, forced, tokens, title)
    if name == ENGINE_FIFO:
        return _by_engine(trial, settings, served, case, kv_cache)
    return _by_loop(trial, settings, served, case, kv_cache, rng, probe if reads_predictions(name) else None)


def _by_engine(
    trial: _Trial, settings: EvaluateSettings, served: ServedModel, case: Case, kv_cache: KvCache
) -> MeasuredRun:
    """Return the run under the engine's own scheduler."""
    engine = EngineFifo(
        served.model,
        trial.prompts,
        trial.requests,
        kv_cache,
        served.generation_config,
        max_batch_tokens=settings.max_batch_tokens,
        forced_lens=trial.forced_lens,
        seed=trial.seed,
    )
    try:
        with tqdm(total=len(trial.order), desc=trial.title, unit="request") as bar:
            result = engine.run(lambda finished: bar.update(len(finished)) and None)
        attention = engine.attention
    finally:
        engine.close()
    run = _policy_run(trial, settings, trial.requests, result, _figures(result, 0.0, None))
    num_identical = _identical(case, trial.order, engine.outputs)
    no_iterations = np.empty((0, 4))
    return MeasuredRun(run, trial.order, result.arrival_time, no_iterations, num_identical, attention=attention)


def _by_loop(
    trial: _Trial,
    settings: EvaluateSettings,
    served: ServedModel,
    case: Case,
    kv_cache: KvCache,
    rng: np.random.Generator,
    probe: Probe | None,
) -> MeasuredRun:
    """Return the run under a policy in our loop, with predictions as they arrive where it reads them."""
    name, order, requests = trial.name, trial.order, trial.requests
    worker = Worker(kv_cache, resume=settings.eviction == "resume", max_batch_tokens=settings.max_batch_tokens)
    policy = TimedPolicy(make_policy(name, worker, rng, output_lens=trial.lens, **case.policy_options[name]))
    with ExitStack() as open_things:
        use = None if probe is None else StateUse(probe, settings, served, trial.prompts)
        if use is not None:
            open_things.callback(use.close)
        look_ahead = use.look_ahead if use else None
        executor = TransformersExecutor(
            served.model,
            trial.prompts,
            worker,
            served.generation_config,
            forced_lens=trial.forced_lens,
            forced_tokens=trial.forced_tokens,
            states=use.states if use else None,
            look_ahead=look_ahead,
            seed=trial.seed,
        )
        open_things.callback(executor.close)
        arrivals = _predicted(settings, case, order, requests, executor) if reads_predictions(name) else None
        if use is not None and arrivals is not None:
            use.handed_over = arrivals.handed_over
        renewals = use.renewals if use else None
        with tqdm(total=len(order), desc=trial.title, unit="request") as bar:
            loop = Loop(policy, executor, requests, arrivals=arrivals, renewals=renewals, look_ahead=look_ahead)
            if arrivals:
                open_things.callback(arrivals.close)
                arrivals.start()
            result = loop.run(lambda finished: bar.update(len(finished)) and None)
        attention = executor.attention
    entry_times = result.arrival_time
    if arrivals:
        requests = [within_cache(kv_cache, arrivals.handed_over[index]) for index in range(len(requests))]
        entry_times = np.array([arrivals.times[index] for index in range(len(requests))])
    run = _policy_run(trial, settings, requests, result, _figures(result, policy.seconds, arrivals, use))
    iterations = np.array(executor.iterations).reshape(-1, 4)
    given = use.given() if use else {}
    num_identical = _identical(case, order, executor.outputs)
    return MeasuredRun(run, order, entry_times, iterations, num_identical, given, attention)


def _policy_run(
    trial: _Trial,
    settings: EvaluateSettings,
    requests: Sequence[Request],
    result: RunResult,
    figures: dict[str, float],
) -> PolicyRun:
    return PolicyRun(trial.name, trial.seed, requests, result, figures, _num_warm_up(settings, requests))


def reads_predictions(name: str) -> bool:
    """Return whether requests wait for a prediction under a policy, or under the engine's own scheduler."""
    return name != ENGINE_FIFO and POLICIES[name].reads is Reads.PREDICTION


def within_cache(kv_cache: KvCache, request: Request) -> Request:
    """Return a request with a lower bound that fits the cache, as policies take it; a prediction may be beyond."""
    room = max(1, kv_cache.kv_budget - request.num_prompt_tokens)
    return replace(request, output_len_lower_bound=min(request.output_len_lower_bound, room))


def _predicted(
    settings: EvaluateSettings, case: Case, order: Sequence[int], requests: Sequence[Request], executor: Any
) -> PredictedArrivals:
    """Return the arrivals of a policy that wants predictions.

    Requests that are all there at the start are a batch job: none is given up, and the clock runs while they are
    predicted.
    """

    def predict(indices: Sequence[int]) -> list[Request]:
        return case.bounds.predicted([requests[i] for i in indices], [case.texts[order[i]] for i in indices])

    timeout = None if settings.arrivals == "all-at-once" else settings.predict_timeout / 1e3
    bounds, clock = case.bounds, lambda: float(executor.now)
    return PredictedArrivals(requests, predict, bounds.marginal, clock, timeout, bounds.max_batch)


def _num_warm_up(settings: EvaluateSettings, requests: Sequence[Request]) -> int:
    """Return how many requests, the first to arrive, only fill the system: none where all are there at the start."""
    return 0 if settings.arrivals == "all-at-once" else int(settings.warm_up * len(requests))


def _figures(
    result: RunResult,
    scheduling_seconds: float,
    arrivals: PredictedArrivals | None,
    use: StateUse | None = None,
) -> dict[str, float]:
    """Return what `scheduler.metrics.summarize` does not know: the shares of wall time, and how predictions came."""
    wall = float(result.finish_time.max() - result.arrival_time.min())
    figures = {
        "num_output_tokens": int(result.output_len.sum()),
        "scheduling_share": scheduling_seconds / wall,
        "prediction_share": 0.0,
        "fallback_share": 0.0,
        "mean_prediction_delay": 0.0,
    }
    if use is not None:
        figures |= use.figures(wall)
    if arrivals is not None:
        count = len(result.arrival_time)
        delays = [arrivals.times[index] - result.arrival_time[index] for index in range(count)]
        figures |= {
            "prediction_share": arrivals.busy_seconds / wall,
            "fallback_share": len(arrivals.fallbacks) / count,
            "mean_prediction_delay": float(np.mean(delays)),
        }
    return figures


def _identical(case: Case, order: Sequence[int], outputs: Any) -> int:
    if case.reference is None:
        return 0
    return sum(outputs[k].tokens == case.reference[i] for k, i in enumerate(order))
