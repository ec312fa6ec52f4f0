"""The running requests, as columns in order of admission."""

from collections.abc import Sequence

import numpy as np

from scheduler.kv_cache import Ints


class RunningBatch:
    """Columns of the running requests, oldest admission first. The loop writes; a policy only reads.

    A request is named by its index, a small integer given at submission. A row is its place in this batch.
    """

    def __init__(self) -> None:
        self._columns = np.zeros((3, 64), dtype=np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def indices(self) -> Ints:
        """Request indices, shape [n]."""
        return self._columns[0, : self._size]

    @property
    def num_tokens(self) -> Ints:
        """Tokens that each request holds in the KV cache: prompt and generated, shape [n]."""
        return self._columns[1, : self._size]

    @property
    def num_generated(self) -> Ints:
        """Tokens that each request has generated, shape [n]."""
        return self._columns[2, : self._size]

    def append(self, index: int, num_prompt_tokens: int, num_generated: int) -> None:
        """Add a request as the last admitted."""
        if self._size == self._columns.shape[1]:
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)], axis=1)
        self._columns[:, self._size] = index, num_prompt_tokens + num_generated, num_generated
        self._size += 1

    def remove(self, rows: Sequence[int] | Ints) -> None:
        """Take out `rows`; the others keep their order."""
        if len(rows) == 0:
            return
        keep = np.ones(self._size, dtype=bool)
        keep[rows] = False
        size = int(keep.sum())
        self._columns[:, :size] = self._columns[:, : self._size][:, keep]
        self._size = size

    def advance(self, produced: Ints) -> None:
        """Add `produced` tokens to each request, shape [n]."""
        self._columns[1:, : self._size] += produced
