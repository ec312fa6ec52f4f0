"""Prompts as token ids, cut and padded in one way for training, evaluation and serving."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from predictor.bins import IntArray
from predictor.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(path: Path) -> "Tokenizer":
    """Return the tokenizer of a `tokenizer.json`, without the truncation and padding that the file may carry."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError(f"{path}: no such file; a predictor needs its tokenizer.json beside it")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def keep_head_and_tail(token_ids: Sequence[int], max_tokens: int) -> list[int]:
    """Return at most `max_tokens` ids: the first half and the last, since an instruction stands at either end."""
    if len(token_ids) <= max_tokens:
        return list(token_ids)
    tail = max_tokens // 2
    return [*token_ids[: max_tokens - tail], *token_ids[len(token_ids) - tail :]]


def encode_prompts(tokenizer: "Tokenizer", prompts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Return the token ids of each prompt, special tokens included, at most `max_tokens` each."""
    encodings = tokenizer.encode_batch_fast(list(prompts))
    return [keep_head_and_tail(encoding.ids, max_tokens) for encoding in encodings]


def pad(token_ids: Sequence[Sequence[int]], pad_token_id: int) -> tuple[IntArray, IntArray]:
    """Return `input_ids` and `attention_mask`, both [B, T], T the longest of the batch."""
    width = max(len(ids) for ids in token_ids)
    input_ids = np.full((len(token_ids), width), pad_token_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask


def batches_by_length(token_ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[IntArray]:
    """Yield the indices of batches of similar length, so that little is padded."""
    order = np.argsort([len(ids) for ids in token_ids], kind="stable").astype(np.int64)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
