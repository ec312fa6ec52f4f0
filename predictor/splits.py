"""Splits that no near-duplicate pair of prompts crosses."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from predictor.bins import IntArray
from predictor.records import SPLITS

SHINGLE_LENGTH = 5
NUM_PERMUTATIONS = 128
FRACTIONS = (0.6, 0.1, 0.15, 0.15)


def shingles(prompt: str) -> frozenset[int]:
    """Return the hashed character 5-grams of a prompt, case and runs of white space set aside."""
    text = normalised(prompt).encode()
    last = max(len(text) - SHINGLE_LENGTH, 0)
    return frozenset(zlib.crc32(text[start : start + SHINGLE_LENGTH]) for start in range(last + 1))


def normalised(prompt: str) -> str:
    """Return the prompt in lower case with single spaces."""
    return re.sub(r"\s+", " ", prompt.strip().lower())


def near_duplicate_clusters(prompts: Sequence[str], threshold: float = 0.8, seed: int = 0) -> IntArray:
    """Return a cluster number for each prompt, shape [N]; a Jaccard similarity >= `threshold` links two prompts.

    Candidate pairs come from MinHash LSH (Broder 1997), tuned to miss few, and are checked on the exact shingle sets.
    """
    from datasketch import MinHash, MinHashLSH

    first_of = {text: index for index, text in reversed(list(enumerate(map(normalised, prompts))))}
    parents = list(range(len(prompts)))
    sets: dict[int, frozenset[int]] = {}
    lsh = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=(0.1, 0.9))
    for text, index in sorted(first_of.items(), key=lambda item: item[1]):
        sets[index] = shingles(text)
        sketch = MinHash(num_perm=NUM_PERMUTATIONS, seed=seed + 1, hashfunc=int)
        sketch.update_batch(sorted(sets[index]))
        for other in lsh.query(sketch):
            if _jaccard(sets[index], sets[other]) >= threshold:
                _join(parents, index, other)
        lsh.insert(index, sketch)
    for index, prompt in enumerate(prompts):
        _join(parents, index, first_of[normalised(prompt)])
    roots = [_root(parents, index) for index in range(len(prompts))]
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def assign_splits(prompts: Sequence[str], seed: int, fractions: Sequence[float] = FRACTIONS) -> list[str]:
    """Return train, validation, calibration or test for each prompt; near-duplicates go together.

    Clusters are taken in random order, each to the split that lacks most, so sizes follow `fractions` closely.
    """
    if len(fractions) != len(SPLITS) or abs(sum(fractions) - 1.0) > 1e-6:
        raise ValueError(f"fractions: must be {len(SPLITS)} shares that add up to 1, not {fractions}")
    clusters = near_duplicate_clusters(prompts, seed=seed)
    sizes = np.bincount(clusters)
    lacking = np.asarray(fractions) * len(prompts)
    split_of = np.zeros(len(sizes), dtype=np.int64)
    for cluster in np.random.default_rng(seed).permutation(len(sizes)):
        split_of[cluster] = np.argmax(lacking)
        lacking[split_of[cluster]] -= sizes[cluster]
    return [SPLITS[split_of[cluster]] for cluster in clusters]


def _jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _join(parents: list[int], left: int, right: int) -> None:
    left, right = _root(parents, left), _root(parents, right)
    parents[max(left, right)] = min(left, right)
