"""Clusters of near-duplicate prompts, by MinHash signatures in flat arrays: a million prompts take under a gigabyte."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from predictor.bounds.bins import IntArray
from predictor.progress import progress_bar, tracked
from predictor.splits.shingles import CodeArray, jaccard, mixed, normalised, shingles

# Two prompts meet where one band agrees: at similarity s with probability 1 - (1 - s^ROWS)^BANDS, so of pairs at 0.8
# one in 20,000 is missed, of pairs at 0.9 one in a billion.
BANDS, ROWS = 25, 5
NUM_HASHES = BANDS * ROWS
MAX_NEIGHBOURS = 64
MAX_COMPARISONS = 5_000_000

_CHUNK_SHINGLES = 1 << 18
_CHUNK_PAIRS = 1 << 14

FloatArray = npt.NDArray[np.float64]
Signatures = npt.NDArray[np.uint32]


def near_duplicate_clusters(
    prompts: Sequence[str], threshold: float = 0.8, seed: int = 0, *, shown: bool = False
) -> IntArray:
    """Return a cluster number for each prompt, shape [N]; a Jaccard similarity >= `threshold` links two prompts.

    Candidate pairs share a band of their MinHash signatures (Broder 1997) and are checked on the exact shingle sets.
    Where more than MAX_NEIGHBOURS agree, as prompts made from one template do, the estimate decides, set low; where
    thousands of unlike prompts agree they are joined whole. Both put too much into a cluster rather than too little.
    """
    first_of: dict[bytes, int] = {}
    place = np.empty(len(prompts), dtype=np.int64)
    distinct: list[str] = []
    for index, prompt in enumerate(tracked(prompts, "normalise", "prompt", len(prompts), shown=shown)):
        digest = blake2b(normalised(prompt).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        place[index] = first_of.setdefault(digest, len(distinct))
        if place[index] == len(distinct):
            distinct.append(prompt)
    links = _Links(distinct, minhash_signatures(distinct, seed, shown=shown), threshold)
    for band in tracked(range(BANDS), "cluster", "band", BANDS, shown=shown):
        links.add_band(band)
    roots = links.roots(np.arange(len(distinct)))
    return np.unique(roots[place], return_inverse=True)[1].astype(np.int64)


def minhash_signatures(prompts: Sequence[str], seed: int, *, shown: bool = False) -> Signatures:
    """Return MinHash signatures [N, NUM_HASHES]; the share of equal entries of two estimates their similarity."""
    rng = np.random.default_rng(seed)
    factors, shifts = rng.integers(0, 1 << 32, (2, NUM_HASHES), dtype=np.uint32)
    signatures = np.empty((len(prompts), NUM_HASHES), dtype=np.uint32)
    waiting: list[CodeArray] = []
    done = num_waiting = 0
    with progress_bar("sketch", "prompt", len(prompts), shown=shown) as progress:
        for index, prompt in enumerate(prompts):
            waiting.append(shingles(prompt))
            num_waiting += len(waiting[-1])
            if num_waiting >= _CHUNK_SHINGLES or index == len(prompts) - 1:
                signatures[done : index + 1] = _minima(waiting, factors | np.uint32(1), shifts)
                progress.update(index + 1 - done)
                done, num_waiting, waiting = index + 1, 0, []
    return signatures


def _minima(sets: Sequence[CodeArray], factors: Signatures, shifts: Signatures) -> Signatures:
    starts = np.cumsum([0, *map(len, sets)])[:-1]
    codes = (np.concatenate(sets) >> np.uint64(32)).astype(np.uint32)
    columns = [
        np.minimum.reduceat(codes * factor + shift, starts) for factor, shift in zip(factors, shifts, strict=True)
    ]
    return np.stack(columns, axis=1)


class _Links:
    """A union-find forest over prompts, joined where a band agrees and the shingle sets confirm it."""

    def __init__(self, prompts: Sequence[str], signatures: Signatures, threshold: float) -> None:
        self._signatures, self._threshold = signatures, threshold
        self._parents = np.arange(len(prompts))
        self._deviation = np.sqrt(threshold * (1 - threshold) / NUM_HASHES)  # of an estimate
        self._shingles = lru_cache(4096)(lambda index: shingles(prompts[index]))

    def roots(self, indices: IntArray) -> IntArray:
        """Return the root of each index; two are in one cluster where their roots agree."""
        roots = self._parents[indices]
        while np.any(roots != (above := self._parents[roots])):
            roots = above
        self._parents[indices] = roots
        return np.asarray(roots)

    def add_band(self, band: int) -> None:
        """Join what agrees in the hashes of one band."""
        keys = np.zeros(len(self._signatures), dtype=np.uint64)
        for column in range(band * ROWS, (band + 1) * ROWS):
            keys = mixed(keys + self._signatures[:, column])
        order = np.argsort(keys, kind="stable")
        bounds = np.flatnonzero(np.diff(keys[order])) + 1
        starts, ends = np.concatenate([[0], bounds]), np.concatenate([bounds, [len(order)]])
        end_of = np.repeat(ends, ends - starts)
        is_small = np.repeat(ends - starts <= MAX_NEIGHBOURS, ends - starts)
        active = np.flatnonzero(is_small)
        for step in range(1, MAX_NEIGHBOURS):
            active = active[active + step < end_of[active]]
            self._check(order[active], order[active + step])
        for group in np.flatnonzero(ends - starts > MAX_NEIGHBOURS):
            self._add_group(order[starts[group] : ends[group]])

    def _add_group(self, members: IntArray) -> None:
        """Join a large group on the estimates alone, a standard deviation lower, and beyond MAX_COMPARISONS whole."""
        self._join_alike(members[0], members[1:])
        roots = self.roots(members)
        values, counts = np.unique(roots, return_counts=True)
        num_comparisons = 0
        # Of two members in different clusters, one at least is outside the largest.
        for member in members[roots != values[counts.argmax()]]:
            others = members[self.roots(members) != self._root(int(member))]
            num_comparisons += len(others)
            if num_comparisons > MAX_COMPARISONS:
                self._parents[self.roots(members)] = self.roots(members).min()
                return
            self._join_alike(member, others)

    def _join_alike(self, member: int, others: IntArray) -> None:
        alike = self._estimates(others, np.asarray([member])) >= self._threshold - self._deviation
        roots = self.roots(np.append(others[alike], member))
        self._parents[roots] = roots.min()

    def _check(self, left: IntArray, right: IntArray) -> None:
        """Join the pairs whose sets are as similar as the threshold asks."""
        for start in range(0, len(left), _CHUNK_PAIRS):
            i, j = left[start : start + _CHUNK_PAIRS], right[start : start + _CHUNK_PAIRS]
            apart = self.roots(i) != self.roots(j)
            i, j = i[apart], j[apart]
            likely = self._estimates(i, j) >= self._threshold - 4 * self._deviation
            for one, other in zip(i[likely].tolist(), j[likely].tolist(), strict=True):
                a, b = self._root(one), self._root(other)
                if a != b and jaccard(self._shingles(one), self._shingles(other)) >= self._threshold:
                    self._parents[max(a, b)] = min(a, b)

    def _estimates(self, left: IntArray, right: IntArray) -> FloatArray:
        equal = self._signatures[left] == self._signatures[right]
        return np.asarray(np.count_nonzero(equal, axis=1) / NUM_HASHES)

    def _root(self, index: int) -> int:
        while self._parents[index] != index:
            index = int(self._parents[index])
        return index
