"""Evaluate predictor and policies together, in real generation with a real model under KV pressure."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipelines.evaluate.case import DEFAULT_TAU, Case, default_blocks, prepare
from pipelines.evaluate.inputs import shared_by_runs
from pipelines.evaluate.output import write_all
from pipelines.evaluate.run import ENGINE_FIFO, reads_predictions, run_policy
from pipelines.evaluate.store import RunStore, digest
from pipelines.probe.use import read_probe, require_model
from pipelines.scheduling import policy_options, tuned_tau
from pipelines.served_model.loading import ServedModel, device_memory, load_served_model
from pipelines.settings.evaluate import EvaluateSettings
from pipelines.settings.sampling import Sampling
from pipelines.simulate import stage as simulate
from predictor.errors import InputError
from predictor.probe.probe import Probe
from predictor.records.records import select_rows
from scheduler.kv_cache import KvCache
from scheduler.policies import POLICIES, Reads, policies_that_read
from scheduler.simulation.arrivals import arrival_times


def run(settings: EvaluateSettings) -> None:
    """Predict, generate under every policy, write results and report."""
    names = policy_names(settings.policies)
    _check(settings, names)
    options = {name: policy_options(settings.scheduling, name) for name in POLICIES}
    tuned = None if settings.scheduling is None else tuned_tau(settings.scheduling)
    settings = replace(settings, tau=settings.tau or tuned or DEFAULT_TAU)
    probe = None if settings.probe is None else read_probe(settings.probe, settings.tau or DEFAULT_TAU)
    torch.manual_seed(settings.seed)
    store = RunStore(settings.out, shared_by_runs(settings), resume=settings.resume)
    with device_memory("lower --kv-blocks, --max-batch-tokens or --max-new-tokens"):
        served = load_served_model(
            settings.served_model,
            settings.max_new_tokens,
            settings.device,
            sampling=Sampling(temperature=0.0) if settings.decoding == "greedy" else settings.sampling,
            exact=settings.decoding == "greedy",
            trust_remote_code=settings.trust_remote_code,
        )
        if probe is not None:
            require_model(probe, settings.probe or Path(), served)
        case = prepare(settings, served, options, store.case, store.partial_reference)
        store.require_prompts(case.texts)
        kv_cache = KvCache(settings.kv_blocks or default_blocks(case, settings.block_size), settings.block_size)
        if served.tokenizer.chat_template is None:
            print(f"{served.name} has no chat template: prompts go to it as they are")
        _measure_all(settings, names, served, case, kv_cache, store, probe)


def _measure_all(
    settings: EvaluateSettings,
    names: Sequence[str],
    served: ServedModel,
    case: Case,
    kv_cache: KvCache,
    store: RunStore,
    probe: Probe | None,
) -> None:
    """Make the runs that are missing, one policy after the other in each seed; write what there is in any case."""
    shared = {"prompts": digest(case.texts), "output_lens": case.output_lens, "reference": case.reference}
    shared |= {} if case.tokens is None else {"tokens": case.tokens}
    # The first policy changes from seed to seed: a machine that slows down must not always hit the same ones.
    turns = [[*names[k % len(names) :], *names[: k % len(names)]] for k in range(settings.seeds)]
    wanted = [(name, settings.seed + k) for k, turn in enumerate(turns) for name in turn]
    runs = {key: found for key in wanted if (found := store.load(*key, case.facts)) is not None}
    if runs:
        print(f"continuing: {len(runs)} of {len(wanted)} runs are there")
    try:
        if len(runs) < len(wanted):
            run_policy("fcfs", settings.seed, settings, served, case, kv_cache, warm_up=True)
        for key in wanted:
            if key not in runs:
                measured = run_policy(*key, settings, served, case, kv_cache, probe=probe)
                store.keep(measured, shared)
                runs[key] = measured
    finally:
        done = [runs[key] for key in wanted if key in runs]
        if done:
            missing = [f"{name} seed {seed}" for name, seed in wanted if (name, seed) not in runs]
            write_all(settings, served, case, kv_cache, done, missing)


def policy_names(text: str) -> Sequence[str]:
    """Return the policies that the option names, `engine-fifo` among them; InputError for an unknown one."""
    names = [*POLICIES, ENGINE_FIFO] if text == "all" else list(dict.fromkeys(n.strip() for n in text.split(",")))
    ours = [name for name in names if name != ENGINE_FIFO]
    if ours:
        simulate.policy_names(",".join(ours))
    return names


def _check(settings: EvaluateSettings, names: Sequence[str]) -> None:
    """Raise InputError for what can be told before a model is loaded: lengths that are not known, times of arrival."""
    told = policies_that_read(Reads.OUTPUT_LEN) & set(names)
    if settings.decoding == "sample" and told:
        raise InputError(f"--policies: {', '.join(sorted(told))} needs true lengths: not with --decoding sample")
    if settings.probe is not None and not any(reads_predictions(name) for name in names):
        raise InputError("--probe: none of --policies reads forecasts, so it would have no effect; leave it out")
    count = len(select_rows(settings.prompts, settings.model, settings.split)[: settings.limit])
    arrival_times(settings.arrivals, count, np.random.default_rng(settings.seed))
