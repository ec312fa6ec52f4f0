"""An independent count of near-duplicate pairs that cross splits: an exact set-similarity join, without MinHash.

Prefix filter (Chaudhuri et al. 2006; Bayardo et al. 2007): order the shingles of every set from rare to common, by one
order for all. Two sets of Jaccard similarity >= t then share one of their first |x| - ceil(t |x|) + 1 shingles.
Nothing is missed, so a zero is a proof and not an estimate; shingles and similarities are computed anew on strings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from predictor.bounds.bins import IntArray
from predictor.progress import progress_bar, tracked
from predictor.splits.shingles import SHINGLE_LENGTH, normalised

NUM_BUCKETS = 1 << 22
SKETCH_BITS = 1024
_CHUNK_PAIRS = 1 << 20

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Nodes:
    """M distinct (text, split) combinations: a prompt's index and the split's number."""

    index: IntArray
    split: IntArray


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """The first shingles of every node, flat: `tokens` and `nodes` [P]; the set `sizes` [M] and `sketches` [M, 128]."""

    tokens: IntArray
    nodes: IntArray
    sizes: IntArray
    sketches: _Bytes


def count_crossing_pairs(
    prompts: Sequence[str], splits: Sequence[str], threshold: float = 0.9, *, shown: bool = False
) -> int:
    """Return how many pairs of prompts in different splits have shingle sets of Jaccard similarity >= `threshold`.

    A prompt counts once in a split, however many served models answered it.
    """
    if not prompts:
        return 0
    nodes = _distinct(prompts, splits, shown=shown)
    prefixes = _prefixes(prompts, nodes, threshold, shown=shown)
    found: set[tuple[int, int]] = set()
    for left, right in _candidates(prefixes, nodes.split, shown=shown):
        for i, j in _possible(prefixes, left, right, threshold):
            if (i, j) not in found and _similarity(prompts[nodes.index[i]], prompts[nodes.index[j]]) >= threshold:
                found.add((i, j))
    return len(found)


def shingle_set(prompt: str) -> frozenset[str]:
    """Return the character 5-grams of a prompt as strings; one of fewer characters is its own."""
    text = normalised(prompt)
    last = max(len(text) - SHINGLE_LENGTH, 0)
    return frozenset(text[start : start + SHINGLE_LENGTH] for start in range(last + 1))


def _similarity(left: str, right: str) -> float:
    one, other = shingle_set(left), shingle_set(right)
    return len(one & other) / len(one | other)


def _distinct(prompts: Sequence[str], splits: Sequence[str], *, shown: bool) -> _Nodes:
    place: dict[tuple[int, str], int] = {}
    index: list[int] = []
    names = {name: number for number, name in enumerate(sorted(set(splits)))}
    pairs = tracked(zip(prompts, splits, strict=True), "audit", "prompt", len(prompts), shown=shown)
    for position, (prompt, split) in enumerate(pairs):
        if place.setdefault((hash(normalised(prompt)), split), position) == position:
            index.append(position)
    numbers = np.asarray([names[splits[position]] for position in index], dtype=np.int64)
    return _Nodes(np.asarray(index, dtype=np.int64), numbers)


def _hashes(prompt: str) -> IntArray:
    return np.asarray(list({hash(shingle) for shingle in shingle_set(prompt)}), dtype=np.int64)


def _prefixes(prompts: Sequence[str], nodes: _Nodes, threshold: float, *, shown: bool) -> _Prefixes:
    frequency = np.zeros(NUM_BUCKETS, dtype=np.int64)
    sizes = np.zeros(len(nodes.index), dtype=np.int64)
    sketches = np.zeros((len(nodes.index), SKETCH_BITS // 8), dtype=np.uint8)
    tokens: list[IntArray] = []
    for index in tracked(nodes.index.tolist(), "audit", "prompt", len(sizes), shown=shown):
        np.add.at(frequency, _hashes(prompts[index]) % NUM_BUCKETS, 1)
    for node, index in enumerate(tracked(nodes.index.tolist(), "audit", "prompt", len(sizes), shown=shown)):
        hashes = _hashes(prompts[index])
        sizes[node] = len(hashes)
        bits = np.bincount(hashes % SKETCH_BITS, minlength=SKETCH_BITS) & 1
        sketches[node] = np.packbits(bits.astype(np.uint8))
        order = np.lexsort((hashes, frequency[hashes % NUM_BUCKETS]))
        tokens.append(hashes[order[: len(hashes) - ceil(threshold * len(hashes) - 1e-9) + 1]])
    owners = np.repeat(np.arange(len(tokens)), [len(prefix) for prefix in tokens])
    return _Prefixes(np.concatenate(tokens), owners, sizes, sketches)


def _candidates(prefixes: _Prefixes, split: IntArray, *, shown: bool) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield pairs of nodes of different splits that share a shingle of their prefixes, in chunks; pairs may repeat."""
    order = np.lexsort((split[prefixes.nodes], prefixes.tokens))
    tokens, nodes = prefixes.tokens[order], prefixes.nodes[order]
    is_new_token = np.diff(tokens) != 0
    group_end = _run_ends(is_new_token)
    block_end = _run_ends(is_new_token | (np.diff(split[nodes]) != 0))
    num_partners = group_end - block_end
    done = np.cumsum(num_partners)
    start = 0
    with progress_bar("audit", "pair", int(done[-1]), shown=shown) as progress:
        while start < len(nodes):
            before = int(done[start - 1]) if start else 0
            stop = max(int(np.searchsorted(done, before + _CHUNK_PAIRS, side="right")), start + 1)
            lefts = np.repeat(np.arange(start, stop), num_partners[start:stop])
            first = done[start:stop] - num_partners[start:stop] - before
            step = np.arange(len(lefts)) - np.repeat(first, num_partners[start:stop])
            yield nodes[lefts], nodes[block_end[lefts] + step]
            progress.update(len(lefts))
            start = stop


def _run_ends(is_new: npt.NDArray[np.bool_]) -> IntArray:
    """Return for each of P places the end of its run; `is_new` [P - 1] says where the next place starts another."""
    ends = np.append(np.flatnonzero(is_new) + 1, len(is_new) + 1)
    return np.repeat(ends, np.diff(ends, prepend=0))


def _possible(prefixes: _Prefixes, left: IntArray, right: IntArray, threshold: float) -> list[tuple[int, int]]:
    """Return the pairs, each once, that sizes and sketches do not rule out.

    A bit of a sketch is the parity of the shingles that fall on it, so two sketches differ in at most as many bits as
    the sets in members; a similarity of at least t allows (1 - t) / (1 + t) of their total size.
    """
    one, other = prefixes.sizes[left], prefixes.sizes[right]
    fits = np.minimum(one, other) >= threshold * np.maximum(one, other) - 1e-9
    pairs = np.unique(np.minimum(left, right)[fits] * len(prefixes.sizes) + np.maximum(left, right)[fits])
    left, right = np.divmod(pairs, len(prefixes.sizes))
    allowed = (prefixes.sizes[left] + prefixes.sizes[right]) * (1 - threshold) / (1 + threshold) + 1e-9
    kept: list[tuple[int, int]] = []
    for start in range(0, len(pairs), _CHUNK_PAIRS // 8):
        part = slice(start, start + _CHUNK_PAIRS // 8)
        differing = prefixes.sketches[left[part]] ^ prefixes.sketches[right[part]]
        near = np.bitwise_count(differing).sum(axis=1, dtype=np.int64) <= allowed[part]
        kept.extend(zip(left[part][near].tolist(), right[part][near].tolist(), strict=True))
    return kept
