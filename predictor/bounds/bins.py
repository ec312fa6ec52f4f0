"""Length bins: the grid of token counts on which a predictor states its distribution."""

from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

LEAST_MAX_LENGTH, MOST_MAX_LENGTH = 1024, 32_768


@dataclass(frozen=True, slots=True)
class LengthBins:
    """Edges 0 = e_0 < e_1 < ... < e_K in tokens; bin k (1-based) holds the lengths in (e_{k-1}, e_k].

    A length above e_K belongs to no bin: it is censored there, and its probability is the survival at the last edge.
    """

    edges: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or self.edges[0] != 0:
            raise ValueError(f"edges: must start at 0 and name at least one bin, not {self.edges[:3]}")
        if any(right <= left for left, right in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"edges: must increase strictly, not {self.edges}")

    @classmethod
    def log_spaced(cls, max_length: int, num_bins: int = 48) -> "LengthBins":
        """Return `num_bins` bins up to `max_length` tokens, log-spaced where integers allow it.

        Short lengths get one bin a token; a `max_length` below `num_bins` gets `max_length` bins.
        """
        if max_length < 1 or num_bins < 1:
            raise ValueError(f"max_length and num_bins: must be at least 1, not {max_length} and {num_bins}")
        edges = [0, 1] if max_length > 1 and num_bins > 1 else [0]
        num_bins = min(num_bins, max_length)
        while len(edges) <= num_bins:
            left, remaining = max(edges[-1], 1), num_bins + 1 - len(edges)
            step = int(left * (max_length / left) ** (1 / remaining))
            edges.append(max_length if remaining == 1 else max(left + 1, step))
        return cls(tuple(edges))

    @classmethod
    def of_lengths(cls, lengths: npt.ArrayLike, num_bins: int) -> "LengthBins":
        """Return `num_bins` bins up to a power of two that all but one in a thousand of `lengths` stay below.

        The last edge is at least `LEAST_MAX_LENGTH` and at most `MOST_MAX_LENGTH`.
        """
        longest = float(np.quantile(np.asarray(lengths), 0.999))
        power = 2 ** ceil(log2(max(longest, 1.0)))
        return cls.log_spaced(min(max(power, LEAST_MAX_LENGTH), MOST_MAX_LENGTH), num_bins)

    @property
    def num_bins(self) -> int:
        """K, the number of bins."""
        return len(self.edges) - 1

    @property
    def max_length(self) -> int:
        """The last edge, in tokens."""
        return self.edges[-1]

    def as_array(self) -> IntArray:
        """Return the edges, shape [K+1]."""
        return np.asarray(self.edges, dtype=np.int64)

    def index(self, lengths: npt.ArrayLike) -> IntArray:
        """Return the 0-based bin of each length (tokens, at least 1); K for a length above the last edge."""
        return np.searchsorted(self.as_array()[1:], np.asarray(lengths), side="left").astype(np.int64)

    def num_survived(self, lengths: npt.ArrayLike) -> IntArray:
        """Return how many bins a response has outlived that was still going after `lengths` tokens."""
        return np.searchsorted(self.as_array()[1:], np.asarray(lengths), side="right").astype(np.int64)

    def to_list(self) -> list[int]:
        """Return the edges for JSON."""
        return list(self.edges)

    @classmethod
    def from_list(cls, edges: Any) -> "LengthBins":
        """Return the bins of a JSON list; raise ValueError where it is not one of increasing integers."""
        if not isinstance(edges, list) or not all(isinstance(edge, int) for edge in edges):
            raise ValueError(f"edges: must be a list of integers, not {edges!r}")
        return cls(tuple(edges))
