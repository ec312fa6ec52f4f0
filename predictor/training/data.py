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
    pad_token_id: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, indices: IntArray) -> "EncodedPrompts":
        """Return the prompts at `indices`, in that order."""
        return EncodedPrompts(
            self.inputs.select(indices),
            self.events[indices],
            self.at_risk[indices],
            self.weights[indices],
            self.output_lens[indices],
            self.pad_token_id,
        )

    def targets(self, indices: Sequence[int] | IntArray) -> dict[str, Tensor]:
        """Return `events`, `at_risk`, `weights` and `output_lens` of the prompts at `indices`."""
        rows = np.asarray(indices)
        return {name: torch.from_numpy(getattr(self, name)[rows]) for name in (*TARGET_NAMES, "output_lens")}

    def shuffled(self, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
        """Return every index once, in random batches of prompts of similar length."""
        return shuffled_batches(self.inputs.token_ids, batch_size, rng)

    def in_order(self, batch_size: int) -> list[list[int]]:
        """Return every index once, in batches, shortest prompts first."""
        return [indices.tolist() for indices in batches_by_length(self.inputs.token_ids, batch_size)]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return one batch: the network's inputs by name, and the targets."""
        inputs = zip(INPUT_NAMES, self.inputs.batch(indices, self.pad_token_id), strict=True)
        return {**{name: torch.from_numpy(array) for name, array in inputs}, **self.targets(indices)}


@dataclass(frozen=True, slots=True)
class PooledPrompts:
    """P prompts as the heads take them: pooled states [P, 2 W], features [P, F + V], and the encoded prompts."""

    pooled: Tensor
    features: Tensor
    prompts: EncodedPrompts

    def __len__(self) -> int:
        return len(self.prompts)

    def shuffled(self, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
        """Return every index once, in random batches."""
        size = len(self)
        return [rows.tolist() for rows in np.array_split(rng.permutation(size), max(1, -(-size // batch_size)))]

    def in_order(self, batch_size: int) -> list[list[int]]:
        """Return every index once, in batches."""
        return [list(range(start, min(start + batch_size, len(self)))) for start in range(0, len(self), batch_size)]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return one batch: `pooled`, `features` and the targets."""
        rows = list(indices)
        return {"pooled": self.pooled[rows], "features": self.features[rows], **self.prompts.targets(indices)}


TrainingPrompts = EncodedPrompts | PooledPrompts


def encode_table(table: PromptTable, inputs: PromptInputs, bins: LengthBins, pad_token_id: int = 0) -> EncodedPrompts:
    """Return the prompts of `table`, read as `inputs`, with the hazard counts of their draws on `bins`."""
    shape = (*table.places.shape, bins.num_bins)
    events, at_risk = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    num_draws = max(map(len, table.records.output_lens), default=0)
    output_lens = np.full((*table.places.shape, num_draws), np.nan, dtype=np.float32)
    for number, _, rows, records in table.columns():
        events[rows, number], at_risk[rows, number] = hazard_counts(bins, records.output_lens, records.is_truncated)
        for row, draws in zip(rows, records.output_lens, strict=True):
            output_lens[row, number, : len(draws)] = np.minimum(draws, bins.max_length)
    weights = (table.places >= 0).astype(np.float32)
    return EncodedPrompts(inputs, events, at_risk, weights, output_lens, pad_token_id)


class _Indices(Dataset[int]):
    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> int:
        return index


class LengthDataModule(lightning.LightningDataModule):
    """Training batches drawn anew each epoch from (seed, epoch) alone, so that a resumed run sees the same ones."""

    def __init__(self, train: TrainingPrompts, validation: TrainingPrompts, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self._train, self._validation = train, validation
        self._batch_size, self._seed = batch_size, seed

    def train_dataloader(self) -> DataLoader[int]:
        """Return this epoch's batches; under DDP each process gets its own share of them."""
        trainer = self.trainer
        rank, world_size, epoch = (
            (trainer.global_rank, trainer.world_size, trainer.current_epoch) if trainer else (0, 1, 0)
        )
        rng = np.random.default_rng([self._seed, epoch])
        # Where one batch would hold nearly all prompts, it is smaller, so that no process is left without.
        batches = self._train.shuffled(min(self._batch_size, max(1, len(self._train) // world_size)), rng)
        even = len(batches) - len(batches) % world_size
        return self._loader(self._train, batches[rank:even:world_size])

    def val_dataloader(self) -> DataLoader[int]:
        """Return all validation prompts."""
        return self._loader(self._validation, self._validation.in_order(self._batch_size))

    def _loader(self, prompts: TrainingPrompts, batches: list[list[int]]) -> DataLoader[int]:
        return DataLoader(_Indices(len(prompts)), batch_sampler=batches, collate_fn=prompts.batch)


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
