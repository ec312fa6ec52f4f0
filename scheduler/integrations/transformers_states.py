"""States of running requests, read inside the forward pass of transformers' continuous batching, and how they are used.

A hook copies what one layer gives out into a buffer of fixed place, so that it is also right where a CUDA graph is
replayed, in which no Python runs. Of each request the last states and the sum over its prompt stay on the device.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scheduler.renewals import RenewalSource
from scheduler.request import Request


class Chunk(NamedTuple):
    """What a forward pass read of a request.

    Attributes:
        request_id: Whose tokens they are; None where the request has ended meanwhile.
        start: Position of the first in prompt and answer.
        length: How many.
        num_prompt_tokens: Of the request, without what it generated.
    """

    request_id: str | None
    start: int
    length: int
    num_prompt_tokens: int


class StateReader:
    """Keeps, for each running request, its last states from the prompt's last token on, and the sum over its prompt."""

    def __init__(
        self, module: nn.Module, *, is_input: bool, hidden_size: int, window: int, max_batch_tokens: int
    ) -> None:
        """Hook a module; `close` takes the hook off.

        Args:
            module: The layer.
            is_input: Whether its input is read, not its output: the embedding is what goes into the first layer.
            hidden_size: H, width of a state.
            window: How many of the last states are kept.
            max_batch_tokens: Most tokens of one forward pass, padding included.
        """
        weight = next(module.parameters())
        self._buffer = torch.zeros(max_batch_tokens, hidden_size, dtype=weight.dtype, device=weight.device)
        self._window = window
        self._recent = self._buffer.new_zeros(0, window, hidden_size)
        self._prompt_sum = self._recent.new_zeros(0, hidden_size, dtype=torch.float32)
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._generated: dict[str, int] = {}
        self._num_prompt_tokens: dict[str, int] = {}
        self.noting_seconds = 0.0
        """Time spent in `note`."""
        if is_input:
            self._hook = module.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            self._hook = module.register_forward_hook(self._after)

    def close(self) -> None:
        """Take the hook off and forget everything."""
        self._hook.remove()
        self.clear()

    def clear(self) -> None:
        """Forget everything; the hook stays on."""
        for kept in (self._slots, self._free, self._generated, self._num_prompt_tokens):
            kept.clear()
        self._recent, self._prompt_sum = self._recent[:0], self._prompt_sum[:0]

    def _before(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._copy(inputs[0] if inputs else named["hidden_states"])

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._copy(output[0] if isinstance(output, tuple) else output)

    def _copy(self, states: Tensor) -> None:
        """Copy [1, Q, H]; what comes from another use of the model than continuous batching is not ours."""
        if len(states) == 1 and states.shape[1] <= len(self._buffer):
            self._buffer[: states.shape[1]].copy_(states[0])

    def num_generated(self, request_id: str) -> int:
        """Return how many tokens were out at the newest state of a request; -1 before its prompt has been read."""
        return self._generated.get(request_id, -1)

    def note(self, chunks: Sequence[Chunk]) -> None:
        """Keep what the last forward pass read, in its order."""
        started = time.perf_counter()
        slots: list[int] = []
        columns: list[int] = []
        rows: list[int] = []
        row = 0
        for chunk in chunks:
            if chunk.request_id is None:
                row += chunk.length
                continue
            slot = self._slot(chunk.request_id, chunk.num_prompt_tokens)
            after = chunk.start + chunk.length
            out = after - chunk.num_prompt_tokens  # tokens that were out at the last state
            if out <= 0 or chunk.length > 1:
                self._add_prompt(slot, chunk, row)
            kept = max(0, min(chunk.length, out + 1, self._window))
            slots += [slot] * kept
            columns += [t % self._window for t in range(out + 1 - kept, out + 1)]
            rows += range(row + chunk.length - kept, row + chunk.length)
            self._generated[chunk.request_id] = out if out >= 0 else -1
            row += chunk.length
        if rows:
            at = torch.tensor([slots, columns, rows], device=self._buffer.device)
            self._recent[at[0], at[1]] = self._buffer[at[2]]
        self.noting_seconds += time.perf_counter() - started

    def _slot(self, request_id: str, num_prompt_tokens: int) -> int:
        """Return the slot of a request, a free one for a new request."""
        slot = self._slots.get(request_id)
        if slot is None:
            if not self._free:
                self._grow()
            slot = self._slots[request_id] = self._free.pop()
            self._num_prompt_tokens[request_id] = num_prompt_tokens
        return slot

    def _grow(self) -> None:
        size = len(self._recent)
        more = max(64, size)
        self._recent = torch.cat([self._recent, self._recent.new_zeros(more, *self._recent.shape[1:])])
        self._prompt_sum = torch.cat([self._prompt_sum, self._prompt_sum.new_zeros(more, self._prompt_sum.shape[1])])
        self._free.extend(range(size + more - 1, size - 1, -1))

    def _add_prompt(self, slot: int, chunk: Chunk, row: int) -> None:
        """Add what a chunk has of the prompt; its first part starts the sum anew."""
        if chunk.start == 0:
            self._prompt_sum[slot] = 0.0
        count = min(chunk.length, chunk.num_prompt_tokens - chunk.start)
        if count > 0:
            self._prompt_sum[slot] += self._buffer[row : row + count].sum(0, dtype=torch.float32)

    def read(self, request_ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the newest state, the mean of the last ones and the mean of the prompt's, [N, 3, H]."""
        device = self._buffer.device
        out = torch.tensor([self._generated[each] for each in request_ids], device=device)
        slots = torch.tensor([self._slots[each] for each in request_ids], device=device)
        sizes = torch.tensor([self._num_prompt_tokens[each] for each in request_ids], device=device)
        recent = self._recent[slots].float()
        counts = (out + 1).clamp(max=self._window)
        is_kept = torch.arange(self._window, device=device) < counts[:, None]
        mean = recent.masked_fill(~is_kept[:, :, None], 0.0).sum(1) / counts[:, None]
        last = recent[torch.arange(len(out), device=device), out % self._window]
        states: NDArray[np.float32] = (
            torch.stack([last, mean, self._prompt_sum[slots] / sizes[:, None]], dim=1).cpu().numpy()
        )
        return states

    @property
    def num_kept(self) -> int:
        """Requests of which states are kept."""
        return len(self._slots)

    def forget(self, request_id: str) -> None:
        """Let go of a request that ended or was evicted."""
        slot = self._slots.pop(request_id, None)
        if slot is not None:
            self._free.append(slot)
            del self._num_prompt_tokens[request_id]
            self._generated.pop(request_id, None)


@dataclass(frozen=True, slots=True)
class Renewing:
    """How the forecasts of the requests of an engine are renewed; a request goes by its index in the policy.

    Attributes:
        make_states: Returns what reads the states in the engine with this cache; InputError for one of another model.
        make_source: Returns what renews, given that and a function from an index to the request as it was predicted.
    """

    make_states: Callable[[Any], StateReader]
    make_source: Callable[[StateReader, Callable[[int], Request]], RenewalSource]


class BatchStates:
    """Keeps what each forward pass of an engine that drives itself read, before the next one.

    Such an engine says nothing after a pass: only its scheduler is asked, between passes.
    """

    def __init__(self, reader: StateReader) -> None:
        """Start with no pass under way."""
        self.reader = reader
        self._under_way: list[Chunk] = []

    def expect(self, chunks: Sequence[Chunk]) -> None:
        """Take note of what the pass that comes now reads, in its order."""
        self._under_way = list(chunks)

    def note(self) -> None:
        """Keep what the last pass read, once."""
        if self._under_way:
            self.reader.note(self._under_way)
            self._under_way = []

    def forget(self, request_id: str) -> None:
        """Let go of a request that ended or was evicted, also where its pass has not been noted yet."""
        self.reader.forget(request_id)
        self._under_way = [
            chunk._replace(request_id=None) if chunk.request_id == request_id else chunk for chunk in self._under_way
        ]

    def clear(self) -> None:
        """Forget everything; the hook stays, since a CUDA graph may have its buffer."""
        self._under_way = []
        self.reader.clear()
