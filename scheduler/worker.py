"""What requests run on: the one value that a policy, the loop and an executor share."""

from dataclasses import dataclass

from scheduler.cost_model import CostModel
from scheduler.errors import InputError
from scheduler.kv_cache import KvCache


@dataclass(frozen=True, slots=True)
class Worker:
    """An engine with its memory and the limits that it puts on admission; an idle one always admits one request.

    Attributes:
        kv_cache: Its memory.
        resume: Whether an evicted request keeps its generated tokens and only prefills them again.
        max_running: Most requests that run at once (vLLM's `max_num_seqs`), or None.
        watermark_blocks: Blocks that must stay free in the iteration after an admission (vLLM v0's watermark).
        max_batch_tokens: Most tokens of one iteration, or None. Requests in decode come first with one each, then
            prefills in order of admission, split where they do not fit (chunked prefill).
        cost_model: What an iteration takes, where that is known; None for the iteration clock.
        prefix_caching: Whether equal beginnings of prompts are stored once, and blocks that nobody uses are found again
            until they are overwritten.
    """

    kv_cache: KvCache
    resume: bool = False
    max_running: int | None = None
    watermark_blocks: int = 0
    max_batch_tokens: int | None = None
    cost_model: CostModel | None = None
    prefix_caching: bool = False

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: A field is out of its range; the message names it.
        """
        for name in ("max_running", "max_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, must be >= 1")
        if self.watermark_blocks < 0:
            raise InputError(f"watermark_blocks is {self.watermark_blocks}, must be >= 0")

    def free_slots(self, num_running: int) -> float:
        """Return how many more requests may run where `num_running` do."""
        return float("inf") if self.max_running is None else self.max_running - num_running
