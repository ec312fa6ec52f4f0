"""Figures of runs against servers, and the paired comparison of two."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate.endpoint.measure import ServerRun
from pipelines.results import PolicyRun
from scheduler.loop import RunResult, Timeline
from scheduler.metrics import (
    Targets,
    after_warm_up,
    interval_over_seeds,
    mean_over_seeds,
    paired_with,
    service,
)
from scheduler.request import Request

Bools = NDArray[np.bool_]


def answered(run: ServerRun) -> Bools:
    """Return which requests got a whole answer, shape [n]."""
    return np.array([not sent.error for sent in run.requests], dtype=np.bool_)


def as_policy_run(run: ServerRun, kept: Bools, num_warm_up: int) -> PolicyRun:
    """Return the kept requests of a run as if the server were a policy, for figures and plots made for those.

    What cannot be seen from outside is 0: evictions, memory. `num_running` of the timeline is requests in flight.
    """
    sent = [each for each, is_kept in zip(run.requests, kept, strict=True) if is_kept]
    zeros = np.zeros(len(sent), dtype=np.int64)
    arrival, first, finish = (
        np.array([getattr(each, name) for each in sent], dtype=np.float64)
        for name in ("arrival_time", "first_token_time", "finish_time")
    )
    lengths = np.array([each.output_len for each in sent], dtype=np.int64)
    result = RunResult(arrival, arrival, first, finish, lengths, zeros, zeros, _in_flight(arrival, finish))
    requests = [Request(str(each.prompt), each.num_prompt_tokens, max(1, each.output_len)) for each in sent]
    left = int(kept[:num_warm_up].sum())
    return PolicyRun(run.server, run.seed, requests, result, num_warm_up=left)


def _in_flight(arrival: NDArray[np.float64], finish: NDArray[np.float64]) -> Timeline:
    """Return a timeline whose entries end where a request arrives or ends."""
    times = np.concatenate([arrival, finish])
    steps = np.concatenate([np.ones(len(arrival), np.int64), -np.ones(len(finish), np.int64)])
    order = np.argsort(times, kind="stable")
    end, nothing = times[order], np.zeros(len(times), dtype=np.int64)
    return Timeline(end, np.diff(end, prepend=0.0), nothing, nothing, np.cumsum(steps[order]), nothing, nothing)


def run_figures(run: ServerRun, kept: Bools, num_warm_up: int, targets: Targets) -> dict[str, Any]:
    """Return the figures of one run over its kept requests, of which there is at least one after the warm-up.

    Keys as in `scheduler.metrics.summarize`, and:
        num_requests, num_failures, num_cut: Of all after the warm-up; cut ones met the cap.
        requests_per_second, throughput: Answers, and their tokens, over the makespan.
        attainment, goodput: Only with targets; a failed request keeps none.
        p99_send_delay: How late this client was, in seconds.
    """
    answers = as_policy_run(run, kept, num_warm_up)
    result = after_warm_up(answers.result, answers.num_warm_up)
    counted = run.requests[num_warm_up:]
    latency, ttft = result.finish_time - result.arrival_time, result.first_token_time - result.arrival_time
    longer = result.output_len > 1
    tpot = (result.finish_time - result.first_token_time)[longer] / (result.output_len[longer] - 1)
    makespan = float(result.finish_time.max() - result.arrival_time.min())
    figures: dict[str, Any] = {
        "num_requests": len(counted),
        "num_failures": sum(bool(sent.error) for sent in counted),
        "num_cut": sum(sent.is_cut and not sent.error for sent in counted),
        "mean_output_len": float(result.output_len.mean()),
        **_spread("latency", latency),
        **_spread("ttft", ttft),
        **_spread("tpot", tpot if len(tpot) else np.zeros(1)),
        "makespan": makespan,
        "requests_per_second": len(latency) / makespan,
        "throughput": float(result.output_len.sum()) / makespan,
        "p99_send_delay": float(np.quantile([sent.send_delay for sent in counted], 0.99)),
    }
    if targets != Targets():
        figures |= service(result, targets)
        figures["attainment"] *= len(latency) / len(counted)
    return figures


def _spread(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    quantiles = {f"p{percent}_{name}": float(np.quantile(values, percent / 100)) for percent in (50, 99)}
    return {f"mean_{name}": float(values.mean()), **quantiles}


def server_figures(runs: Sequence[ServerRun], num_warm_up: int, targets: Targets) -> dict[str, Any]:
    """Return a server's figures by seed, their means and intervals, and its failures by reason."""
    seeds = [{"seed": run.seed, **run_figures(run, answered(run), num_warm_up, targets)} for run in runs]
    errors = Counter(sent.error for run in runs for sent in run.requests if sent.error)
    return {
        "seeds": seeds,
        "mean": mean_over_seeds(seeds),
        "interval_95": interval_over_seeds(seeds),
        "errors": dict(errors.most_common()),
    }


def compare(
    a: Sequence[ServerRun], b: Sequence[ServerRun], num_warm_up: int, targets: Targets
) -> dict[str, Any] | None:
    """Return how "b" compares with "a" over the requests that both answered, or None without a seed that both have.

    Keys as `scheduler.metrics.paired_with`, where a ratio is a's value over b's; `num_compared`; `num_identical`,
    answers with the same text and as many tokens.
    """
    by_seed = {run.seed: run for run in a}
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    num_compared = num_identical = 0
    for run in b:
        other = by_seed.get(run.seed)
        if other is None:
            continue
        both = answered(run) & answered(other)
        if not both[num_warm_up:].any():
            continue
        pairs = [(x, y) for x, y, kept in zip(run.requests, other.requests, both, strict=True) if kept]
        num_compared += len(pairs)
        num_identical += sum((x.answer, x.output_len) == (y.answer, y.output_len) for x, y in pairs)
        for into, each in ((ours, run), (theirs, other)):
            into.append({"seed": run.seed, **run_figures(each, both, num_warm_up, targets)})
    compared = paired_with(theirs, ours)
    return None if compared is None else {**compared, "num_compared": num_compared, "num_identical": num_identical}
