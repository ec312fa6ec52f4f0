"""A policy beside an engine that carries its decisions out in its own time."""

from collections.abc import Callable, Iterable, Iterator

from scheduler.batch import RunningBatch
from scheduler.policy import Policy
from scheduler.request import Request


class Mirror:
    """A policy and the batch it is shown, kept in step with an engine that may lag behind its decisions."""

    def __init__(self, policy: Policy) -> None:
        """Start empty; `policy` is new and resumes evicted requests."""
        self.policy, self.running = policy, RunningBatch(policy.kv_cache)
        self.num_evictions = 0
        self._indices: dict[str, int] = {}
        self._requests: dict[int, Request] = {}
        self._kept_tokens: dict[int, int] = {}
        self._gone: dict[int, int] = {}  # output length of what ended while the policy has it waiting
        self._num_added = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._indices

    def __len__(self) -> int:
        """Return how many requests the policy still keeps anything of."""
        return len(self._requests)

    def request_ids(self) -> Iterator[str]:
        """Yield what has been added and not removed."""
        return iter(self._indices)

    def running_ids(self) -> Iterator[str]:
        """Yield what the policy counts as running, first admitted first."""
        return (self._requests[index].request_id for index in self.running)

    def add(self, request: Request) -> None:
        """Tell the policy of an arrival."""
        index, self._num_added = self._num_added, self._num_added + 1
        self._indices[request.request_id], self._requests[index] = index, request
        self.policy.add(index, request)

    def follow(self, num_generated: Callable[[str], int]) -> None:
        """Let an iteration pass; those that by `num_generated` got no token in it are stalled."""
        running, requests = self.running, self._requests
        stalled = [i for i in running if num_generated(requests[i].request_id) <= running.num_generated(i)]
        running.advance(1, stalled)

    def decide(self) -> list[str]:
        """Ask the policy, take its decision as carried out, and return whom to evict, in order."""
        evicted, is_settled = list[str](), False
        while self._requests and not is_settled:
            decision = self.policy.schedule(self.running)
            for index in decision.preempt:
                self._kept_tokens[index] = self.running.num_generated(index)
                self.running.remove(index)
                evicted.append(self._requests[index].request_id)
            is_settled = self._admit(decision.admit)
            self.running.stalled = ()
        self.num_evictions += len(evicted)
        return evicted

    def _admit(self, admitted: Iterable[int]) -> bool:
        """Show admitted requests as running, but let go of those that have ended; return whether there were none."""
        num_gone = len(self._gone)
        for index in admitted:
            if index in self._gone:
                self._finish(index, self._gone.pop(index))
            else:
                tokens = self._requests[index].num_prompt_tokens, self._kept_tokens.pop(index, 0)
                self.running.append(index, *tokens)
        return len(self._gone) == num_gone

    def remove(self, request_id: str, output_len: int) -> None:
        """Let go of a request that ended or was aborted.

        A policy cannot give up a waiting request. So one that ends there (an abort, or a token still in flight at the
        eviction that was the last) stays in its queue, and ends the moment it is admitted; when nothing else is left,
        at once.
        """
        index = self._indices.pop(request_id)
        if index in self.running:
            self.running.remove(index)
            self._finish(index, output_len)
        else:
            self._gone[index] = output_len
        if len(self._gone) == len(self._requests):
            self.decide()

    def _finish(self, index: int, output_len: int) -> None:
        del self._requests[index]
        self._kept_tokens.pop(index, None)
        self.policy.finish(index, output_len)
