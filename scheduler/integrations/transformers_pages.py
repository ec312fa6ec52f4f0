"""Attention of each request over its own keys on a CPU, and the memory of transformers' paged cache as it reads it.

A decoding request multiplies with its own pages where they lie: a page of the cache is an element of a batched product,
and what the pages of a request give is put together as flash decoding does it (partial maxima, sums and values).
Nothing is copied while the pages in use lie close together, which is so wherever memory is short. Prefills attend one
request at a time.

For that the cache's memory is laid out anew, [layers, keys and values, pages, heads, tokens, head size], so that a
head's part of a page is contiguous; nothing else may read or write it, hence no block sharing and no forks. Works with
transformers 5.17 to 5.24.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

MAX_SPREAD = 3
"""Pages that lie between those in use cost their product: up to so many times as many, less than a copy costs."""


class Pages:
    """Keys and values of each layer as pages of [KV heads, page size, head size].

    The cache names a token's place by a number; `stride` of them lie between the same token of neighbouring pages.
    """

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor], stride: int) -> None:
        """Take the memory of each layer, [pages, KV heads, page size, head size], and set it to zero.

        A page is read whole, and what is not a key is masked: it must be a number.
        """
        self.keys, self.values, self._stride = keys, values, stride
        self.size = keys[0].shape[2]
        self.first_layer = 0
        self.plan: Any = None
        """Of the forward pass that is running; made in its first layer."""
        for memory in (*keys, *values):
            memory.zero_()

    def page_of(self, places: NDArray[Any]) -> NDArray[Any]:
        """Return the page of each place."""
        pages: NDArray[Any] = places // self._stride
        return pages

    def rows(self, places: torch.Tensor) -> torch.Tensor:
        """Return where a token's heads lie in a layer's memory seen as rows of a head each, [KV heads, tokens]."""
        num_heads = self.keys[0].shape[1]
        heads = torch.arange(num_heads, device=places.device)[:, None]
        page, token = places // self._stride, places % self._stride
        return (page * num_heads + heads) * self.size + token


def pages_of(cache: Any) -> Pages | None:
    """Return a cache's memory by pages, or None where its layers are not all of full attention."""
    if hasattr(cache, "cache_allocators"):  # since 5.23
        return _from_one_tensor(list(cache.cache_allocators.values()))
    if cache.num_groups != 1 or cache.num_sliding_attention_groups:
        return None
    heads, width = cache.num_key_value_heads, cache.head_dim
    keys, values = (
        [layer.view(-1, heads, cache.block_size, width) for layer in memory]
        for memory in (cache.key_cache, cache.value_cache)
    )
    return Pages(keys, values, cache.block_size)


def _from_one_tensor(allocators: list[Any]) -> Pages | None:
    if len(allocators) != 1 or allocators[0].layer_type != "full_attention":
        return None
    allocator = allocators[0]
    memory = allocator.cache_tensor  # [pages * layers * page size, 2, KV heads, head size]
    layers, size = len(allocator.layer_indices), allocator.tokens_per_page
    whole = memory.view(layers, 2, -1, allocator.num_key_value_heads, size, allocator.head_dim)
    return Pages(list(whole[:, 0]), list(whole[:, 1]), allocator.block_physical_stride)


@dataclass(frozen=True, slots=True)
class Decode:
    """How R requests with one query each find their keys in P pages.

    Attributes:
        queries: Place of each request's query in the batch, [R].
        pages: Which pages of the cache are read: a slice that is used in place, or numbers to gather, [P].
        owners: Request of each page, [P]; of a page in between that none of them owns, 0.
        bias: 0 where a page holds a key of its owner, else -inf, [P, page size].
        owned: Pages of each request, [R, most pages]; the first one repeated where there are fewer.
    """

    queries: torch.Tensor
    pages: slice | torch.Tensor
    owners: torch.Tensor
    bias: torch.Tensor
    owned: torch.Tensor


