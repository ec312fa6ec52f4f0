"""Prompts as the network takes them, read, cut and padded in one way for training, evaluation and serving."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.errors import InputError
from predictor.prompts.features import FloatMatrix
from predictor.prompts.request_features import FEATURE_NAMES, Contexts, request_features
from predictor.prompts.terms import TermWeights, weigh_terms

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of the network and of the exported graph, in the order of `PromptInputs.batch`.
INPUT_NAMES = ("input_ids", "attention_mask", "features")


def load_tokenizer(path: Path) -> "Tokenizer":
    """Return the tokenizer of a `tokenizer.json`, without the truncation and padding that the file may carry.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError(f"{path}: no such file; a predictor needs its tokenizer.json next to it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:  # the library raises nothing narrower than Exception, and panics besides
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: no tokenizer that can be read ({reason}); copy or train the predictor again"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def keep_head_and_tail(token_ids: Sequence[int], max_tokens: int) -> list[int]:
    """Return at most `max_tokens` ids: the first half and the last, since an instruction stands at either end."""
    if len(token_ids) <= max_tokens:
        return list(token_ids)
    tail = max_tokens // 2
    return [*token_ids[: max_tokens - tail], *token_ids[len(token_ids) - tail :]]


@dataclass(frozen=True, slots=True)
class PromptInputs:
    """N prompts as the network takes them: token ids (cut), features [N, F], and the terms of each, of V."""

    token_ids: list[list[int]]
    features: FloatMatrix
    terms: list[TermWeights]
    num_terms: int

    def __len__(self) -> int:
        return len(self.token_ids)

    def select(self, indices: Sequence[int] | IntArray) -> "PromptInputs":
        """Return the prompts at `indices`, in that order."""
        rows = [int(i) for i in indices]
        token_ids, terms = [self.token_ids[i] for i in rows], [self.terms[i] for i in rows]
        return PromptInputs(token_ids, self.features[rows], terms, self.num_terms)

    def batch(self, indices: Sequence[int] | IntArray, pad_token_id: int) -> tuple[IntArray, IntArray, FloatMatrix]:
        """Return `input_ids`, `attention_mask` [B, T] and `features` [B, F + V]: features, then term weights."""
        input_ids, attention_mask = pad([self.token_ids[i] for i in indices], pad_token_id)
        weights = np.zeros((len(indices), self.num_terms), dtype=np.float32)
        for row, index in enumerate(indices):
            places, values = self.terms[index]
            weights[row, places] = values
        return input_ids, attention_mask, np.hstack([self.features[np.asarray(indices)], weights])


def encode_prompts(
    tokenizer: "Tokenizer",
    prompts: Sequence[str],
    max_tokens: int,
    terms: Sequence[int] | IntArray,
    contexts: Contexts = None,
    num_features: int = len(FEATURE_NAMES),
) -> PromptInputs:
    """Return the prompts as token ids, special ones included and at most `max_tokens` each, with features and terms.

    `terms` are the known ones, in increasing order; an array of them saves the time of making one. `contexts` are what
    the requests say apart from their prompts.

    Raises:
        InputError: `prompts` are not a sequence of strings, there are not as many contexts, or the tokenizer cannot
            read one of them.
    """
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("prompts: must be a sequence of strings")
    full = token_ids_of(tokenizer, prompts)
    known = np.asarray(terms, dtype=np.int64)
    return PromptInputs(
        [keep_head_and_tail(ids, max_tokens) for ids in full],
        request_features(prompts, [len(ids) for ids in full], contexts, num_features),
        [weigh_terms(ids, known) for ids in full],
        len(known),
    )


def token_ids_of(tokenizer: "Tokenizer", prompts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
    """Return the token ids of each text; InputError for one at which the tokenizer's Rust code panics."""
    try:
        found = tokenizer.encode_batch_fast(list(prompts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in found]
    except BaseException as error:
        if not is_panic(error):
            raise
        if len(prompts) > 1:
            special = add_special_tokens
            return [ids for one in prompts for ids in token_ids_of(tokenizer, [one], add_special_tokens=special)]
        # A log may show this line, and no log shows prompts.
        raise InputError(
            f"a prompt of {len(prompts[0])} characters: the tokenizer cannot read it ({error}); leave it out"
        ) from None


def is_panic(error: BaseException) -> bool:
    """Return whether Rust code panicked: that is no Exception, and would end a thread that predicts."""
    return type(error).__name__ == "PanicException"


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
