"""States of whole answers: the model reads prompt and answer once more, many answers in a forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.served_model.hidden_states import captured, decoder_layers
from pipelines.served_model.loading import ServedModel
from predictor.probe.states import POSITIONS, HalfArray, States, StateSource

TOKENS_IN_PASS = 4096
"""Tokens of a forward pass, padding included: enough to keep a device busy, and a few hundred MiB in a large model."""
LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose states are wanted.

    Attributes:
        prompt: Row of its prompt in the records.
        draw: Which of the prompt's answers.
        prompt_tokens: Token ids of the prompt in its chat template.
        tokens: Token ids of the answer, the end token included.
    """

    prompt: int
    draw: int
    prompt_tokens: Sequence[int]
    tokens: Sequence[int]

    @property
    def generated(self) -> list[int]:
        """The kept positions that it reaches: the model read so many of its tokens, and wrote another."""
        return [t for t in POSITIONS if t < len(self.tokens)]

    @property
    def read(self) -> list[int]:
        """What the model must read for the states at these positions."""
        return [*self.prompt_tokens, *self.tokens[: self.generated[-1]]]


def answer_states(served: ServedModel, source: StateSource, answers: Sequence[Answer]) -> States:
    """Return the states of `answers` at every kept position that they reach, in their order.

    Generating and reading compute the same states up to rounding: what a causal model sees at a token is what came
    before. Only one forward pass is held in memory.
    """
    parts: dict[int, States] = {}
    with captured(served, source.layers) as found, up_to(served, max(source.layers)), torch.inference_mode():
        for batch in passes([len(answer.read) for answer in answers]):
            longest = max(len(answers[k].read) for k in batch)
            rows = [answers[k].read + [0] * (longest - len(answers[k].read)) for k in batch]
            # Padding follows what counts, where a causal model does not look: no mask is needed.
            with suppress(Enough):
                served.model.get_decoder()(input_ids=torch.tensor(rows, device=served.model.device), use_cache=False)
            for row, k in enumerate(batch):
                states = torch.stack([found[layer][row] for layer in source.layers]).float()
                parts[k] = _kept(answers[k], states, source.window)
    return States.concatenate([parts[k] for k in range(len(answers))])


class Enough(Exception):  # noqa: N818 - no error
    """Ends a forward pass where the highest layer that is wanted has given out its states."""


@contextmanager
def up_to(served: ServedModel, layer: int) -> Iterator[None]:
    """Leave out the layers after `layer`."""

    def stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise Enough

    after = decoder_layers(served)[layer:]
    hook = after[0].register_forward_pre_hook(stop) if after else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def passes(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield which of these numbers of tokens go into each forward pass: like ones, so that little is padding."""
    batch: list[int] = []
    for k in sorted(range(len(sizes)), key=sizes.__getitem__):
        if batch and (len(batch) + 1) * sizes[k] > TOKENS_IN_PASS:
            yield batch
            batch = []
        batch.append(k)
    if batch:
        yield batch


def _kept(answer: Answer, states: Tensor, window: int) -> States:
    """Return the rows of one answer from its states [L, T, H]."""
    size = len(answer.prompt_tokens)
    generated = answer.generated
    places = [size - 1 + t for t in generated]
    recent = [states[:, max(size - 1, place + 1 - window) : place + 1].mean(dim=1) for place in places]
    mean = states[:, :size].mean(dim=1)
    count = len(generated)
    return States(
        np.full(count, answer.prompt),
        np.full(count, answer.draw),
        np.array(generated),
        _half(states[:, places].transpose(0, 1)),
        _half(torch.stack(recent)),
        _half(mean.expand(count, *mean.shape)),
    )


def _half(values: Tensor) -> HalfArray:
    """Return values in half precision; the few states that are larger than it holds become its largest."""
    half: HalfArray = values.clamp(-LARGEST_HALF, LARGEST_HALF).to(torch.float16).cpu().numpy()
    return half
