"""A policy for an engine that carries its decisions out in its own time."""

from collections.abc import Callable, Iterator

from scheduler.batch import RunningBatch
from scheduler.policy import Policy, Status
from scheduler.renewals import NoRenewals, RenewalSource
from scheduler.request import Request


class PolicyRunner:
    """Runs a policy for an engine: keeps the batch that it is shown in step with what the engine did."""

    def __init__(self, policy: Policy) -> None:
        """Start empty; `policy` is new, on a worker that resumes evicted requests."""
        self.policy, self.running = policy, RunningBatch(policy.worker.kv_cache)
        self.renewals: RenewalSource = NoRenewals()
        """Forecasts that replace the first ones while requests run; set by the engine that can read them."""
        self.num_evictions = 0
        self.num_outside_blocks = 0
        """Blocks in use that the policy's requests do not hold; set by the engine that knows of them."""
        self._indices: dict[str, int] = {}
        self._requests: dict[int, Request] = {}
        self._kept_tokens: dict[int, int] = {}
        self._num_added = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._indices

    def __len__(self) -> int:
        """Return how many requests the policy knows."""
        return len(self._requests)

    def request_ids(self) -> Iterator[str]:
        """Yield what has been added and has not ended."""
        return iter(self._indices)

    def running_ids(self) -> Iterator[str]:
        """Yield what the policy counts as running, first admitted first."""
        return (self._requests[index].request_id for index in self.running)

    def index(self, request_id: str) -> int:
        """Return the index by which the policy knows a request; no other request gets the same."""
        return self._indices[request_id]

    def request(self, index: int) -> Request:
        """Return a request as it was added."""
        return self._requests[index]

    @property
    def num_blocks_in_use(self) -> int:
        """Blocks that the policy's running requests hold now, as it counts them."""
        return self.running.current_blocks - self.running.common_blocks + self.policy.waiting.prefixes.num_held

    def add(self, request: Request) -> None:
        """Tell the policy of an arrival."""
        index, self._num_added = self._num_added, self._num_added + 1
        self._indices[request.request_id], self._requests[index] = index, request
        self.policy.add(index, request)

    def follow(self, num_generated: Callable[[str], int]) -> list[str]:
        """Let an engine's iteration pass and return the requests to evict, in order.

        It gives each request as many tokens as `num_generated` says, from none on; those that got none are stalled.
        Speculative decoding gives several: to the policy, as many iterations pass as the most that one got.
        """
        requests, running = self._requests, self.running
        gained = {i: num_generated(requests[i].request_id) - running.num_generated(i) for i in running}
        evicted: list[str] = []
        for step in range(1, max(1, *gained.values(), 1) + 1):
            if step > 1:
                evicted += self.decide()
            running.advance(1, [index for index in running if gained.get(index, 0) < step])
        return evicted

    def decide(self) -> list[str]:
        """Ask the policy, take its decision as carried out, and return the requests to evict, in order."""
        if not self._requests:
            return []
        for index, renewal in self.renewals.take(self.running):
            self.policy.renew(index, renewal)
        prefixes, size = self.policy.waiting.prefixes, self.policy.worker.kv_cache.block_size
        self.running.hold_common(prefixes.num_held + self.num_outside_blocks)
        decision = self.policy.schedule(self.running)
        for index in decision.preempt:
            self._kept_tokens[index] = self.running.num_generated(index)
            self.running.remove(index)
        for index in decision.admit:
            shared = size * prefixes.num_taken(index)
            own_tokens = self._requests[index].num_prompt_tokens - shared
            self.running.append(index, own_tokens, self._kept_tokens.pop(index, 0), shared)
            self.renewals.start(index, self.running)
        self.running.hold_common(prefixes.num_held + self.num_outside_blocks)
        self.running.stalled = ()
        self.num_evictions += len(decision.preempt)
        return [self._requests[index].request_id for index in decision.preempt]

    def end(self, request_id: str, status: Status, num_generated: int) -> None:
        """Let go of a request, as `Policy.end`.

        One that the policy has waiting can have ended too: its last token was in flight when it was evicted.
        """
        index = self._indices.pop(request_id)
        is_running = index in self.running
        if is_running:
            self.running.remove(index)
        del self._requests[index]
        self._kept_tokens.pop(index, None)
        self.policy.end(index, status, num_generated, is_running=is_running)
        self.running.hold_common(self.policy.waiting.prefixes.num_held + self.num_outside_blocks)
