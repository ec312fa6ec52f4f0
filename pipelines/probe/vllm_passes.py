"""The passes of vLLM's worker, followed: states are kept, and a probe is read where the scheduler asks for it."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scheduler.integrations.vllm_renewals import DUE, StatesReport
from scheduler.integrations.vllm_states import BlockStates

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """A report whose logits are on their way to the host: vLLM's next pass need not wait for them.

    Attributes:
        indices: As in `StatesReport`, as are `generated`, `seconds` and `failure`.
        generated: See `indices`.
        logits: [N, K], on the host once `copied` has come to pass.
        copied: A CUDA event; None where the logits are there.
        seconds: See `indices`.
        failure: See `indices`.
    """

    indices: tuple[int, ...]
    generated: tuple[int, ...]
    logits: Tensor
    copied: Any
    seconds: float
    failure: str

    def report(self) -> StatesReport:
        """Wait for the logits, and return the report."""
        if self.copied is not None:
            self.copied.synchronize()
        return StatesReport(self.indices, self.generated, self.logits.numpy(), self.seconds, self.failure)


class PassStates:
    """Follows the passes of vLLM's worker, and reads a probe where the scheduler asks for it.

    An exception is logged once; from then on nothing is kept, and the next report says so.
    """

    def __init__(self, states: BlockStates, probe: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Start before the first pass; `probe` returns logits [N, K] from states [N, 3, H] and counts [N, 2]."""
        self._states: BlockStates | None = states
        self._probe = probe
        self._pending: tuple[dict[str, int], list[tuple[int, int]], Tensor] | None = None
        self._seconds, self._failure = 0.0, ""

    def after_pass(self, output: Any, order: Sequence[str], layer_states: Tensor | None) -> None:
        """Take in a pass: vLLM's `SchedulerOutput`, its requests in the order of the batch, and the layer's states."""
        if self._states is None:
            return
        started = time.perf_counter()
        try:
            self._follow(self._states, output)
            if layer_states is not None:
                self._note(self._states, output, order, layer_states)
        except Exception as error:
            logger.exception("amin: states failed: from now on forecasts are those of the prompt")
            self._states, self._pending, self._failure = None, None, f"{type(error).__name__}: {error}"
        self._seconds += time.perf_counter() - started

    def _follow(self, states: BlockStates, output: Any) -> None:
        for name in output.finished_req_ids:
            states.forget(name)
        for new in output.scheduled_new_reqs:
            tokens = new.prompt_token_ids if new.prompt_token_ids is not None else new.prompt_embeds
            states.admit(new.req_id, len(tokens), new.block_ids[0])
        cached = output.scheduled_cached_reqs
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if name in cached.resumed_req_ids:
                states.move(name, blocks[0])
            elif blocks is not None:
                states.extend(name, blocks[0])

    def _note(self, states: BlockStates, output: Any, order: Sequence[str], layer_states: Tensor) -> None:
        cached = output.scheduled_cached_reqs
        starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        starts |= {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        states.note(layer_states, [(name, starts[name], output.num_scheduled_tokens[name]) for name in order])
        due: dict[str, int] = getattr(output, DUE, {})
        if due:
            read, counts = states.read([*due])
            self._pending = due, counts, self._probe(read, torch.tensor(counts, device=read.device))

    def take(self) -> Reading | None:
        """Return what the last pass gave, once; None where nothing was asked for and nothing failed."""
        if self._pending is None and not self._failure:
            return None
        due, counts, logits = self._pending or ({}, [], torch.zeros(0, 0))
        host = logits.float().to("cpu", non_blocking=True)
        copied = torch.cuda.current_stream(logits.device).record_event() if logits.is_cuda else None
        generated = tuple(out for out, _ in counts)
        reading = Reading(tuple(due.values()), generated, host, copied, self._seconds, self._failure)
        self._pending, self._seconds, self._failure = None, 0.0, ""
        return reading
