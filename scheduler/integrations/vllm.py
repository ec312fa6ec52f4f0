"""Puts a policy in charge of vLLM: who is preempted and who is admitted; everything else stays vLLM's.

    vllm serve MODEL --scheduler-cls scheduler.integrations.vllm.AminScheduler

Works with vLLM 0.32, whose scheduler interface is not public; docs/vllm.md lists what is used of it. What is known of a
request's length comes with it, in `SamplingParams.extra_args` or over HTTP in `vllm_xargs`, under the names of
`vllm_requests.BOUNDS`. While no request brings a bound, vLLM's own scheduler decides.

An exception in here never reaches vLLM: it is logged once, and from then on vLLM decides alone.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import FCFSRequestQueue

from scheduler.errors import InputError
from scheduler.integrations.vllm_arrivals import Arrivals, EngineLimits, Predictions
from scheduler.integrations.vllm_ends import Ends
from scheduler.integrations.vllm_governor import Governor
from scheduler.integrations.vllm_metrics import Metrics
from scheduler.integrations.vllm_renewals import ReportedRenewals
from scheduler.integrations.vllm_settings import Settings
from scheduler.kv_cache import KvCache
from scheduler.policy import Status
from scheduler.worker import Worker

try:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmScheduler
except ImportError:  # before asynchronous scheduling
    from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler

logger = logging.getLogger(__name__)

PREDICTING = "pipelines.vllm_scheduler.PredictingScheduler"
SUMMARY_SECONDS = 60.0


class AminScheduler(VllmScheduler):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's own scheduler, shown only the waiting requests that a policy admitted, and told which ones to preempt."""

    waiting: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build vLLM's scheduler, then what decides on the same blocks.

        Raises:
            InputError: No policy has that name, it is a clairvoyant one, a setting is for predictions that this class
                does not make, or the model does not generate token by token.
        """
        super().__init__(*args, **kwargs)
        self.metrics = Metrics(str(self.vllm_config.parallel_config.data_parallel_index))
        self.arrivals: Arrivals | None = None
        self.governor: Governor | None = None
        self.renewals: ReportedRenewals | None = None
        self._publishes, self._next_summary = True, time.monotonic() + SUMMARY_SECONDS
        settings = Settings.read(self.vllm_config.additional_config)
        if settings.mode == "off":
            return
        if getattr(self, "num_sampled_tokens_per_step", 1) != 1:
            raise InputError("AminScheduler: the model does not generate token by token; leave out --scheduler-cls")
        self._ends = Ends(lambda: cached_tokenizer_from_config(self.vllm_config.model_config))
        limits = EngineLimits(
            self.max_model_len, self.block_size, self.hash_block_size, self.num_spec_tokens + self.num_lookahead_tokens
        )
        self.arrivals = Arrivals(limits, self.make_predictions(settings.prediction), self.metrics)
        policy = settings.make_policy(self._worker())
        if settings.mode == "on":
            self.governor = Governor(self, policy, self.metrics)
            self.renewals = self.make_renewals(settings)
            if self.renewals is not None:
                self.renewals.attach(self.governor.runner)
            if self.arrivals.know_something:
                self.governor.take_charge(self.arrivals.facts)

    def make_predictions(self, settings: Mapping[str, Any]) -> Predictions | None:
        """Return what predicts for requests that come without a bound; here nothing does.

        `settings` are those of `vllm_settings.PREDICTION_KEYS` that were given.

        Raises:
            InputError: One was.
        """
        for key in settings:
            raise InputError(
                f"additional_config: amin: {key}: AminScheduler does not predict; leave it out or use "
                f"--scheduler-cls {PREDICTING}"
            )
        return None

    def make_renewals(self, settings: Settings) -> ReportedRenewals | None:
        """Return what renews the forecasts of running requests; here nothing does."""
        return None

    def _worker(self) -> Worker:
        manager, num_groups = self.kv_cache_manager, len(self.kv_cache_config.kv_cache_groups)
        num_blocks = (manager.block_pool.num_gpu_blocks - 1) // num_groups  # one block is vLLM's null block
        return Worker(
            KvCache(num_blocks, self.block_size),
            resume=True,
            max_running=self.max_num_active_reqs,
            watermark_blocks=manager.watermark_blocks,
            prefix_caching=manager.enable_caching,
        )

    def add_request(self, request: Any) -> None:
        """Queue a request in vLLM and take note of it; a further chunk of a streamed input is vLLM's alone."""
        is_new = request.request_id not in self.requests
        super().add_request(request)
        if self.arrivals is not None and is_new and request.request_id in self.requests:
            with self._guard(f"request {request.request_id} arrived"):
                self._note_arrival(self.arrivals, request)

    def _note_arrival(self, arrivals: Arrivals, request: Any) -> None:
        if request.resumable:
            if self.governor is not None and self.governor.is_in_charge:
                self.governor.leave_to_vllm(request.request_id)
            return
        self._ends.expect(request)
        facts = arrivals.add(request)
        if facts is not None and self.governor is not None and self.governor.is_in_charge:
            self.governor.add(facts)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Return vLLM's output for the next iteration, after the policy's evictions, with its admissions alone."""
        start = time.perf_counter()
        shown: list[Any] | None = None
        if self.arrivals is not None:
            with self._guard("deciding"):
                shown = self._decide(self.arrivals)
        if shown is None:
            self.metrics.left_to_vllm += 1
            output = super().schedule(*args, **kwargs)
        else:
            decided = time.perf_counter()
            everything, self.waiting = self.waiting, FCFSRequestQueue(shown)
            try:
                output = super().schedule(*args, **kwargs)
            finally:
                queued, self.waiting = self.waiting, everything
                scheduled = time.perf_counter()
                self._put_back(shown, queued)
            self.metrics.decisions += 1
            self.metrics.decision_seconds += decided - start + time.perf_counter() - scheduled
        if self.renewals is not None:
            self.renewals.ask(output, self.requests)
        self._report()
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take in what an iteration gave, renewed forecasts included."""
        if self.renewals is not None:
            self.renewals.take_in(model_runner_output)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _decide(self, arrivals: Arrivals) -> list[Any] | None:
        """Return the waiting requests that vLLM is shown; None leaves the iteration to vLLM."""
        governor = self.governor
        ready = arrivals.take(wait=not self.running and not (governor and len(governor.runner)))
        if governor is None:
            return None
        if governor.is_in_charge != arrivals.know_something:
            if governor.is_in_charge:
                governor.step_back()
            else:
                governor.take_charge(arrivals.facts)
        if not governor.is_in_charge:
            return None
        for request in ready:
            governor.add(request)
        return None if self._pause_state == PauseState.PAUSED_ALL else governor.decide()

    def _put_back(self, shown: list[Any], queued: Any) -> None:
        """Take from vLLM's queue what it started, and add what it preempted."""
        left, known = set(queued), set(shown)
        if started := known - left:
            self.waiting.remove_requests(started)
        for request in [request for request in queued if request not in known][::-1]:
            self.waiting.prepend_request(request)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Free a request that ended or was aborted, and take note of it."""
        result = super()._free_request(request, *args, **kwargs)
        if self.arrivals is not None:
            with self._guard(f"request {request.request_id} ended"):
                status = self._ends.status(request)
                self.arrivals.end(request.request_id, status, request.num_output_tokens)
                if self.governor is not None:
                    self._end_renewals(request.request_id, status)
                    self.governor.end(request.request_id, status, request.num_output_tokens)
        return result

    def _end_renewals(self, request_id: str, status: Status) -> None:
        if self.renewals is not None and self.governor is not None and request_id in self.governor.runner:
            self.renewals.end(self.governor.runner.index(request_id), is_answered=status is Status.ANSWERED)

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        """Leave everything to vLLM for good if the body fails."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # a panic of the tokenizers' Rust is no Exception
            self.metrics.failures += 1
            self.arrivals = self.governor = self.renewals = None
            logger.exception("amin failed (%s): from now on vLLM decides alone, until the engine is restarted", what)

    def _report(self) -> None:
        try:
            if self._publishes:
                self.metrics.publish()
        except Exception:
            self._publishes = False
            logger.exception("amin: no metrics any more; scheduling goes on")
        if time.monotonic() >= self._next_summary:
            self._next_summary = time.monotonic() + SUMMARY_SECONDS
            logger.info("amin: %s", self.metrics.summary())
