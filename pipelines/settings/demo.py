"""What `amin demo` is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from predictor.ranges import Count, check_ranges

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Settings of `amin demo`."""

    out: Path = Path("demo")
    """Folder for everything the demo makes."""
    served_model: str = "smollm2"
    """Folder, GGUF file or hub name of a causal language model."""
    prompts: Path = ROOT / "checkpoints" / "prompts.jsonl"
    """Prompts with a split."""
    draws: Count = 1
    """Sampled answers per prompt, of another model or other prompts than the bundled ones."""
    limit: Count = 800
    """Number of prompts, likewise."""
    requests: Count = 100
    """Most requests of the evaluation, all there at the start."""
    kv_blocks: Count = 192
    """KV cache of the evaluation, in blocks of 16 tokens."""
    seeds: Count = 1
    """Runs per policy of the evaluation."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to compute; default: cuda where there is one."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
