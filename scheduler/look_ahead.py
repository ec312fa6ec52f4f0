"""Prompts that are read ahead, while their requests wait, for what the served model's state then tells."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence

from scheduler.errors import InputError
from scheduler.renewals import Renewal


class PromptReader(ABC):
    """Finds out what the served model's state at the end of a prompt tells."""

    @abstractmethod
    def can_read(self, index: int) -> bool:
        """Return whether the state of this request would tell anything."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Sequence[tuple[int, Renewal]]:
        """Return what the states of these requests tell, each after 0 tokens, in their order; some may tell nothing."""


class KnownStates(PromptReader):
    """States whose tale is known beforehand, as a workload file has it."""

    def __init__(self, renewals: Mapping[int, Sequence[Renewal]]) -> None:
        """Take renewals by request; the first one, if it is after 0 tokens, is what its prompt's last state tells."""
        self._told = {index: each[0] for index, each in renewals.items() if each and each[0].num_generated == 0}

    def can_read(self, index: int) -> bool:
        """Return whether the request has a renewal after 0 tokens."""
        return index in self._told

    def read(self, indices: Sequence[int]) -> Sequence[tuple[int, Renewal]]:
        """Return these renewals."""
        return [(index, self._told[index]) for index in indices]


class LookAhead:
    """Reads prompts in order of arrival, some tokens an iteration; nothing that is read stays in memory.

    A request that is admitted before its prompt has been read is read no further: its own prefill tells the same.
    """

    def __init__(self, tokens: int, reader: PromptReader) -> None:
        """Start with nothing to read.

        Args:
            tokens: Most prompt tokens that are read ahead in an iteration.
            reader: Is asked for a prompt in the iteration in which its last token is read.

        Raises:
            InputError: `tokens` is below 1.
        """
        if tokens < 1:
            raise InputError(f"look_ahead is {tokens} tokens, must be >= 1")
        self._tokens = tokens
        self._reader = reader
        self._left: dict[int, int] = {}  # prompt tokens that are still to be read
        self._queue: deque[int] = deque()  # also those that were dropped
        self._found: list[tuple[int, Renewal]] = []

    @property
    def is_reading(self) -> bool:
        """Whether prompts are left to be read, or have been since the last `take`."""
        return bool(self._left or self._found)

    def add(self, index: int, num_prompt_tokens: int) -> None:
        """Queue a request that has arrived, if its state tells anything."""
        if self._reader.can_read(index):
            self._left[index] = num_prompt_tokens
            self._queue.append(index)

    def drop(self, index: int) -> None:
        """Let go of a request that is admitted."""
        self._left.pop(index, None)

    def read(self, spare: float) -> int:
        """Return how many tokens are read in this iteration, in which `spare` more have room."""
        room = int(min(spare, self._tokens))
        at_first = room
        complete = []
        while self._queue:
            index = self._queue[0]
            left = self._left.get(index)
            if left is not None:
                chunk = min(left, room)
                room -= chunk
                if chunk < left:
                    self._left[index] = left - chunk
                    break
                del self._left[index]
                complete.append(index)
            self._queue.popleft()
        if complete:
            self._found += self._reader.read(complete)
        return at_first - room

    def take(self) -> Sequence[tuple[int, Renewal]]:
        """Return what has been found out since the last call, in the order of reading."""
        found, self._found = self._found, []
        return found
