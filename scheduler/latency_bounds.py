"""The memory that a request takes over its life, and the limits on latency that follow for every schedule."""

import math
from heapq import heappop, heappush
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@overload
def volume(num_prompt_tokens: int, output_len: float) -> float: ...
@overload
def volume(num_prompt_tokens: Floats, output_len: Floats) -> Floats: ...
def volume(num_prompt_tokens: int | Floats, output_len: float | Floats) -> float | Floats:
    """Return s*o + o(o+1)/2: the token-iterations of memory that a request takes if it is never evicted.

    With s prompt and o output tokens it holds s+1, s+2, ... s+o tokens in its o iterations.
    """
    return num_prompt_tokens * output_len + output_len * (output_len + 1) / 2


def total_latency_lower_bound(num_prompt_tokens: ArrayLike, output_lens: ArrayLike, kv_budget: int) -> float:
    """Return a lower bound on the total end-to-end latency, in iterations, of requests that all arrive at 0.

    A request occupies at least vol = s*o + o(o+1)/2 token-iterations of memory and the cache offers `kv_budget` per
    iteration, so the j-th completion is not before the j smallest volumes have been served. Nor can a request end
    before its own output is out. Holds for every schedule, evictions included (arXiv 2606.22327).

    Args:
        num_prompt_tokens: Prompt tokens s, shape [n].
        output_lens: Output tokens o, shape [n].
        kv_budget: Tokens the cache holds.
    """
    prompt = np.asarray(num_prompt_tokens, dtype=np.float64)
    output = np.asarray(output_lens, dtype=np.float64)
    volumes = np.sort(volume(prompt, output))
    return float(max(np.cumsum(volumes).sum() / kv_budget, output.sum()))


def latency_lower_bound_with_arrivals(
    num_prompt_tokens: ArrayLike, output_lens: ArrayLike, arrival_times: ArrayLike, kv_budget: int
) -> float:
    """Return a lower bound on the total end-to-end latency, in iterations, of requests that arrive over time.

    As `total_latency_lower_bound`, for the relaxation to one machine that serves `kv_budget` token-iterations of volume
    per iteration and may switch between requests at no cost: the least remaining volume first is best for it. For
    requests that all arrive at 0 the two agree.

    Args:
        num_prompt_tokens: Prompt tokens s, shape [n].
        output_lens: Output tokens o, shape [n].
        arrival_times: In iterations, shape [n].
        kv_budget: Tokens the cache holds.
    """
    prompt = np.asarray(num_prompt_tokens, dtype=np.float64)
    output = np.asarray(output_lens, dtype=np.float64)
    sizes = volume(prompt, output) / kv_budget
    order = np.argsort(np.asarray(arrival_times), kind="stable")
    arrivals = [*np.asarray(arrival_times, dtype=np.float64)[order].tolist(), math.inf]
    waiting: list[float] = []
    now = latency = 0.0
    for place, size in enumerate(sizes[order].tolist()):
        now = max(now, arrivals[place]) if not waiting else now
        heappush(waiting, size)
        while waiting and now < arrivals[place + 1]:
            served = min(waiting[0], arrivals[place + 1] - now)
            latency += served * len(waiting)
            now += served
            least = heappop(waiting) - served
            if least > 0:
                heappush(waiting, least)
    return max(latency, float(output.sum()))
