"""What `amin deployment` is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from predictor.ranges import Count, check_ranges


@dataclass(frozen=True, slots=True)
class DeploymentSettings:
    """Settings of `amin deployment`.

    Examples:
      amin deployment --hardware h100_sxm --model meta-llama/Meta-Llama-3.1-8B --out h100.json
      amin deployment --hardware mine --model mine --iterations vllm.log --out mine.json
    """

    hardware: str
    """The card; as AISimulate spells it (a100_sxm, h100_sxm, h200_sxm, b200_sxm, l40s, rtx_pro_6000_server, ...) unless
    --iterations is given."""
    model: str
    """The served model; a name that AISimulate has the shapes of, unless --iterations is given."""
    out: Path
    """JSON file of the deployment, for --deployment."""
    tp: Count = 1
    """Cards that share a replica (tensor parallel)."""
    replicas: Count = 1
    """Replicas side by side."""
    served_as: str | None = None
    """Name of a model of the same architecture, to stand in the file."""
    engine: Literal["vllm", "sglang", "trtllm"] = "vllm"
    """Engine whose kernels are asked for."""
    max_running: Count = 256
    """Most requests that run at once in a replica (vLLM's max_num_seqs)."""
    max_batch_tokens: Count = 8192
    """Most tokens of one iteration (vLLM's max_num_batched_tokens)."""
    block_size: Count = 16
    """Tokens of a KV block."""
    prefix_caching: bool = True
    """Whether the engine finds blocks of equal prefixes again."""
    kv_tokens: Count | None = None
    """Tokens that the KV cache of a replica holds; default: what AISimulate or the log says."""
    iterations: Path | None = None
    """A server's own iterations in place of AISimulate's: a folder of amin evaluate, the text that vllm serve logs, or
    JSONL with seconds, prefill_tokens, decoding_requests, kv_tokens."""
    python: Path = Path(".venv-aisimulate/bin/python")
    """Interpreter of the environment that AISimulate is in; make .venv-aisimulate/installed makes it."""
    force: bool = False
    """Replace the file that is there."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range."""
        check_ranges(self)