@dataclass(frozen=True, slots=True)
class Prefill:
    """Queries `first` to `end` of the batch: a prompt or a part of one, with `num_keys` keys.

    `pages` holds the keys of a part that is not the first one; it is None where the keys are those of the queries.
    """

    first: int
    end: int
    num_keys: int
    pages: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same in all layers of one forward pass; `write` are rows of [pages * heads * tokens], [heads, Q]."""

    write: torch.Tensor
    decode: Decode | None
    prefills: list[Prefill]


def pages_attention(
    pages: Pages,
    layer: int,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scale: float,
    batch: dict[str, Any],
) -> torch.Tensor:
    """Return the attention output, [1, Q, heads, head size]; the new keys and values are written to the cache.

    Args:
        pages: The cache's memory.
        layer: Number of the layer.
        states: Query [1, heads, Q, head size]; key and value, [1, KV heads, Q, head size].
        scale: Of the scores.
        batch: What is named in `PLANNED_BY`, as transformers hands it over.
    """
    query, key, value = states
    if layer == pages.first_layer:
        pages.plan = make_plan(pages, **{name: batch[name] for name in PLANNED_BY})
    plan: Plan = pages.plan
    keys, values = pages.keys[layer], pages.values[layer]
    for stored, new in ((keys, key), (values, value)):
        stored.view(-1, stored.shape[-1]).index_copy_(0, plan.write.view(-1), new[0].reshape(-1, new.shape[-1]))
    out = torch.empty_like(query[0])
    if plan.decode is not None:
        out[:, plan.decode.queries] = _decode(plan.decode, query[0], keys, values, scale)
    for part in plan.prefills:
        out[:, part.first : part.end] = _prefill(part, query[0], (key[0], value[0]), (keys, values), scale)
    return out.transpose(0, 1)[None]


PLANNED_BY = ("cu_seq_lens_q", "cu_seq_lens_k", "read_index", "write_index")


def make_plan(pages: Pages, cu_seq_lens_q: Any, cu_seq_lens_k: Any, read_index: Any, write_index: Any) -> Plan:
    """Return the plan of a forward pass from transformers' description of its batch."""
    if isinstance(cu_seq_lens_k, dict):
        cu_seq_lens_k = next(iter(cu_seq_lens_k.values()))
    queries, keys, read = cu_seq_lens_q.numpy(), cu_seq_lens_k.numpy(), read_index[0].numpy()
    num_queries, num_keys = np.diff(queries), np.diff(keys)
    is_decoding = (num_queries == 1) & bool(len(read))
    decoding = np.flatnonzero(is_decoding)
    decode = None
    if len(decoding):
        decode = _plan_decode(pages, queries[decoding], keys[decoding], num_keys[decoding], read)
    prefills = [
        Prefill(
            int(queries[i]),
            int(queries[i + 1]),
            int(num_keys[i]),
            None
            if num_keys[i] == num_queries[i]
            else torch.from_numpy(pages.page_of(read[keys[i] : keys[i + 1] : pages.size])),
        )
        for i in np.flatnonzero(~is_decoding)
    ]
    return Plan(pages.rows(write_index[0]), decode, prefills)


def _plan_decode(
    pages: Pages, queries: NDArray[Any], starts: NDArray[Any], num_keys: NDArray[Any], read: NDArray[Any]
) -> Decode:
    counts = -(-num_keys // pages.size)
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    used = pages.page_of(read[starts[owner] + number * pages.size])
    low, size = int(used.min()), int(used.max() - used.min()) + 1
    if size <= MAX_SPREAD * len(used):
        chosen: slice | torch.Tensor = slice(low, low + size)
        place = used - low
    else:
        chosen, place, size = torch.from_numpy(used), np.arange(len(used)), len(used)
    owners, bias = np.zeros(size, np.int64), np.full((size, pages.size), -np.inf, np.float32)
    owners[place] = owner
    bias[place] = np.where(np.arange(pages.size) < (num_keys[owner] - number * pages.size)[:, None], 0, -np.inf)
    owned = np.repeat(place[np.cumsum(counts) - counts][:, None], counts.max(), 1)
    owned[owner, number] = place
    indices = (torch.from_numpy(array) for array in (queries.astype(np.int64), owners, bias, owned))
    at, *rest = indices
    return Decode(at, chosen, *rest)


def _decode(plan: Decode, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the output of the decoding requests, [heads, R, head size]."""
    keys, values = keys[plan.pages], values[plan.pages]
    num_pages, num_kv_heads, size, width = keys.shape
    num_heads, num_requests = len(query), len(plan.queries)
    asked = (query[:, plan.queries] * scale).transpose(0, 1).index_select(0, plan.owners)
    asked = asked.reshape(num_pages * num_kv_heads, -1, width)
    scores = torch.bmm(asked, keys.reshape(-1, size, width).transpose(1, 2)).view(num_pages, num_heads, size)
    scores = scores.float().add_(plan.bias[:, None])
    top = scores.amax(-1)[plan.owned].amax(1)
    weights = scores.sub_(top.index_select(0, plan.owners)[:, :, None]).exp_()
    totals = torch.zeros_like(top).index_add_(0, plan.owners, weights.sum(-1))
    parts = torch.bmm(weights.to(query.dtype).view(-1, asked.shape[1], size), values.reshape(-1, size, width))
    out = torch.zeros(num_requests, num_heads, width, device=query.device)
    out.index_add_(0, plan.owners, parts.view(num_pages, num_heads, width).float())
    return (out / totals[:, :, None]).to(query.dtype).transpose(0, 1)


def _prefill(
    part: Prefill,
    query: torch.Tensor,
    new: tuple[torch.Tensor, torch.Tensor],
    stored: tuple[torch.Tensor, torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """Return the output of one request's queries, [heads, Q, head size]; their keys are already in the cache."""
    query = query[:, part.first : part.end]
    num_queries, mask = query.shape[1], None
    if part.pages is None:
        keys, values = (states[:, part.first : part.end] for states in new)
    else:
        read = (states[part.pages].transpose(0, 1).flatten(1, 2)[:, : part.num_keys] for states in stored)
        keys, values = read
        mask = torch.ones(num_queries, part.num_keys, dtype=torch.bool, device=query.device)
        mask = mask.tril(part.num_keys - num_queries)
    repeats = len(query) // len(keys)
    keys, values = keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0)
    return scaled_dot_product_attention(
        query[None], keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=scale
    )[0]
