"""Answers of a served model made without memory pressure, with a snapshot of them now and then."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from pipelines.served_model.loading import ServedModel
from scheduler.batch import RunningBatch
from scheduler.executor import Progress
from scheduler.integrations.transformers_cb import TransformersExecutor
from scheduler.integrations.transformers_engine import Output
from scheduler.kv_cache import KvCache
from scheduler.loop import Loop
from scheduler.policies import make_policy
from scheduler.request import Request
from scheduler.worker import Worker

SECONDS_BETWEEN_SNAPSHOTS = 2.0
"""At least so many, and more where writing one takes longer than its share of the time."""
MAX_SHARE_OF_SNAPSHOTS = 0.02


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is at one moment of `generate`, by index: all that the answers to come depend on.

    To go on from one after an interruption leaves the lengths distributed as without it. To keep the answers that had
    ended, and draw the others afresh, does not: those are the long ones.

    Attributes:
        ended: The answers.
        begun: The tokens so far, in this call, of those that are being generated.
    """

    ended: Mapping[int, Output]
    begun: Mapping[int, Sequence[int]]


class _Recorded(TransformersExecutor):
    """Hands out a snapshot now and then."""

    on_snapshot: Callable[[Snapshot], None] | None = None
    _last_snapshot, _seconds_of_one = 0.0, 0.0

    def iterate(self, running: RunningBatch, most: float, next_arrival: float) -> Progress:
        progress = super().iterate(running, most, next_arrival)
        wait = max(SECONDS_BETWEEN_SNAPSHOTS, self._seconds_of_one / MAX_SHARE_OF_SNAPSHOTS)
        if self.on_snapshot and (started := self.now) >= self._last_snapshot + wait:
            self.on_snapshot(Snapshot(self.outputs, self.running_tokens))
            self._last_snapshot, self._seconds_of_one = self.now, self.now - started
        return progress


def generate(
    served: ServedModel,
    prompts: Sequence[list[int]],
    *,
    max_running: int,
    seed: int,
    description: str,
    begun: Sequence[Sequence[int]] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> list[Output]:
    """Return the answers to all prompts, made without memory pressure: nothing is ever evicted.

    Args:
        served: The model.
        prompts: Token ids.
        max_running: About how many answers are generated at a time.
        seed: Of the sampling.
        description: Label of the progress bar.
        begun: Tokens that each answer has already and goes on from; the outputs have those that follow.
        on_snapshot: Called every few seconds.
    """
    begun = begun or [()] * len(prompts)
    caps = [int(served.generation_config.max_new_tokens) - len(tokens) for tokens in begun]
    prompts = [[*prompt, *tokens] for prompt, tokens in zip(prompts, begun, strict=True)]
    sizes = [len(prompt) + cap for prompt, cap in zip(prompts, caps, strict=True)]
    block_size = 16
    kv_cache = KvCache.from_budget(max(*sizes, max_running * sum(sizes) // len(sizes)) + block_size, block_size)
    requests = [Request(str(i), len(prompt), cap) for i, (prompt, cap) in enumerate(zip(prompts, caps, strict=True))]
    worker = Worker(kv_cache, max_batch_tokens=max(512, 2 * max_running))
    executor = _Recorded(
        served.model,
        prompts,
        worker,
        served.generation_config,
        max_new_tokens=caps,
        seed=seed,
    )
    executor.on_snapshot = on_snapshot
    policy = make_policy("fcfs-reserve", worker, np.random.default_rng(seed))
    with tqdm(total=len(prompts), desc=description, unit="answer") as bar:
        try:
            Loop(policy, executor, requests).run(lambda finished: bar.update(len(finished)) and None)
        finally:
            executor.close()
    return [executor.outputs[i] for i in range(len(prompts))]
