"""Training data as Lightning takes it: tokenised prompts with hazard counts, in batches of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from predictor.bins import LengthBins
from predictor.distribution import FloatArray
from predictor.losses import hazard_counts
from predictor.prompt_tokens import batches_by_length, encode_prompts, pad
from predictor.records import Records

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Batch = dict[str, Tensor]

# Batches are cut from shuffled pools of this many, so that composition stays random and padding small.
BATCHES_PER_POOL = 16


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """N prompts ready to train on: token ids, and the hazard counts `events` and `at_risk`, both [N, K]."""

    token_ids: list[list[int]]
    events: FloatArray
    at_risk: FloatArray


def encode_records(records: Records, tokenizer: "Tokenizer", bins: LengthBins, max_tokens: int) -> EncodedPrompts:
    """Return the records as token ids, at most `max_tokens` a prompt, with their hazard counts on `bins`."""
    events, at_risk = hazard_counts(bins, records.output_lens, records.is_truncated)
    return EncodedPrompts(encode_prompts(tokenizer, records.prompts, max_tokens), events, at_risk)


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
        batches = shuffled_batches(self._train.token_ids, self._batch_size, rng)
        even = len(batches) - len(batches) % world_size
        return self._loader(self._train, batches[rank:even:world_size])

    def val_dataloader(self) -> DataLoader[int]:
        """Return all validation prompts, shortest first."""
        batches = [indices.tolist() for indices in batches_by_length(self._validation.token_ids, self._batch_size)]
        return self._loader(self._validation, batches)

    def _loader(self, prompts: EncodedPrompts, batches: list[list[int]]) -> DataLoader[int]:
        def collate(indices: Sequence[int]) -> Batch:
            return collate_prompts(prompts, indices, self._pad_token_id)

        return DataLoader(_Indices(len(prompts.token_ids)), batch_sampler=batches, collate_fn=collate)


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
    """Return one batch: `input_ids` and `attention_mask` int64 [B, T], `events` and `at_risk` float32 [B, K]."""
    rows = np.asarray(indices)
    input_ids, attention_mask = pad([prompts.token_ids[i] for i in indices], pad_token_id)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "events": torch.from_numpy(prompts.events[rows]).float(),
        "at_risk": torch.from_numpy(prompts.at_risk[rows]).float(),
    }
