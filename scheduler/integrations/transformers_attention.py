"""Attention of each request over its own keys, for transformers' continuous batching without flash attention.

Stock `sdpa` lets every query attend to every running request's keys under a mask. In its place comes
`transformers_pages` on a CPU and `transformers_varlen` on a GPU.
"""

import os
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scheduler.integrations.transformers_pages import Pages, pages_attention, pages_of
from scheduler.integrations.transformers_varlen import TokenRows, can_run, rows_of, varlen_attention

NAME = "amin_own_keys"
"""What `config._attn_implementation` is while a model runs with it on a CPU."""
NAME_ON_GPU = "amin_own_keys_varlen"
"""Likewise on a GPU. No mask is registered for it: transformers would look at the positions, and so read them back."""
IN_WORDS = {NAME: "each request over its own keys", NAME_ON_GPU: "each request over its own keys, FlashAttention"}
STOCK = "AMIN_STOCK_ATTENTION"
"""Environment variable; 1 leaves every engine its stock attention."""


def use_own_keys(cache: Any) -> bool:
    """Make the model of a new cache attend by this module; return whether it does.

    It does not where flash attention is in use, on a GPU that PyTorch's own cannot run on, or where some layers see a
    sliding window. On a CPU the model keeps the setting: outside continuous batching it is the same as `sdpa`. An
    engine that is set up anew wants the name back that it had.
    """
    is_stock = cache.config._attn_implementation.removeprefix("paged|") == "sdpa"
    if not is_stock or os.environ.get(STOCK) == "1":
        return False
    memory: Pages | TokenRows | None
    if torch.device(cache.device).type == "cpu":
        name, memory = NAME, pages_of(cache)
    else:
        rows = rows_of(cache)
        name, memory = NAME_ON_GPU, rows if rows is not None and can_run(rows) else None
    if memory is None:
        return False
    attend_by(cache, memory, name)
    return True


def attend_by(cache: Any, memory: Pages | TokenRows, name: str) -> None:
    """Have the attention over a cache's `memory` take the place of the stock one, under `name`."""
    cache.own_keys = memory
    cache.update = partial(_hand_on, memory)
    cache.config._attn_implementation = name


def behind_stock_name(name: str) -> None:
    """Let the stock attention `name` hand on to ours what runs on such a cache, and nothing else.

    For engines that others set up: transformers refuses a model that has a name of ours when the next one is made.
    """
    stock = ALL_ATTENTION_FUNCTIONS[name]
    if getattr(stock, "hands_on", False):
        return

    def attention(module: torch.nn.Module, *states: Any, **kwargs: Any) -> Any:
        is_ours = _memory_in(kwargs) is not None
        return (own_keys_attention if is_ours else stock)(module, *states, **kwargs)

    attention.hands_on = True  # type: ignore[attr-defined]
    AttentionInterface.register(name, attention)


def _memory_in(kwargs: dict[str, Any]) -> Pages | TokenRows | None:
    memory: Pages | TokenRows | None = kwargs.get("own_keys") or getattr(kwargs.get("cache"), "own_keys", None)
    return memory


def _hand_on(memory: Any, key: Any, value: Any, layer_idx: int, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Take the place of the cache's `update`, which layers of transformers 5.24 call before the attention."""
    kwargs["own_keys"] = memory
    return key, value


def own_keys_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output, [1, Q, heads, head size], as transformers' attention functions do.

    Args:
        module: The attention layer.
        query: [1, heads, Q, head size], of all requests of the batch.
        key: [1, KV heads, Q, head size]; new, they are written to the cache here.
        value: Likewise.
        attention_mask: Ignored with a paged cache: what a query sees is known.
        dropout: 0 when generating.
        scaling: Of the scores; by default one over the root of the head size.
        kwargs: Of the batch: `cu_seq_lens_q`, `cu_seq_lens_k`, `read_index`, `write_index`; `own_keys`, the memory, or
            before 5.24 the `cache` that has it. Without it this is `sdpa`.
    """
    memory = _memory_in(kwargs)
    if memory is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(memory, TokenRows):
        return varlen_attention(memory, layer, (query, key, value), scale, kwargs), None
    return pages_attention(memory, layer, (query, key, value), scale, kwargs), None


for _name in (NAME, NAME_ON_GPU):
    AttentionInterface.register(_name, own_keys_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
