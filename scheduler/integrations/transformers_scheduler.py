"""Puts a policy in charge of transformers' own continuous batching: `generate_batch`, its manager and its server.

`register` adds a scheduler to those that `ContinuousBatchingConfig(scheduler_type=...)` knows; who is evicted and who
is admitted is the policy's, all else stays transformers'. Works with transformers >=5.17,<5.25, whose scheduler
interface is not public. An evicted request keeps its tokens and prefills them again.
"""

import time
import weakref
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, Scheduler

from scheduler.errors import InputError
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.integrations.transformers_attention import behind_stock_name, use_own_keys
from scheduler.integrations.transformers_cb import check_room
from scheduler.integrations.transformers_states import BatchStates, Chunk, Renewing
from scheduler.kv_cache import KvCache
from scheduler.policy import Policy, Status
from scheduler.request import Request
from scheduler.worker import Worker

PAGE_SIZE_FIELD = (
    "page_size" if "page_size" in {field.name for field in fields(ContinuousBatchingConfig)} else "block_size"
)
"""Name of the field of `ContinuousBatchingConfig`; 5.17 has the other one."""

Batch = tuple[list[FutureRequestState] | None, bool, int, int]


class SchedulerName(str):
    """A name in `ContinuousBatchingConfig(scheduler_type=...)`; what it names is kept while a configuration has it."""

    def __deepcopy__(self, memo: Any) -> "SchedulerName":
        """Return itself: a copied configuration keeps it alive as well."""
        return self


def register(
    name: str,
    page_size: int,
    make_policy: Callable[[Worker], Policy],
    make_predictions: Callable[[], BackgroundPredictions],
    renewing: Renewing | None = None,
) -> SchedulerName:
    """Add a scheduler to those that transformers knows; return its name, which is known while a configuration has it.

    Args:
        name: A new name; for `ContinuousBatchingConfig(scheduler_type=...)`, whose `page_size` must be this one, with
            `allow_block_sharing` and `use_async_batching` off.
        page_size: Tokens in a block.
        make_policy: Returns a new policy for the worker that each engine makes.
        make_predictions: Likewise what predicts for the requests of an engine.
        renewing: How forecasts are renewed from the model's states, where they are.
    """
    make_scheduler: Any = partial(
        PolicyScheduler,
        page_size=page_size,
        make_policy=make_policy,
        make_predictions=make_predictions,
        renewing=renewing,
    )
    SCHEDULER_MAPPING[name] = make_scheduler
    known = SchedulerName(name)
    weakref.finalize(known, SCHEDULER_MAPPING.pop, name, None)
    return known


