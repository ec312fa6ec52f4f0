"""What requests run on, as `amin simulate`, `amin map` and `amin tune` are asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pipelines.settings.option import Metavar
from predictor.ranges import Count, Range
from scheduler.cost_model import CostModel
from scheduler.deployments.deployment import read_deployment
from scheduler.errors import InputError

ITERATION, OF_DEPLOYMENT = "iteration", "deployment"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """A replica, and how many there are."""

    deployment: Annotated[str | None, Metavar("NAME|FILE")] = None
    """A deployment that exists, such as llama-3.1-8b-h100 (a wrong name lists them), or a file of amin deployment: it
    gives what stands below where no option does, times are in seconds, and evicted requests keep their tokens."""
    kv_budget: Count | None = None
    """Tokens that the KV cache holds; needed without --deployment."""
    block_size: Count = 1
    """Tokens of a KV block; 1 is the paper."""
    max_running: Count | None = None
    """Most requests that run at once (slots, vLLM's max_num_seqs); default: no limit."""
    max_batch_tokens: Count | None = None
    """Most tokens of one iteration; longer prefills are split (chunked prefill); default: no limit."""
    watermark: Annotated[float, Range(0, 1, (False, True))] = 0.0
    """Share of the KV cache that an admission leaves free."""
    cost_model: Annotated[str, Metavar("iteration|FILE")] = ITERATION
    """What an iteration takes: iteration, where each takes 1 (the paper), or a JSON file of seconds
    (docs/architecture.md)."""
    eviction: Literal["restart", "resume"] = "restart"
    """Whether evicted requests keep their tokens."""
    prefix_caching: bool = False
    """Whether equal beginnings of prompts are stored once, and what evicted and ended requests leave is found again
    until it is overwritten."""
    replicas: Annotated[int, Range(1, 4096)] = 1
    """Workers side by side."""

    def defaults(self) -> Mapping[str, Any]:
        """Return what the deployment gives, by the names of the options."""
        if self.deployment is None:
            return {}
        found = read_deployment(self.deployment)
        return {
            "kv_budget": found.kv_tokens,
            "block_size": found.block_size,
            "max_running": found.max_running,
            "max_batch_tokens": found.max_batch_tokens,
            "cost_model": OF_DEPLOYMENT,
            "eviction": "resume",
            "prefix_caching": found.prefix_caching,
            "replicas": found.replicas,
        }

    def overridden(self) -> list[str]:
        """Return what options say in place of the deployment, in words."""
        pairs = ((name, getattr(self, name), value) for name, value in self.defaults().items())
        return [
            f"{name.replace('_', ' ')} {given}, not {value}" for name, given, value in pairs if given != value
        ]  # fmt: skip

    def tokens(self) -> int:
        """Return the KV budget.

        Raises:
            InputError: Neither it nor a deployment is given.
        """
        if self.kv_budget is None:
            raise InputError("--kv-budget is missing; give it, or --deployment")
        return self.kv_budget

    def clock(self) -> CostModel | None:
        """Return what an iteration takes; None for the iteration clock."""
        if self.cost_model == OF_DEPLOYMENT and self.deployment is not None:
            return read_deployment(self.deployment).clock
        return None if self.cost_model == ITERATION else CostModel.read(Path(self.cost_model))
