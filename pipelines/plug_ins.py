"""A predictor and a policy in front of other people's engines; see docs/serving.md."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from pipelines.current_bounds import CurrentBounds
from pipelines.served_model.prompt_text import prompt_reader
from scheduler.deployments.deployment import read_deployment
from scheduler.errors import InputError
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.kv_cache import KvCache
from scheduler.policies import POLICIES, Reads, make_policy
from scheduler.policy import Policy
from scheduler.request import Request
from scheduler.worker import Worker

Decode = Callable[[Sequence[int]], str]


def background_predictions(bounds: CurrentBounds, decode: Decode, timeout: float = 0.05) -> BackgroundPredictions:
    """Return what predicts for the requests of an engine as they arrive.

    Args:
        bounds: The predictor, which may be another one at the next batch.
        decode: Returns the text that the predictor reads from a prompt's token ids.
        timeout: Seconds that a request waits for its prediction; then it goes on with the marginal bound.
    """

    def complete(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
        return bounds.current().predicted(requests, [decode(ids) for ids in prompts])

    def marginal(request: Request) -> Request:
        return bounds.current().marginal(request)

    return BackgroundPredictions(complete, marginal, timeout, bounds.current().max_batch)


def continuous_batching_config(
    predictor: str | Path,
    tokenizer: Any,
    policy: str = "amin-survival",
    *,
    num_blocks: int,
    page_size: int = 16,
    model: str | None = None,
    tau: float = 0.1,
    timeout: float = 0.05,
    decode: Decode | None = None,
    deployment: str | None = None,
    policy_options: dict[str, Any] | None = None,
    probe: str | Path | None = None,
    served_model: Any = None,
    renew_every: int = 16,
    **settings: Any,
) -> Any:
    """Return a `ContinuousBatchingConfig` with which transformers' continuous batching follows a policy.

    Args:
        predictor: Folder that `amin export` or `amin train` wrote; another predictor that takes its place is used
            within seconds, but not with a probe.
        tokenizer: The served model's tokenizer; the predictor reads the user's last turn, by its chat template.
        policy: A name of `scheduler.policies`, not a clairvoyant one.
        num_blocks: Blocks of the KV cache.
        page_size: Tokens in a block.
        model: Served model that the predictor predicts for; by default the one that it names.
        tau: Probability allowed below a bound.
        timeout: Seconds that a request waits for its prediction.
        decode: Text that the predictor reads from a prompt's token ids, in place of that.
        deployment: Name or file of the deployment that this is: what an iteration takes, for policies that weigh
            prefill against decoding.
        policy_options: Further options of the policy.
        probe: Folder of a probe of the served model, which renews the forecasts of running requests.
        served_model: With a probe, the transformers model whose `generate_batch` is run.
        renew_every: Iterations, and so tokens, from one renewal of all running requests to the next.
        settings: Further fields of `ContinuousBatchingConfig`.

    Raises:
        InputError: There is no such predictor, policy, served model, deployment or probe, the probe is of another
            model, layer or template, or `tau` is too fine.
    """
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    from scheduler.integrations.transformers_scheduler import PAGE_SIZE_FIELD, register

    clock = None if deployment is None else read_deployment(deployment).clock

    def new_policy(worker: Worker) -> Policy:
        worker = replace(worker, cost_model=clock)
        rng = np.random.default_rng(settings.get("seed") or 0)
        return make_policy(policy, worker, rng, **(policy_options or {}))

    new_policy(Worker(KvCache(num_blocks, page_size), resume=True))
    renewing = None
    if probe is not None:
        _require_use(policy, settings)
        from pipelines.probe.plug_in import probe_renewing  # needs torch

        renewing = probe_renewing(Path(probe), Path(predictor), served_model, tokenizer, tau, renew_every)
    bounds = CurrentBounds(Path(predictor), model, tau)
    predictions = partial(background_predictions, bounds, decode or prompt_reader(tokenizer), timeout)
    name = register(f"amin-{uuid4()}", page_size, new_policy, predictions, renewing)
    weakref.finalize(name, bounds.stop)
    if probe is not None:
        bounds.stop()  # a probe is weighed against the forecasts of this predictor
    return ContinuousBatchingConfig(
        **{
            PAGE_SIZE_FIELD: page_size,
            "num_blocks": num_blocks,
            "scheduler_type": name,
            "allow_block_sharing": False,
            "use_async_batching": False,
            **settings,
        }
    )


def _require_use(policy: str, settings: Mapping[str, Any]) -> None:
    """Raise InputError where renewals would reach nobody, or the states would be those of another iteration."""
    if POLICIES[policy].reads is not Reads.PREDICTION:
        raise InputError(f"probe: the policy {policy!r} reads no predictions; leave the probe out")
    if settings.get("use_async_batching"):
        raise InputError("use_async_batching: must be False with a probe, which reads the states of the last iteration")
