"""The runs of `amin evaluate`: what they share, and generation under one policy."""

import argparse
import time
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from pipelines.results import PolicyRun
from pipelines.served_model import ServedModel, encode_prompts, generate
from predictor.checkpoint import resolve_predictor
from predictor.distribution import quantile
from predictor.records import read_prompts, read_records
from predictor.rows import read_rows
from scheduler.arrivals import arrival_times
from scheduler.forecast import Forecast
from scheduler.integrations.transformers_cb import TransformersExecutor
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop
from scheduler.policies import make_policy
from scheduler.request import Request

UPPER_LEVEL = 0.95
"""Quantile that serves as the upper bound of amax: the predictor's, since the cap alone would say nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """What all runs share: prompts and, by prompt, bounds and reference lengths; None where lengths are free."""

    requests: list[Request]
    prompts: list[list[int]]
    output_lens: list[int] | None
    reference: list[list[int]] | None
    """Token ids of the unconstrained greedy run, to compare with."""
    predict_ms: float
    """Predictor time per prompt, in milliseconds, at the batch size of the predictor."""


def prepare(args: argparse.Namespace, served: ServedModel) -> Case:
    """Return the case: prompts read and encoded, bounds predicted, reference lengths taken or made."""
    length_predictor = resolve_predictor(args.predictor)
    rows = read_prompts(args.prompts, split=args.split)[: args.limit]
    prompts = encode_prompts(served, [row.prompt for row in rows], args.prompts)
    started = time.perf_counter()
    predictions = length_predictor.predict(
        [row.prompt for row in rows], tau=args.tau, max_new_tokens=args.max_new_tokens
    )
    predict_ms = (time.perf_counter() - started) / len(rows) * 1e3
    uppers = quantile(length_predictor.bins, predictions.survival, UPPER_LEVEL)
    edges = length_predictor.bins.as_array()
    requests = [
        Request(
            request_id=row.prompt_id,
            num_prompt_tokens=len(prompt),
            max_new_tokens=args.max_new_tokens,
            output_len_lower_bound=int(lower),
            output_len_upper_bound=max(int(lower), min(int(upper), args.max_new_tokens)),
            output_len_prediction=int(median),
            forecast=Forecast(edges, survival),
        )
        for row, prompt, lower, upper, median, survival in zip(
            rows, prompts, predictions.lower_bounds, uppers, predictions.medians, predictions.survival, strict=True
        )
    ]
    output_lens = _recorded_lens(args) if args.decoding == "forced" else None
    reference = None
    if output_lens is None and args.decoding != "sample":
        answers = generate(served, prompts, max_running=32, seed=args.seed, description="reference")
        output_lens = [len(answer.tokens) for answer in answers]
        reference = [answer.tokens for answer in answers] if args.decoding == "greedy" else None
    return Case(requests, prompts, output_lens, reference, predict_ms)


def _recorded_lens(args: argparse.Namespace) -> list[int] | None:
    """Return the first recorded draw of each prompt, cut at the cap, or None if the file has no lengths."""
    if not any(
        "output_lens" in row.fields or "output_len" in row.fields for row in read_rows(args.prompts, one_model=False)
    ):
        return None
    records = read_records(args.prompts)
    chosen = [i for i in range(len(records)) if args.split is None or (records.splits or ())[i] == args.split]
    return [min(int(records.output_lens[i][0]), args.max_new_tokens) for i in chosen[: args.limit]]


def default_blocks(case: Case, block_size: int) -> int:
    """Return 15 % of the blocks that all requests hold at their peak, but enough for the largest one alone."""
    blocks = [-(-(r.num_prompt_tokens + (r.output_len_prediction or 1)) // block_size) for r in case.requests]
    largest = max(-(-(r.num_prompt_tokens + r.max_new_tokens) // block_size) for r in case.requests)
    return max(largest, sum(blocks) * 15 // 100)


def generate_under(
    name: str,
    seed: int,
    args: argparse.Namespace,
    served: ServedModel,
    case: Case,
    kv_cache: KvCache,
    warm_up: bool = False,
) -> tuple[PolicyRun, int]:
    """Return the run of one policy, and how many answers equal the unconstrained ones (0 if not compared)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(case.requests)).tolist()
    times = arrival_times(args.arrivals, len(order), rng)
    if warm_up:
        order, times = order[:8], times[:8] * 0
    requests = [replace(case.requests[i], arrival_time=float(t)) for i, t in zip(order, times, strict=True)]
    lens = None if case.output_lens is None else [case.output_lens[i] for i in order]
    policy = make_policy(name, kv_cache, rng, resume=args.eviction == "resume", output_lens=lens)
    executor = TransformersExecutor(
        served.model,
        [case.prompts[i] for i in order],
        kv_cache,
        served.generation_config,
        max_batch_tokens=args.max_batch_tokens,
        forced_lens=lens if args.decoding == "forced" else None,
        resume=args.eviction == "resume",
        seed=seed,
    )
    try:
        with tqdm(total=len(order), desc="warm-up" if warm_up else f"{name} seed {seed}", unit="request") as bar:
            loop = Loop(policy, executor, requests, kv_cache, resume=args.eviction == "resume")
            result = loop.run(lambda finished: bar.update(len(finished)) and None)
    finally:
        executor.close()
    same = 0
    if case.reference is not None:
        same = sum(executor.outputs[k].tokens == case.reference[i] for k, i in enumerate(order))
    num_output_tokens = sum(len(output.tokens) for output in executor.outputs.values())
    return PolicyRun(name, seed, requests, result, {"num_output_tokens": num_output_tokens}), same
