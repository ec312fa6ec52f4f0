"""A predictor and a policy in front of other people's engines; see docs/serving.md."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from pipelines.request_bounds import RequestBounds
from pipelines.served_model.prompt_text import prompt_reader
from scheduler.deployments.deployment import read_deployment
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.kv_cache import KvCache
from scheduler.policies import make_policy
from scheduler.policy import Policy
from scheduler.request import Request
from scheduler.worker import Worker

Decode = Callable[[Sequence[int]], str]


def background_predictions(bounds: RequestBounds, decode: Decode, timeout: float = 0.05) -> BackgroundPredictions:
    """Return what predicts for the requests of an engine as they arrive.

    Args:
        bounds: The predictor.
        decode: Returns the text that the predictor reads from a prompt's token ids.
        timeout: Seconds that a request waits for its prediction; then it goes on with the marginal bound.
    """

    def complete(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
        return bounds.predicted(requests, [decode(ids) for ids in prompts])

    return BackgroundPredictions(complete, bounds.marginal, timeout, bounds.max_batch)


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
    **settings: Any,
) -> Any:
    """Return a `ContinuousBatchingConfig` with which transformers' continuous batching follows a policy.

    Args:
        predictor: Folder that `amin export` or `amin train` wrote.
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
        settings: Further fields of `ContinuousBatchingConfig`.

    Raises:
        InputError: There is no such predictor, policy, served model or deployment, or `tau` is too fine.
    """
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    from scheduler.integrations.transformers_scheduler import PAGE_SIZE_FIELD

    bounds = RequestBounds.read(Path(predictor), model, tau)

    clock = None if deployment is None else read_deployment(deployment).clock

    def new_policy(worker: Worker) -> Policy:
        worker = replace(worker, cost_model=clock)
        rng = np.random.default_rng(settings.get("seed") or 0)
        return make_policy(policy, worker, rng, **(policy_options or {}))

    new_policy(Worker(KvCache(num_blocks, page_size), resume=True))
    return ContinuousBatchingConfig(
        **{
            PAGE_SIZE_FIELD: page_size,
            "num_blocks": num_blocks,
            "scheduler_type": _registered(bounds, new_policy, tokenizer, decode, page_size, timeout),
            "allow_block_sharing": False,
            "use_async_batching": False,
            **settings,
        }
    )


def _registered(
    bounds: RequestBounds,
    new_policy: Callable[[Worker], Policy],
    tokenizer: Any,
    decode: Decode | None,
    page_size: int,
    timeout: float,
) -> str:
    """Return the name under which transformers finds the scheduler, for as long as a configuration has it."""
    from scheduler.integrations.transformers_scheduler import register

    read = decode or prompt_reader(tokenizer)
    return register(f"amin-{uuid4()}", page_size, new_policy, lambda: background_predictions(bounds, read, timeout))
