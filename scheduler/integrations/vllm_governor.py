"""A policy in charge of vLLM's scheduler: which requests to preempt, and which waiting ones it is shown."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from vllm.v1.request import RequestStatus

from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.integrations.vllm_adapters import Adapters
from scheduler.integrations.vllm_metrics import Metrics
from scheduler.integrations.vllm_requests import BLOCKED, QUEUED
from scheduler.policy import Policy, Status
from scheduler.request import Request


class Governor:
    """Keeps a policy and vLLM in step.

    vLLM's accounting is the authority. A request is in one of three states here. *Governed*: the policy has it waiting
    or running. To the policy one that it admitted and vLLM cannot start yet is a running request that got no token, as
    one in prefill. *Blocked*: it could not start whatever the memory (its grammar is still being compiled, its
    LoRA adapter has no room), and the policy does not know of it. *Outside*: vLLM's alone; it ran before the policy
    took charge, or takes its input in pieces. What outside requests hold, the policy counts as gone.
    """

    def __init__(self, vllm: Any, policy: Policy, metrics: Metrics) -> None:
        """Wait for `take_charge`; `policy` is new, on the memory of `vllm`, vLLM's scheduler."""
        self._vllm, self._metrics = vllm, metrics
        self.runner = PolicyRunner(policy)
        self.adapters = Adapters(vllm.lora_config and vllm.lora_config.max_loras)
        self.is_in_charge = False
        self._max_running = policy.worker.max_running
        self._blocked: dict[str, Request] = {}
        self._outside: set[str] = set()
        self._to_preempt: set[str] = set()

    def take_charge(self, facts: Callable[[Any], Request]) -> None:
        """Govern what has not started, by what `facts` says of it; the rest stays outside."""
        self.is_in_charge = True
        for request in self._vllm.running:
            self._outside.add(request.request_id)
        for request in self._queued():
            name = request.request_id
            if request.num_preemptions or request.num_computed_tokens or request.resumable:
                self._outside.add(name)
            else:
                self.add(facts(request))

    def _queued(self) -> Iterator[Any]:
        yield from self._vllm.waiting
        yield from self._vllm.kv_holding_waiting

    def step_back(self) -> None:
        """Leave everything to vLLM; what the policy has learnt stays."""
        for name in list(self.runner.request_ids()):
            self.runner.end(name, Status.CANCELLED, 0)
        self.adapters.clear()
        self._blocked.clear()
        self._outside.clear()
        self._to_preempt.clear()
        self.is_in_charge = False

    def leave_to_vllm(self, request_id: str) -> None:
        """Take note of a request that is vLLM's alone."""
        self._outside.add(request_id)

    def add(self, request: Request) -> None:
        """Govern a request, as soon as it can start."""
        vllm_request = self._vllm.requests[request.request_id]
        if vllm_request.status in BLOCKED:
            self._blocked[request.request_id] = request
        elif self.adapters.let_through(vllm_request, request, self._outside_requests()):
            self.runner.add(request)

    def end(self, request_id: str, status: Status, num_generated: int) -> None:
        """Let go of a request."""
        if request_id in self.runner:
            self.runner.end(request_id, status, num_generated)
        self.adapters.end(request_id)
        self._blocked.pop(request_id, None)
        self._outside.discard(request_id)
        self._to_preempt.discard(request_id)

    def decide(self) -> list[Any]:
        """Let the policy decide, preempt what it evicts, and return the waiting requests that vLLM is to be shown."""
        evicted = self.runner.follow(self._num_generated)
        self._unblock()
        self._count_outside()
        evicted += self.runner.decide()
        self._to_preempt = self._to_preempt.difference(self.runner.running_ids()).union(evicted)
        for name in [*self._to_preempt]:
            self._preempt(name)
        return [*self._outside_and_queued(), *self._admitted_and_queued(set(evicted))]

    def _num_generated(self, request_id: str) -> int:
        """Return the tokens of a request, those included that are still in flight."""
        request = self._vllm.requests[request_id]
        count: int = request.num_output_tokens + request.num_output_placeholders
        return count

    def _unblock(self) -> None:
        for name in [*self._blocked]:
            if self._vllm._handle_blocked_waiting_request(self._vllm.requests[name]):
                self.add(self._blocked.pop(name))
        for request in self.adapters.released(self._outside_requests()):
            self.runner.add(request)

    def _count_outside(self) -> None:
        """Take from the policy what is not its to give: blocks and slots of outside requests, and what it did not see.

        A request that waits for keys and values from elsewhere holds blocks and no slot.
        """
        vllm, runner = self._vllm, self.runner
        manager = vllm.kv_cache_manager
        pool, num_groups = manager.block_pool, len(vllm.kv_cache_config.kv_cache_groups)
        in_use = (pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()) // num_groups
        held = sum(len(manager.get_block_ids(name)[0]) for name in self._outside)
        runner.num_outside_blocks = max(held, in_use - runner.num_blocks_in_use)
        slots = self._num_outside_running() + vllm.num_waiting_for_streaming_input
        if vllm.connector is not None:
            slots -= sum(request.status == RequestStatus.WAITING_FOR_REMOTE_KVS for request in self._running())
        worker = runner.policy.worker
        if self._max_running is not None and worker.max_running != max(1, self._max_running - slots):
            runner.policy.worker = replace(worker, max_running=max(1, self._max_running - slots))

    def _outside_requests(self) -> list[Any]:
        return [self._vllm.requests[name] for name in self._outside]

    def _num_outside_running(self) -> int:
        return sum(request.status == RequestStatus.RUNNING for request in self._outside_requests())

    def _running(self) -> Iterable[Any]:
        return (self._vllm.requests[name] for name in self.runner.running_ids())

    def _preempt(self, name: str) -> None:
        """Preempt a request as vLLM does, once it can be; one that vLLM has not started only stays queued."""
        vllm, request = self._vllm, self._vllm.requests[name]
        if request.status == RequestStatus.RUNNING:
            if not vllm._request_blocks_can_be_freed(request):
                return
            self._metrics.evictions += 1
            self._metrics.recomputed_tokens += request.num_computed_tokens
            vllm.running.remove(request)
            vllm._preempt_request(request, time.monotonic(), drop_stale_output=vllm.requires_kv_delivery)
        elif request.status in BLOCKED or request.num_computed_tokens:
            return
        self._to_preempt.discard(name)

    def _outside_and_queued(self) -> list[Any]:
        """Return the outside requests in vLLM's queue of those that hold nothing, first come first."""
        requests = self._outside_requests()
        requests = [r for r in requests if r.status != RequestStatus.RUNNING and not self._vllm._holds_kv_blocks(r)]
        return sorted(requests, key=lambda request: request.arrival_time)

    def _admitted_and_queued(self, evicted: set[str]) -> list[Any]:
        """Return what the policy counts as running and vLLM has yet to start, first admitted first.

        A request evicted for this iteration comes back in the next one at the earliest: vLLM's first model runner takes
        one that was in the last batch for one that never left.
        """
        num_governed = len(self._vllm.running) - self._num_outside_running()
        if num_governed == len(self.runner.running) and not self._to_preempt:
            return []  # vLLM runs them all
        return [
            request
            for request in self._running()
            if request.request_id not in evicted and request.status in QUEUED and not request.num_computed_tokens
        ]
