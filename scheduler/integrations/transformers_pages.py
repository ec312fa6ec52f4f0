"""The memory of transformers' paged cache, by layer and page, in versions 5.17 to 5.24."""

from typing import Any

import torch
from numpy.typing import NDArray


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
