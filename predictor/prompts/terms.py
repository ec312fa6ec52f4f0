"""Terms of a prompt: the tokens of the encoder's vocabulary and their pairs, counted over the whole prompt."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.prompts.features import FloatMatrix

# A pair of tokens (a, b) is the term (a + 1) * PAIR + b; a single token is its own id.
PAIR = 1 << 32

TermWeights = tuple[IntArray, FloatMatrix]


def prompt_terms(token_ids: Sequence[int]) -> IntArray:
    """Return the terms of a prompt from its uncut token ids, whose first and last are special; repeats stay."""
    ids = np.asarray(token_ids[1:-1], dtype=np.int64)
    return np.concatenate([ids, (ids[:-1] + 1) * PAIR + ids[1:]])


def choose_terms(token_ids: Sequence[Sequence[int]], max_terms: int) -> tuple[int, ...]:
    """Return, in increasing order, the `max_terms` terms that stand in most prompts, each in at least two."""
    counts: Counter[int] = Counter()
    for ids in token_ids:
        counts.update(np.unique(prompt_terms(ids)).tolist())
    often = [(-count, term) for term, count in counts.items() if count >= 2]
    return tuple(sorted(term for _, term in sorted(often)[:max_terms]))


def weigh_terms(token_ids: Sequence[int], terms: IntArray) -> TermWeights:
    """Return the places in `terms` (sorted) of those in a prompt, and for each 1 + log(count)."""
    found, counts = np.unique(prompt_terms(token_ids), return_counts=True)
    if not len(terms):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    places = np.minimum(np.searchsorted(terms, found), len(terms) - 1)
    known = terms[places] == found
    return places[known].astype(np.int64), (1.0 + np.log(counts[known])).astype(np.float32)
