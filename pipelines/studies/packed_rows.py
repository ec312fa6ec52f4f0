"""Training examples packed into rows of one length, each seeing nothing but itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Example = tuple[np.ndarray, int]
IGNORED = -100


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch of B rows of L tokens.

    Attributes:
        tokens: [B, L].
        positions: Place of each token in its example, [B, L].
        examples: Which example of its row a token belongs to; 0 is padding, [B, L].
        targets: The next token where it is of an answer, else IGNORED, [B, L].
        weights: Weight of each target, [B, L].
        num_tokens: Tokens that are not padding.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    examples: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    num_tokens: int


def packed_batches(
    examples: list[Example], num_rows: int, row_tokens: int, plan_weight: float, seed: int
) -> Iterator[PackedBatch]:
    """Yield batches for ever; their order depends on the seed alone.

    Args:
        examples: Token ids and the index of the first answer token, each at most `row_tokens` long.
        num_rows: Rows of a batch.
        row_tokens: Tokens of a row.
        plan_weight: Weight of the first token of an answer, which names its length.
        seed: Of the order.
    """
    for epoch in range(1_000_000):
        order = np.random.default_rng([seed, epoch]).permutation(len(examples))
        rows: list[list[int]] = []
        used: list[int] = []
        for i in order:
            size = len(examples[i][0])
            # First fit among the last rows: rows end nearly full, and packing stays linear.
            place = next((k for k in range(max(0, len(rows) - 32), len(rows)) if used[k] + size <= row_tokens), None)
            if place is None:
                rows.append([])
                used.append(0)
                place = len(rows) - 1
            rows[place].append(int(i))
            used[place] += size
        for start in range(0, len(rows) - num_rows + 1, num_rows):
            yield _batch(
                [[examples[i] for i in row] for row in rows[start : start + num_rows]], row_tokens, plan_weight
            )
        if len(rows) < num_rows:
            yield _batch([[examples[i] for i in row] for row in rows], row_tokens, plan_weight)


def _batch(rows: list[list[Example]], row_tokens: int, plan_weight: float) -> PackedBatch:
    shape = (len(rows), row_tokens)
    tokens, positions, numbers = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    targets, weights = np.full(shape, IGNORED), np.ones(shape, dtype=np.float32)
    for row, examples in enumerate(rows):
        at = 0
        for number, (ids, start) in enumerate(examples, 1):
            end = at + len(ids)
            tokens[row, at:end] = ids
            positions[row, at:end] = np.arange(len(ids))
            numbers[row, at:end] = number
            targets[row, at + start - 1 : end - 1] = ids[start:]
            weights[row, at + start - 1] = plan_weight
            at = end
    on_cpu = [torch.from_numpy(array) for array in (tokens, positions, numbers, targets, weights)]
    return PackedBatch(on_cpu[0], on_cpu[1], on_cpu[2], on_cpu[3], on_cpu[4], int((numbers > 0).sum()))


def packed_loss(
    model: Any, batch: PackedBatch, device: torch.device, loss: Callable[..., torch.Tensor] | None = None
) -> torch.Tensor:
    """Return the loss of a batch; `loss` is `answer_loss_of_rows`, or that compiled."""
    columns = (batch.tokens, batch.positions, batch.examples, batch.targets, batch.weights)
    return (loss or answer_loss_of_rows)(model, *(column.to(device) for column in columns))


def answer_loss_of_rows(
    model: Any,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    examples: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Return the weighted cross-entropy (nats per token) of the answer tokens; runs in bfloat16.

    A token attends to itself and the earlier ones of its example. Arguments as in `PackedBatch`, on the device.
    """
    length = tokens.shape[1]
    same = examples[:, :, None] == examples[:, None, :]
    mask = (same & torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril())[:, None]
    with torch.autocast(tokens.device.type, torch.bfloat16):
        states = model.model(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False)
        logits = model.lm_head(states.last_hidden_state)
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    counted = weights.flatten() * (targets.flatten() != IGNORED)
    return (losses * counted).sum() / counted.sum()
