"""Training data as Lightning takes it: tokenised prompts with hazard counts, in batches of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from predictor.bounds.bins import IntArray, LengthBins
from predictor.prompts.features import FloatMatrix
from predictor.prompts.tokens import INPUT_NAMES, PromptInputs, batches_by_length
from predictor.records.prompt_table import PromptTable
from predictor.training.losses import hazard_counts

Batch = dict[str, Tensor]

# Of a batch, in the order in which the likelihood takes them.
TARGET_NAMES = ("events", "at_risk", "weights")

# Batches are cut from shuffled pools of this many, so that composition stays random and padding small.
BATCHES_PER_POOL = 16


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """P prompts ready to train on: the network's inputs, and what each served model answered.

    `events` and `at_risk` are hazard counts [P, M, K], `weights` [P, M] is 1 where the served model answered, else 0;
    `output_lens` [P, M, D] are the draws in tokens, at most the last edge, NaN beyond those that there are.
    """

    inputs: PromptInputs
    events: FloatMatrix
    at_risk: FloatMatrix
    weights: FloatMatrix
    output_lens: FloatMatrix

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, indices: IntArray) -> "EncodedPrompts":
        """Return the prompts at `indices`, in that order."""
        arrays = (self.events, self.at_risk, self.weights, self.output_lens)
        return EncodedPrompts(self.inputs.select(indices), *(array[indices] for array in arrays))

    def targets(self, indices: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """Return `events`, `at_risk`, `weights` and `output_lens` of the prompts at `indices`."""
        rows = np.asarray(indices)
        return {name: torch.from_numpy(getattr(self, name)[rows]) for name in (*TARGET_NAMES, "output_lens")}


def encode_table(table: PromptTable, inputs: PromptInputs, bins: LengthBins) -> EncodedPrompts:
    """Return the prompts of `table`, read as `inputs`, with the hazard counts of their draws on `bins`."""
    shape = (*table.places.shape, bins.num_bins)
    events, at_risk = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    num_draws = max(map(len, table.records.output_lens), default=0)
    output_lens = np.full((*table.places.shape, num_draws), np.nan, dtype=np.float32)
    for number, _, rows, records in table.columns():
        events[rows, number], at_risk[rows, number] = hazard_counts(bins, records.output_lens, records.is_truncated)
        for row, draws in zip(rows, records.output_lens, strict=True):
            output_lens[row, number, : len(draws)] = np.minimum(draws, bins.max_length)
    return EncodedPrompts(inputs, events, at_risk, (table.places >= 0).astype(np.float32), output_lens)


class _Indices(Dataset[int]):
    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> int:
        return index


class LengthDataModule(lightning.LightningDataModule):
    """Training batches drawn anew each epoch from (seed, epoch) alone, so that a resumed run sees the same ones."""

    def __init__(
        self, train: EncodedPrompts, validation: EncodedPrompts, *, batch_size: int, pad_token_id: int, seed: int
    ) -> None:
        super().__init__()
        self._train, self._validation = train, validation
        self._batch_size, self._pad_token_id, self._seed = batch_size, pad_token_id, seed

    def train_dataloader(self) -> DataLoader[int]:
        """Return this epoch's batches; under DDP each process gets its own share of them."""
        trainer = self.trainer
        rank, world_size, epoch = (
            (trainer.global_rank, trainer.world_size, trainer.current_epoch) if trainer else (0, 1, 0)
        )
        rng = np.random.default_rng([self._seed, epoch])
        batches = shuffled_batches(self._train.inputs.token_ids, self._batch_size, rng)
        even = len(batches) - len(batches) % world_size
        return self._loader(self._train, batches[rank:even:world_size])

    def val_dataloader(self) -> DataLoader[int]:
        """Return all validation prompts, shortest first."""
        batches = [
            indices.tolist() for indices in batches_by_length(self._validation.inputs.token_ids, self._batch_size)
        ]
        return self._loader(self._validation, batches)

    def _loader(self, prompts: EncodedPrompts, batches: list[list[int]]) -> DataLoader[int]:
        def collate(indices: Sequence[int]) -> Batch:
            return collate_prompts(prompts, indices, self._pad_token_id)

        return DataLoader(_Indices(len(prompts)), batch_sampler=batches, collate_fn=collate)


def shuffled_batches(token_ids: Sequence[Sequence[int]], batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Return every index once, in random batches of prompts of similar length; the last of a pool may be smaller."""
    order = rng.permutation(len(token_ids))
    pool_size = batch_size * BATCHES_PER_POOL
    batches: list[list[int]] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pooled = [token_ids[i] for i in pool]
        batches.extend(pool[inside].tolist() for inside in batches_by_length(pooled, batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def collate_prompts(prompts: EncodedPrompts, indices: Sequence[int], pad_token_id: int) -> Batch:
    """Return one batch: the network's inputs by name, and the targets of `EncodedPrompts`."""
    inputs = zip(INPUT_NAMES, prompts.inputs.batch(indices, pad_token_id), strict=True)
    return {**{name: torch.from_numpy(array) for name, array in inputs}, **prompts.targets(indices)}
