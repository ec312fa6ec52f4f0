"""States of running requests in vLLM's worker, kept by the blocks of its KV cache.

vLLM finds the beginning of a prompt in its prefix cache and does not compute it again, so that those tokens have no
states in the pass. Hence the sum of the states in a block is kept for as long as the block holds their keys and values:
whoever takes the block over takes its sum. A sum starts anew with the first token that is written into a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Kept:
    """Of a request.

    Attributes:
        slot: Where its states are.
        num_prompt_tokens: Without what it generated.
        blocks: Its blocks in the KV cache, first first.
        generated: Tokens that were out at its newest state; -1 before its prompt has been read.
    """

    slot: int
    num_prompt_tokens: int
    blocks: list[int]
    generated: int = -1


@dataclass(slots=True)
class Copies:
    """Where the states of a pass go.

    Attributes:
        blocks: The block of each row.
        opened: Blocks that are written from their start.
        places: Where states are kept as the last ones of their requests: slot times window, and the place in it.
        rows: The rows that these states are in.
    """

    blocks: list[int]
    opened: list[int]
    places: list[int]
    rows: list[int]


class BlockStates:
    """Keeps the sum of the states in each block, and of each request its last states and the sum over its prompt.

    A request that is evicted keeps both, since it finds most of its blocks again and does not compute them.
    """

    def __init__(self, num_blocks: int, block_size: int, hidden_size: int, window: int, like: Tensor) -> None:
        """Start with no request.

        Args:
            num_blocks: Of the KV cache; a block is named by its number.
            block_size: Tokens in a block.
            hidden_size: H, width of a state.
            window: How many of the last states are kept, from the prompt's last token on.
            like: A tensor with the type and the device of the states.
        """
        self._block_size, self._window = block_size, window
        self._sums = like.new_zeros(num_blocks, hidden_size, dtype=torch.float32)
        self._recent = like.new_zeros(0, window, hidden_size)
        self._prompt_sum = self._sums.new_zeros(0, hidden_size)
        self._kept: dict[str, Kept] = {}
        self._free: list[int] = []

    @property
    def num_kept(self) -> int:
        """Requests of which states are kept."""
        return len(self._kept)

    def admit(self, request_id: str, num_prompt_tokens: int, blocks: Sequence[int]) -> None:
        """Take in a request with the blocks that it has; one that comes back from an eviction has other blocks."""
        kept = self._kept.get(request_id)
        if kept is None:
            if not self._free:
                self._grow()
            self._kept[request_id] = Kept(self._free.pop(), num_prompt_tokens, list(blocks))
        elif kept.num_prompt_tokens == num_prompt_tokens:
            kept.blocks = list(blocks)
        else:  # a streamed input goes on: what was generated has become prompt
            kept.num_prompt_tokens, kept.blocks, kept.generated = num_prompt_tokens, list(blocks), -1

    def move(self, request_id: str, blocks: Sequence[int]) -> None:
        """Give a request that comes back from an eviction its new blocks."""
        self._kept[request_id].blocks = list(blocks)

    def extend(self, request_id: str, blocks: Sequence[int]) -> None:
        """Give a request further blocks."""
        self._kept[request_id].blocks += blocks

    def _grow(self) -> None:
        size = len(self._recent)
        more = max(64, size)
        self._recent = torch.cat([self._recent, self._recent.new_zeros(more, *self._recent.shape[1:])])
        self._prompt_sum = torch.cat([self._prompt_sum, self._prompt_sum.new_zeros(more, self._prompt_sum.shape[1])])
        self._free.extend(range(size + more - 1, size - 1, -1))

    def note(self, states: Tensor, chunks: Sequence[tuple[str, int, int]]) -> None:
        """Keep what a forward pass read.

        Args:
            states: [Q, H], those of the chunks one after the other; padding may follow.
            chunks: Of each request its name, the position of the first token in prompt and answer, and how many.
        """
        to, read_now, row = Copies([], [], [], []), list[Kept](), 0
        for request_id, start, length in chunks:
            kept = self._kept[request_id]
            out = start + length - kept.num_prompt_tokens  # tokens that were out at the last state
            if length == 1 and out >= 0 <= kept.generated:
                self._copy_one(kept, start, row, to)
            else:
                self._copy_several(kept, start, length, row, to)
                if out >= 0 > kept.generated:
                    read_now.append(kept)
            if out >= 0:
                kept.generated = out
            row += length
        self._add(states[:row], to)
        if to.rows:
            at = torch.tensor([to.places, to.rows], device=states.device)
            self._recent.view(-1, states.shape[1])[at[0]] = states[at[1]]
        for kept in read_now:
            held = torch.tensor(kept.blocks[: -(-kept.num_prompt_tokens // self._block_size)], device=states.device)
            self._prompt_sum[kept.slot] = self._sums[held].sum(0)

    def _copy_one(self, kept: Kept, start: int, row: int, to: Copies) -> None:
        """Do what `_copy_several` does, in a third of the time, for the many that have got one token."""
        block, offset = kept.blocks[start // self._block_size], start % self._block_size
        to.blocks.append(block)
        if not offset:
            to.opened.append(block)
        to.places.append(kept.slot * self._window + (start + 1 - kept.num_prompt_tokens) % self._window)
        to.rows.append(row)

    def _copy_several(self, kept: Kept, start: int, length: int, row: int, to: Copies) -> None:
        size, window, stop = self._block_size, self._window, start + length
        for place in range(start // size, (stop - 1) // size + 1):
            block, first = kept.blocks[place], place * size
            to.blocks += [block] * (min(stop, first + size) - max(start, first))
            if start <= first:
                to.opened.append(block)
        out = stop - kept.num_prompt_tokens
        count = max(0, min(length, window, out + 1))
        to.places += [kept.slot * window + t % window for t in range(out + 1 - count, out + 1)]
        to.rows += range(row + length - count, row + length)

    def _add(self, states: Tensor, to: Copies) -> None:
        """Add each state to its block's sum; a block that is written from its start begins with nothing."""
        if to.opened:
            self._sums[torch.tensor(to.opened, device=states.device)] = 0.0
        self._sums.index_add_(0, torch.tensor(to.blocks, device=states.device), states.float())

    def read(self, request_ids: Sequence[str]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return the newest state, the mean of the last ones and the mean of the prompt's, [N, 3, H], and counts.

        The counts are the tokens that were out at the newest state, and those of the prompt.
        """
        counts = [(self._kept[each].generated, self._kept[each].num_prompt_tokens) for each in request_ids]
        device = self._recent.device
        out, sizes = torch.tensor(counts, device=device).T
        slots = torch.tensor([self._kept[each].slot for each in request_ids], device=device)
        recent = self._recent[slots].float()
        num_recent = (out + 1).clamp(max=self._window)
        is_kept = torch.arange(self._window, device=device) < num_recent[:, None]
        mean = recent.masked_fill(~is_kept[:, :, None], 0.0).sum(1) / num_recent[:, None]
        last = recent[torch.arange(len(out), device=device), out % self._window]
        return torch.stack([last, mean, self._prompt_sum[slots] / sizes[:, None]], dim=1), counts

    def forget(self, request_id: str) -> None:
        """Let go of a request that ended."""
        kept = self._kept.pop(request_id, None)
        if kept is not None:
            self._free.append(kept.slot)
