"""Limits that hold for every schedule."""

import numpy as np
from numpy.typing import ArrayLike


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
    volumes = np.sort(prompt * output + output * (output + 1) / 2)
    return float(max(np.cumsum(volumes).sum() / kv_budget, output.sum()))
