"""Which LoRA adapters may run: vLLM holds so many at once (`--max-loras`) and passes over a request for another one."""

from collections import Counter
from collections.abc import Collection
from typing import Any

from scheduler.request import Request


class Adapters:
    """Keeps back requests whose adapter has no room.

    An adapter is in use while a request that was let through waits or runs. Those for another one are kept here, where
    the policy does not know of them: to it they would be running ones that hold memory and get no token.
    """

    def __init__(self, max_loras: int | None) -> None:
        """Start with no adapter in use; `max_loras` is None where vLLM serves none."""
        self._max_loras = max_loras
        self._adapters: dict[str, int] = {}
        self._num_requests: Counter[int] = Counter()
        self._kept_back: dict[int, dict[str, Request]] = {}

    def let_through(self, vllm_request: Any, request: Request, elsewhere: Collection[Any]) -> bool:
        """Return whether a request can start as far as its adapter goes; otherwise it is kept back.

        `elsewhere` are those of vLLM's requests that never come here.
        """
        adapter = _adapter(vllm_request)
        if self._max_loras is None or not adapter:
            return True
        self._adapters[request.request_id] = adapter
        if self._has_room(adapter, elsewhere):
            self._num_requests[adapter] += 1
            return True
        self._kept_back.setdefault(adapter, {})[request.request_id] = request
        return False

    def released(self, elsewhere: Collection[Any]) -> list[Request]:
        """Return the requests that can start now: all those of each adapter that has got room.

        The adapter of the most urgent request comes first; of equally urgent ones, that of the first to arrive.
        """
        found: list[Request] = []
        while able := [adapter for adapter in self._kept_back if self._has_room(adapter, elsewhere)]:
            first = min(able, key=lambda a: min((r.priority, r.arrival_time) for r in self._kept_back[a].values()))
            requests = self._kept_back.pop(first).values()
            self._num_requests[first] += len(requests)
            found += requests
        return found

    def end(self, request_id: str) -> None:
        """Forget a request."""
        adapter = self._adapters.pop(request_id, 0)
        kept_back = self._kept_back.get(adapter, {})
        if request_id in kept_back:
            del kept_back[request_id]
            if not kept_back:
                del self._kept_back[adapter]
        elif adapter:
            self._num_requests[adapter] -= 1
            if not self._num_requests[adapter]:
                del self._num_requests[adapter]

    def clear(self) -> None:
        """Forget all requests."""
        self._adapters.clear()
        self._num_requests.clear()
        self._kept_back.clear()

    def _has_room(self, adapter: int, elsewhere: Collection[Any]) -> bool:
        others = (self._num_requests.keys() | {_adapter(request) for request in elsewhere}) - {0, adapter}
        return self._max_loras is not None and len(others) < self._max_loras


def _adapter(vllm_request: Any) -> int:
    """Return the number of a request's adapter; 0 for the model itself."""
    lora = vllm_request.lora_request
    return 0 if lora is None else int(lora.lora_int_id)
