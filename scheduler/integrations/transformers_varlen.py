"""Attention of each request over its own keys on a GPU, inside CUDA graphs, by the FlashAttention that PyTorch has.

transformers hands over, for each forward pass, where keys are written and read, and cumulative lengths of queries and
keys, as tensors on the device. All is padded to a few shapes, and a graph is captured for each of them: 64 queries and
8,192 keys further (`transformers_engine.GRAPHS`), longest request up to 1,024 keys, 2,048 and so on. So nothing here
depends on a value: no tensor is read back, and what a graph was captured with holds for every batch of its shape.
Padding belongs to requests without queries or keys: it reads a row of zeros and writes to a row that nobody reads.

Keys and values are gathered by request first. PyTorch's FlashAttention reads pages in place only where they have a
multiple of 256 tokens, and half of such a page is lost at the end of every request.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import varlen

PARAMETERS = frozenset(inspect.signature(varlen.varlen_attn).parameters)
"""Of the installed PyTorch: the first version with such a function had no window and no scale."""
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in PARAMETERS else {}
"""Fewer heads of keys than of queries must be asked for, where there is a word for it."""
LARGEST_HEAD = 256
LEAST_CAPABILITY = (8, 0)
"""Of a card that FlashAttention runs on."""
CAUSAL = (-1, 0)
"""Window of a query: all keys before its own, counted from the request's last key."""


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The memory of a paged cache as transformers lays it out, by layer and token.

    Attributes:
        keys: Of each layer, [rows, KV heads, head size].
        values: Likewise.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def rows_of(cache: Any) -> TokenRows | None:
    """Return a cache's memory by tokens, or None where its layers are not all of full attention."""
    if hasattr(cache, "cache_allocators"):  # since 5.23
        allocators = list(cache.cache_allocators.values())
        if len(allocators) != 1 or allocators[0].layer_type != "full_attention":
            return None
        views = allocators[0]._kv_token_views
        keys, values = zip(*(views[layer] for layer in allocators[0].layer_indices), strict=True)
        return TokenRows(list(keys), list(values))
    if cache.num_groups != 1 or cache.num_sliding_attention_groups:
        return None
    return TokenRows(list(cache.key_cache), list(cache.value_cache))


def can_run(rows: TokenRows) -> bool:
    """Return whether PyTorch's FlashAttention runs on this memory: half precision, on an NVIDIA card since Ampere."""
    keys = rows.keys[0]
    return (
        keys.is_cuda
        and {"scale", "window_size"} <= PARAMETERS
        and torch.version.cuda is not None
        and keys.dtype in (torch.float16, torch.bfloat16)
        and keys.shape[-1] <= LARGEST_HEAD
        and keys.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(keys.device) >= LEAST_CAPABILITY
        and torch.backends.cuda.is_flash_attention_available()
    )


def varlen_attention(
    rows: TokenRows,
    layer: int,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scale: float,
    batch: dict[str, Any],
) -> torch.Tensor:
    """Return the attention output, [1, Q, heads, head size]; the new keys and values are written to the cache.

    Args:
        rows: The cache's memory.
        layer: Number of the layer.
        states: Query [1, heads, Q, head size]; key and value, [1, KV heads, Q, head size].
        scale: Of the scores.
        batch: `read_index`, `write_index`, cumulative lengths and longest lengths, as transformers hands them over.
    """
    query, key, value = (each.squeeze(0).transpose(0, 1) for each in states)
    read, (write,) = batch["read_index"][0], batch["write_index"]
    rows.keys[layer].index_copy_(0, write, key)
    rows.values[layer].index_copy_(0, write, value)
    if read.numel():  # without it no request has keys but those of its queries
        key, value = rows.keys[layer].index_select(0, read), rows.values[layer].index_select(0, read)
    out: Any = varlen.varlen_attn(
        query,
        key,
        value,
        batch["cu_seq_lens_q"],
        _of_layers(batch["cu_seq_lens_k"]),
        batch["max_length_q"] if "max_length_q" in batch else batch["max_seqlen_q"],
        _of_layers(batch["max_length_k"] if "max_length_k" in batch else batch["max_seqlen_k"]),
        scale=scale,
        window_size=CAUSAL,
        **GROUPED,
    )
    attended: torch.Tensor = out.unsqueeze(0)
    return attended


def _of_layers(each: Any) -> Any:
    """Return what transformers hands over by kind of layer; there is one kind."""
    return next(iter(each.values())) if isinstance(each, dict) else each
