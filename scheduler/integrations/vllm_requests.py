"""What the plug-in reads of a vLLM request: its bounds, its blocks, and whether it can start."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.v1.request import RequestStatus

BOUNDS = ("output_len_lower_bound", "output_len_prediction", "output_len_upper_bound")
"""Keys of a request's extra arguments: tokens, all optional; `scheduler.request.Request` says what they mean."""

MEDIAN_RATIO, UPPER_RATIO = 3, 10
"""Median and 95 % quantile over the 10 % quantile, where the logarithm of a length has a standard deviation of 0.8."""

QUEUED = frozenset({RequestStatus.WAITING, RequestStatus.PREEMPTED})
"""May start in the next iteration."""
BLOCKED = frozenset(
    {
        RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR,
        RequestStatus.WAITING_FOR_REMOTE_KVS,
        RequestStatus.WAITING_FOR_STREAMING_REQ,
    }
)
"""Cannot start yet, whatever the memory."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request says of its own length, in tokens, within 1 to the most it may generate."""

    lower: int | None = None
    prediction: int | None = None
    upper: int | None = None


def extra_args(request: Any) -> Mapping[str, Any]:
    """Return what came in `SamplingParams.extra_args`, over HTTP in `vllm_xargs`."""
    return getattr(request.sampling_params, "extra_args", None) or {}


def read_bounds(arguments: Mapping[str, Any], max_new_tokens: int) -> tuple[Bounds, str]:
    """Return the usable bounds among a request's extra arguments, and a complaint about the others or "".

    A value above `max_new_tokens` is lowered to it, an upper bound below another one raised to it. From a lower bound
    alone the others are guessed.
    """
    values: list[int | None] = []
    complaints = []
    for name in BOUNDS:
        value = arguments.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 1:
            values.append(min(int(value), max_new_tokens))
            continue
        values.append(None)
        if value is not None:
            complaints.append(f"{name} is {value!r}, must be a number of tokens >= 1")
    lower, prediction, upper = values
    if lower is not None:
        prediction = prediction or min(lower * MEDIAN_RATIO, upper or max_new_tokens, max_new_tokens)
        upper = max(lower, prediction, upper or min(lower * UPPER_RATIO, max_new_tokens))
    return Bounds(lower, prediction, upper), "; ".join(complaints)


def max_new_tokens(request: Any, max_model_len: int) -> int:
    """Return the most tokens that a request can generate; 1 where vLLM will refuse it."""
    return max(1, int(min(request.max_tokens, max_model_len - request.num_prompt_tokens)))


def shared_blocks(request: Any, block_size: int, hash_block_size: int) -> Sequence[Hashable]:
    """Return the names of the prompt's full blocks that vLLM would find in its cache, first first.

    vLLM computes the last token of a prompt itself, whatever is cached (`KVCacheManager.get_computed_blocks`). Without
    prefix caching a request has no hashes.
    """
    if request.skip_reading_prefix_cache:
        return ()
    step, count = block_size // hash_block_size, max(0, request.num_prompt_tokens - 1) // block_size
    return tuple(request.block_hashes[step - 1 : step * count : step])
