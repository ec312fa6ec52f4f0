"""States of running requests in an engine that drives itself: only its scheduler is asked, between forward passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.integrations.transformers_states import Chunk, StateReader
from scheduler.renewals import RenewalSource
from scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Renewing:
    """How the forecasts of the requests of an engine are renewed; a request goes by its index in the policy.

    Attributes:
        make_states: Returns what reads the states in the engine with this cache; InputError for one of another model.
        make_source: Returns what renews, given that and a function from an index to the request as it was predicted.
    """

    make_states: Callable[[Any], StateReader]
    make_source: Callable[[StateReader, Callable[[int], Request]], RenewalSource]


class BatchStates:
    """Keeps what each forward pass read: the engine says nothing after a pass, so it is noted before the next one."""

    def __init__(self, reader: StateReader) -> None:
        """Start with no pass under way."""
        self.reader = reader
        self._under_way: list[Chunk] = []

    def expect(self, chunks: Sequence[Chunk]) -> None:
        """Take note of what the pass that comes now reads, in its order."""
        self._under_way = list(chunks)

    def note(self) -> None:
        """Keep what the last pass read, once."""
        if self._under_way:
            self.reader.note(self._under_way)
            self._under_way = []

    def forget(self, request_id: str) -> None:
        """Let go of a request that ended or was evicted, also where its pass has not been noted yet."""
        self.reader.forget(request_id)
        self._under_way = [
            chunk._replace(request_id=None) if chunk.request_id == request_id else chunk for chunk in self._under_way
        ]

    def clear(self) -> None:
        """Forget everything; the hook stays, since a CUDA graph may have its buffer."""
        self._under_way = []
        self.reader.clear()
