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
from collections.abc import Mapping
from typing import Any

import numpy as np
from vllm.v1.request import RequestStatus

from scheduler.errors import InputError
from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.integrations.policy_runner import PolicyRunner
from scheduler.kv_cache import KvCache
from scheduler.policies import make_policy
from scheduler.policy import Policy, Status
from scheduler.request import Request
from scheduler.worker import Worker

try:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmScheduler
except ImportError:  # before asynchronous scheduling
    from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler

logger = logging.getLogger(__name__)

BOUNDS = ("output_len_lower_bound", "output_len_prediction", "output_len_upper_bound")
"""Keys of a request's extra arguments: tokens, all optional; `scheduler.request.Request` says what they mean."""
PREDICTION_SETTINGS = ("predictor", "tokenizer", "model", "tau", "timeout")
"""Keys under "amin" that are not options of the policy but of what predicts at arrival."""
PREDICTING = "pipelines.vllm_scheduler.PredictingScheduler"
QUEUED = frozenset(
    {RequestStatus.WAITING, RequestStatus.PREEMPTED, RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR}
)
ANSWERED = frozenset({RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED})
"""Ends with an answer whose length a policy may learn from; the others were aborted, refused or failed."""


class AminScheduler(VllmScheduler):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's own scheduler, shown only the waiting requests that a policy admitted, and told whom to preempt."""

    waiting: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build vLLM's scheduler, then the policy on the same blocks.

        Raises:
            InputError: No policy has that name, it is a clairvoyant one, a setting is for predictions that this class
                does not make, or the engine is set up for what the policy cannot follow: speculative decoding, KV
                connectors, or a model that does not generate token by token.
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
        worker = Worker(
            kv_cache,
            resume=True,
            max_running=getattr(self, "max_num_active_reqs", self.max_num_running_reqs),
            watermark_blocks=getattr(self.kv_cache_manager, "watermark_blocks", 0),
        )
        self.runner = PolicyRunner(policy_from_settings(self.vllm_config.additional_config, worker))
        self.predictions = self.make_predictions(amin_settings(self.vllm_config.additional_config))
        self._has_warned = False

    def make_predictions(self, settings: Mapping[str, Any]) -> BackgroundPredictions | None:
        """Return what predicts for requests that come without a bound; here nothing does.

        `settings` are those under "amin" of vLLM's additional configuration.

        Raises:
            InputError: One of `PREDICTION_SETTINGS` is among them.
        """
        for key in PREDICTION_SETTINGS:
            if key in settings:
                raise InputError(
                    f"additional_config: amin: {key}: AminScheduler does not predict; leave it out or use "
                    f"--scheduler-cls {PREDICTING}"
                )
        return None

    def add_request(self, request: Any) -> None:
        """Queue a request in vLLM and tell the policy; a further chunk of a streamed input is vLLM's alone."""
        super().add_request(request)
        name = request.request_id
        if name in self.runner or name not in self.requests or (self.predictions and name in self.predictions):
            return
        if self.predictions is None or self._extra_args(request).get(BOUNDS[0]) is not None:
            self.runner.add(self._facts(request))
        else:
            self.predictions.add(self._facts(request, is_predicted=True), request.prompt_token_ids)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Return vLLM's output for the next iteration, after the policy's evictions, with its admissions alone."""
        self.runner.follow(self._num_generated)
        if self.predictions is not None:
            for request in self.predictions.take(wait=not len(self.runner)):
                self.runner.add(request)
        evicted = self.runner.decide()
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
        requests = (self.requests[request_id] for request_id in self.runner.running_ids() if request_id not in evicted)
        return [request for request in requests if request.status in QUEUED and not request.num_computed_tokens]

    def _num_generated(self, request_id: str) -> int:
        """Return the tokens of a request, those included that asynchronous scheduling has still in flight."""
        request = self.requests[request_id]
        return int(request.num_output_tokens + getattr(request, "num_output_placeholders", 0))

    def _extra_args(self, request: Any) -> Mapping[str, Any]:
        return getattr(request.sampling_params, "extra_args", None) or {}

    def _facts(self, request: Any, *, is_predicted: bool = False) -> Request:
        """Return what the policy may know of a request; of one yet to be predicted its bounds are not missed.

        vLLM stores the keys and values of a token in the iteration after it was generated, so that s prompt and g
        generated tokens take the blocks of s + g in the next one, where policies count s + g + 1: hence s - 1 here.
        """
        max_new_tokens = max(1, min(request.max_tokens, self.max_model_len - request.num_prompt_tokens))
        bounds, complaint = read_bounds(self._extra_args(request), max_new_tokens)
        if complaint and not is_predicted and not self._has_warned:
            self._has_warned = True
            logger.warning("request %s: %s; further such requests are not reported", request.request_id, complaint)
        return Request(
            request.request_id, max(0, request.num_prompt_tokens - 1), max_new_tokens, request.arrival_time, **bounds
        )

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Free a request that ended or was aborted, and tell the policy."""
        result = super()._free_request(request, *args, **kwargs)
        if request.request_id in self.runner:
            status = Status.ANSWERED if request.status in ANSWERED else Status.CANCELLED
            self.runner.end(request.request_id, status, request.num_output_tokens)
        if self.predictions is not None and request.request_id in self.predictions:
            self.predictions.discard(request.request_id)
        return result


def amin_settings(additional_config: Any) -> dict[str, Any]:
    """Return what stands under "amin" in vLLM's additional configuration."""
    return dict(additional_config.get("amin", {})) if isinstance(additional_config, Mapping) else {}


def policy_from_settings(additional_config: Any, worker: Worker) -> Policy:
    """Return the policy that `additional_config["amin"]` or AMIN_POLICY names; InputError where there is none."""
    settings = {key: value for key, value in amin_settings(additional_config).items() if key not in PREDICTION_SETTINGS}
    name = settings.pop("policy", os.environ.get("AMIN_POLICY", "amin"))
    rng = np.random.default_rng(settings.pop("seed", 0))
    return make_policy(name, worker, rng, **settings)


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