class PolicyScheduler(Scheduler):
    """Offers the engine what runs, then what the policy admitted; evicts at the start of an iteration."""

    def __init__(
        self,
        cache: Any,
        safety_margin: float | None,
        max_requests_per_batch: int,
        *,
        page_size: int,
        make_policy: Callable[[Worker], Policy],
        make_predictions: Callable[[], BackgroundPredictions],
        renewing: Renewing | None,
    ) -> None:
        """Build for an engine's cache; the margin of free blocks is left to the policy."""
        if cache.use_prefix_sharing:
            raise InputError(
                "ContinuousBatchingConfig: allow_block_sharing must be False: shared blocks are not counted"
            )
        self._attention = str(cache.config._attn_implementation)
        if use_own_keys(cache):
            behind_stock_name(self._attention)
        self._kv_cache = KvCache(cache.num_blocks, page_size)
        worker = Worker(self._kv_cache, resume=True, max_running=max_requests_per_batch)
        self._make_policy = partial(make_policy, worker)
        self._make_predictions = make_predictions
        self._end_predictions: Callable[[], object] = lambda: None
        self._renewing, self._states = renewing, None if renewing is None else BatchStates(renewing.make_states(cache))
        if self._states is not None:
            weakref.finalize(self, self._states.reader.close)
        super().__init__(cache, 0.0, max_requests_per_batch)

    def reset(self) -> None:
        """Forget everything; a new policy starts."""
        super().reset()
        self._end_predictions()
        self.runner, self.predictions = PolicyRunner(self._make_policy()), self._make_predictions()
        self._end_predictions = weakref.finalize(self, self.predictions.stop)  # no engine says that it is over
        if self._renewing is not None and self._states is not None:
            self._states.clear()
            self.runner.renewals = self._renewing.make_source(self._states.reader, self.runner.request)
        self._has_failed = False
        """Whether the engine could store nothing and asks again within the iteration."""

    def add_waiting_request(self, state: RequestState) -> None:
        """Queue a request and have it predicted; one that comes back from an eviction is known.

        Raises:
            InputError: It asks for several sequences, or could not finish alone in the cache.
        """
        if state.request_id not in self.runner and state.request_id not in self.predictions:
            self.predictions.add(self._facts(state), state.initial_tokens)
        super().add_waiting_request(state)

    def clear_cancelled_requests(self) -> list[RequestState]:
        """Drop what was cancelled, here and in the policy; after the last request no batch is asked for any more."""
        cancelled = super().clear_cancelled_requests()
        self._let_go()
        return cancelled

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Batch:
        """Return the next iteration as the engine takes it, after the policy's evictions."""
        self.cache.config._attn_implementation = self._attention  # the batch has been made without a mask
        if not self._has_failed:
            self._let_go()
            self.runner.follow(self._num_generated)
            if self._states is not None:
                self._states.note()
        for request in self.predictions.take(wait=not len(self.runner)):
            self.runner.add(request)
        for request_id in self.runner.decide():
            self._evict(request_id)
        active = sorted(self.active_requests.values(), key=lambda state: state.status != RequestStatus.DECODING)
        admitted = [self.waiting_requests[i] for i in self.runner.running_ids() if i in self.waiting_requests]
        started = set[str]()
        batch, has_failed, *rest = self._process_candidates(
            [*active, *(() if self.block_new_requests else admitted)], token_budget, cache_budget, started
        )
        self._cleanup_waiting_queue(started)
        self._has_failed = has_failed and not batch
        if self._states is not None:
            self._states.expect([self._chunk(each.state, each.query_length) for each in batch or ()])
        return (None if self._has_failed else batch, *rest)  # type: ignore[return-value]

    def finish_request(self, request_id: str) -> None:
        """Free a request that ended, and tell the policy."""
        state = self.active_requests.get(request_id)
        super().finish_request(request_id)
        if request_id in self.runner:
            num_generated = generated(state) if state else 0
            self._end(request_id, Status.ANSWERED if num_generated else Status.CANCELLED, num_generated)

    def _let_go(self) -> None:
        """Forget what the engine has dropped: cancelled and failed requests."""
        for request_id in [i for i in self.runner.request_ids() if not self._has(i)]:
            self._end(request_id, Status.CANCELLED, 0)
        for request_id in [i for i in self.predictions.request_ids() if not self._has(i)]:
            self.predictions.discard(request_id)

    def _end(self, request_id: str, status: Status, num_generated: int) -> None:
        if self._states is not None:
            self._states.forget(str(self.runner.index(request_id)))
        self.runner.end(request_id, status, num_generated)

    def _has(self, request_id: str) -> bool:
        return request_id in self.active_requests or request_id in self.waiting_requests

    def _evict(self, request_id: str) -> None:
        """Free the blocks of a request and queue it again; one that the engine had not started only stays queued."""
        state = self.active_requests.pop(request_id, None)
        if state is not None:
            self.cache.free_blocks(request_id)
            if self._states is not None:
                self._states.forget(str(self.runner.index(request_id)))
            again = state.create_equivalent_initial_request()
            again.created_time = state.created_time
            self.add_waiting_request(again)

    def _num_generated(self, request_id: str) -> int:
        state = self.active_requests.get(request_id) or self.waiting_requests[request_id]
        return generated(state)

    def _chunk(self, state: RequestState, length: int) -> Chunk:
        """Return what the next pass reads of a request: by its index, since its name can be used again."""
        index = str(self.runner.index(state.request_id))
        return Chunk(index, state.position_offset, length, num_prompt_tokens(state))

    def _facts(self, state: RequestState) -> Request:
        """Return what the policy may know of a request before it is predicted."""
        if state.num_children:
            raise InputError(f"request {state.request_id}: several sequences for one prompt are not supported")
        prompt_len = len(state.initial_tokens)
        room = self._kv_cache.kv_budget - prompt_len
        limit = max(1, room) if state.max_new_tokens is None else state.max_new_tokens
        request = Request(state.request_id, prompt_len, limit, time.monotonic())
        check_room(request, limit, self._kv_cache)
        return request


def generated(state: RequestState) -> int:
    """Return how many tokens a request has generated, those before an eviction included."""
    return len(state.initial_tokens) + state.generated_len() - num_prompt_tokens(state)


def num_prompt_tokens(state: RequestState) -> int:
    """Return the length of a request's prompt, without what it generated before an eviction."""
    return int(state._true_initial_tokens or len(state.initial_tokens))
