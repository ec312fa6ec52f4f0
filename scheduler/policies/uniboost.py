"""Boosted first come first served on what the prompt alone says."""

import numpy as np

from scheduler.admission import admit_or_evict
from scheduler.batch import RunningBatch
from scheduler.latency_bounds import volume
from scheduler.policies.boost import BindingResource, Boost, Demand
from scheduler.policy import Decision, Policy, Status
from scheduler.request import Request
from scheduler.worker import Worker


class UniBoost(Policy):
    """UniBoost (2026): gamma-Boost with the work that is known without any prediction, memory as in `fcfs`.

    The work of a request is that of its prompt with an answer of the mean length seen so far, on the resource that
    binds; 1 token before anything has ended. So long prompts wait for short ones, and answers make no difference.
    """

    def __init__(self, worker: Worker, rng: np.random.Generator, *, tail: float = 1.0) -> None:
        """Start with nothing waiting; `worker` and `rng` as in `Policy`, `tail` as in `Boost`."""
        super().__init__(worker, rng)
        self._resource, self._boost = BindingResource.of(worker), Boost(tail)
        self._works: dict[int, tuple[int, float]] = {}  # arrival and work
        self._new: dict[int, Demand] = {}
        self._num_tokens, self._num_answers = 0, 0

    def add(self, index: int, request: Request) -> None:
        """Take in a request; it is queued by the next `schedule`."""
        prompt, mean = request.num_prompt_tokens, self._num_tokens / self._num_answers if self._num_answers else 1.0
        self._new[index] = demand = Demand(volume(prompt, mean), mean, prompt)
        self._resource.add(index, demand)
        self.waiting.remember(index, request)

    def schedule(self, running: RunningBatch) -> Decision:
        """Return the admissions that fit now, or else the evictions that the next iteration needs."""
        if self._new:
            works = {index: self._resource.iterations(demand) for index, demand in self._new.items()}
            if self._boost.arrive(list(works.values())):
                self.waiting.reorder(self._boost.key)
            for index, work in works.items():
                self._works[index] = running.clock, work
                self.waiting.requeue(index, 0, self._boost.queue(index, running.clock, work))
            self._new.clear()
        decision = admit_or_evict(self, running, reversed, lambda index: self._boost.queue(index, *self._works[index]))
        for index in decision.admit:
            self._boost.leave(index)
        return decision

    def end(self, index: int, status: Status, num_generated: int, *, is_running: bool = True) -> None:
        """Let go of a request; learn from the length of an answer."""
        is_queued = index not in self._new and not is_running  # or it came since the last decision
        self.waiting.remove(index, is_queued=is_queued)
        self._resource.remove(index)
        self._boost.leave(index)
        self._new.pop(index, None)
        self._works.pop(index, None)
        if status is Status.ANSWERED:
            self._num_tokens, self._num_answers = self._num_tokens + num_generated, self._num_answers + 1
