"""Attention of each request over its own keys, for transformers' continuous batching without flash attention.

Stock `sdpa` lets every query attend to every running request's keys under a mask. Here a decoding request multiplies
with its own pages where they lie: a page of the cache is an element of a batched product, and what the pages of a
request give is put together as flash decoding does it (partial maxima, sums and values). Nothing is copied while the
pages in use lie close together, which is so wherever memory is short. Prefills attend one request at a time.

The cache's memory is laid out anew, [layers, keys and values, pages, heads, tokens, head size], so that a head's part
of a page is contiguous; nothing else may read or write it, hence no block sharing and no forks.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scheduler.integrations.transformers_pages import Pages, pages_of

NAME = "amin_own_keys"
"""What `config._attn_implementation` is while a model runs with it."""
MAX_SPREAD = 3
"""Pages that lie between those in use cost their product: up to so many times as many, less than a copy costs."""


def use_own_keys(cache: Any) -> bool:
    """Make the model of a new cache attend by this module; return whether it does.

    It does not where flash attention is in use, on a GPU (without a graph a launch costs more than the product; stock
    `sdpa` runs inside CUDA graphs), or where some layers see a sliding window. The model keeps the setting: outside
    continuous batching it is the same as `sdpa`. An engine that is set up anew wants the name back that it had.
    """
    is_stock = cache.config._attn_implementation.removeprefix("paged|") == "sdpa"
    if not is_stock or torch.device(cache.device).type != "cpu" or (pages := pages_of(cache)) is None:
        return False
    cache.own_keys = pages
    cache.update = partial(_hand_on, pages)
    cache.config._attn_implementation = NAME
    return True


def behind_stock_name(name: str) -> None:
    """Let the stock attention `name` hand on to ours what runs on such a cache, and nothing else.

    For engines that others set up: transformers refuses a model that has a name of ours when the next one is made.
    """
    stock = ALL_ATTENTION_FUNCTIONS[name]
    if getattr(stock, "hands_on", False):
        return

    def attention(module: torch.nn.Module, *states: Any, **kwargs: Any) -> Any:
        is_ours = _pages_in(kwargs) is not None
        return (own_keys_attention if is_ours else stock)(module, *states, **kwargs)

    attention.hands_on = True  # type: ignore[attr-defined]
    AttentionInterface.register(name, attention)


def _pages_in(kwargs: dict[str, Any]) -> Pages | None:
    pages: Pages | None = kwargs.get("own_keys") or getattr(kwargs.get("cache"), "own_keys", None)
    return pages


def _hand_on(pages: Pages, key: Any, value: Any, layer_idx: int, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Take the place of the cache's `update`, which layers of transformers 5.24 call before the attention."""
    kwargs["own_keys"] = pages
    return key, value


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
    pages = _pages_in(kwargs)
    if pages is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if layer == pages.first_layer:
        pages.plan = make_plan(pages, **{name: kwargs[name] for name in PLANNED_BY})
    plan: Plan = pages.plan
    keys, values = pages.keys[layer], pages.values[layer]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    for stored, new in ((keys, key), (values, value)):
        stored.view(-1, stored.shape[-1]).index_copy_(0, plan.write.view(-1), new[0].reshape(-1, new.shape[-1]))
    out = torch.empty_like(query[0])
    if plan.decode is not None:
        out[:, plan.decode.queries] = _decode(plan.decode, query[0], keys, values, scale)
    for part in plan.prefills:
        out[:, part.first : part.end] = _prefill(part, query[0], (key[0], value[0]), (keys, values), scale)
    return out.transpose(0, 1)[None], None


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


AttentionInterface.register(NAME, own_keys_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
