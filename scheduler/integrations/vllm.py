"""Puts a policy in charge of vLLM: who is evicted and who is admitted; everything else stays vLLM's.

    vllm serve MODEL --scheduler-cls scheduler.integrations.vllm.AminScheduler

Works with vLLM 0.32, whose scheduler interface is not public; docs/vllm.md lists what is used of it. The policy is
`amin`, or what `--additional-config '{"amin": {"policy": "amin-survival", "seed": 0, ...}}'` or else the environment
variable AMIN_POLICY names; further keys are options of the policy. What is known of a request's length comes with it,
in `SamplingParams.extra_args` or over HTTP in `vllm_xargs`, under the names of `BOUNDS`.

vLLM's accounting is the authority. A request that the policy admitted and vLLM cannot start yet (tokens of the
iteration spent, no free block, a grammar still compiling) stays first in line; to the policy it is a running request
that got no token, as one in prefill.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from vllm.v1.request import RequestStatus

from scheduler.batch import RunningBatch
from scheduler.errors import InputError
from scheduler.kv_cache import KvCache, Limits
from scheduler.policies import make_policy
from scheduler.policy import Policy
from scheduler.request import Request

try:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmScheduler
except ImportError:  # before asynchronous scheduling
    from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler

logger = logging.getLogger(__name__)

BOUNDS = ("output_len_lower_bound", "output_len_prediction", "output_len_upper_bound")
"""Keys of a request's extra arguments: tokens, all optional; `scheduler.request.Request` says what they mean."""
QUEUED = frozenset(
    {RequestStatus.WAITING, RequestStatus.PREEMPTED, RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR}
)


class AminScheduler(VllmScheduler):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's own scheduler, shown only the waiting requests that a policy admitted, and told whom to preempt."""

    waiting: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build vLLM's scheduler, then the policy on the same blocks.

        Raises:
            InputError: No policy has that name, it is a clairvoyant one, or the engine is set up for what the mirror
                cannot follow: speculative decoding, KV connectors, or a model that does not generate token by token.
        """
        super().__init__(*args, **kwargs)
        cannot_follow = {
            "speculative decoding": self.num_spec_tokens > 0,
            "a KV connector": self.connector is not None,
            "a model that does not generate token by token": getattr(self, "num_sampled_tokens_per_step", 1) != 1,
        }
        for feature, is_on in cannot_follow.items():
            if is_on:
                raise InputError(f"AminScheduler does not work with {feature}")
        pool, num_groups = self.kv_cache_manager.block_pool, len(self.kv_cache_config.kv_cache_groups)
        kv_cache = KvCache((pool.num_gpu_blocks - 1) // num_groups, self.block_size)  # one block is vLLM's null block
        limits = Limits(
            max_running=getattr(self, "max_num_active_reqs", self.max_num_running_reqs),
            watermark_blocks=getattr(self.kv_cache_manager, "watermark_blocks", 0),
        )
        self.mirror = Mirror(policy_from_settings(self.vllm_config.additional_config, kv_cache, limits))
        self._has_warned = False

    def add_request(self, request: Any) -> None:
        """Queue a request in vLLM and tell the policy; a further chunk of a streamed input is vLLM's alone."""
        super().add_request(request)
        if request.request_id not in self.mirror and request.request_id in self.requests:
            self.mirror.add(self._facts(request))

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Return vLLM's output for the next iteration, after the policy's evictions, with its admissions alone."""
        self.mirror.follow(self._num_generated)
        evicted = self.mirror.decide()
        for request_id in evicted:
            self._evict(self.requests[request_id])
        shown = self._admitted_but_queued(set(evicted))
        everything, self.waiting = self.waiting, type(self.waiting)()
        for request in shown:
            self.waiting.add_request(request)
        output = super().schedule(*args, **kwargs)
        queued, self.waiting = self.waiting, everything
        for request in shown:
            if request.status not in QUEUED:
                everything.remove_request(request)
        for request in queued:
            if request not in shown:  # preempted by vLLM itself
                everything.prepend_request(request)
        return output

    def _evict(self, request: Any) -> None:
        """Preempt a request as vLLM does; one that vLLM had not started only stays queued."""
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())

    def _admitted_but_queued(self, evicted: set[str]) -> list[Any]:
        """Return what the policy counts as running and vLLM has yet to start, first admitted first.

        A request evicted for this iteration comes back in the next one at the earliest: vLLM's first model runner takes
        one that was in the last batch for one that never left.
        """
        requests = (self.requests[request_id] for request_id in self.mirror.running_ids() if request_id not in evicted)
        return [request for request in requests if request.status in QUEUED and not request.num_computed_tokens]

    def _num_generated(self, request_id: str) -> int:
        """Return the tokens of a request, those included that asynchronous scheduling has still in flight."""
        request = self.requests[request_id]
        return int(request.num_output_tokens + getattr(request, "num_output_placeholders", 0))

    def _facts(self, request: Any) -> Request:
        """Return what the policy may know of a request.

        vLLM stores the keys and values of a token in the iteration after it was generated, so that s prompt and g
        generated tokens take the blocks of s + g in the next one, where policies count s + g + 1: hence s - 1 here.
        """
        max_new_tokens = max(1, min(request.max_tokens, self.max_model_len - request.num_prompt_tokens))
        extra_args = getattr(request.sampling_params, "extra_args", None) or {}
        bounds, complaint = read_bounds(extra_args, max_new_tokens)
        if complaint and not self._has_warned:
            self._has_warned = True
            logger.warning("request %s: %s; further such requests are not reported", request.request_id, complaint)
        return Request(
            request.request_id, max(0, request.num_prompt_tokens - 1), max_new_tokens, request.arrival_time, **bounds
        )

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Free a request that ended or was aborted, and tell the policy."""
        result = super()._free_request(request, *args, **kwargs)
        if request.request_id in self.mirror:
            self.mirror.remove(request.request_id, request.num_output_tokens)
        return result


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


def policy_from_settings(additional_config: Any, kv_cache: KvCache, limits: Limits) -> Policy:
    """Return the policy that `additional_config["amin"]` or AMIN_POLICY names; InputError where there is none."""
    settings = dict(additional_config.get("amin", {})) if isinstance(additional_config, Mapping) else {}
    name = settings.pop("policy", os.environ.get("AMIN_POLICY", "amin"))
    rng = np.random.default_rng(settings.pop("seed", 0))
    return make_policy(name, kv_cache, rng, resume=True, output_lens=None, limits=limits, **settings)


def read_bounds(extra_args: Mapping[str, Any], max_new_tokens: int) -> tuple[dict[str, Any], str]:
    """Return the usable bounds among a request's extra arguments, in 1..`max_new_tokens`, and a complaint or "".

    Without a usable lower bound it is 1. A value above `max_new_tokens` is lowered to it, an upper bound below the
    lower one raised to it.
    """
    bounds: dict[str, Any] = {}
    complaints = []
    for name in BOUNDS:
        value = extra_args.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 1:
            bounds[name] = min(int(value), max_new_tokens)
        elif value is not None:
            complaints.append(f"{name} is {value!r}, must be a number of tokens >= 1")
    lower, _, upper = BOUNDS
    if lower not in bounds:
        bounds[lower] = 1
        complaints.append(f"no usable {lower}: 1 is taken")
    if upper in bounds:
        bounds[upper] = max(bounds[upper], bounds[lower])
    return bounds, "; ".join(complaints)
