"""Asks AISimulate for iteration times and KV memory; runs in an environment of its own, without the product.

Reads a JSON object on standard input (from `ask` in `pipelines.deployment.measured_kernels`), writes one on standard
output.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module, metadata, resources
from typing import Any

RUNNING = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
CONTEXTS = (128, 512, 1024, 2048, 4096, 8192)
PROMPT_TOKENS = 512
"""Of each prompt that is prefilled: attention makes one long prompt dearer than many short ones."""
PREFILLED = (32, 128, 512, 1024, 2048, 4096, 8192)


def cells(max_running: int, max_batch_tokens: int, kv_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Yield prefill tokens, decoding requests and their KV tokens of the iterations of a busy server."""
    for running in (count for count in RUNNING if count <= max_running):
        contexts = [context for context in CONTEXTS if running * context <= kv_tokens]
        for context in contexts:
            yield 0, running, running * context
        for prefilled in (tokens for tokens in PREFILLED if tokens + running <= max_batch_tokens):
            for context in contexts[1::2]:
                yield prefilled, running, running * context


def seconds_of(model: Any, prefill_tokens: int, decoding: int, kv_tokens: int, *, apart: bool) -> float:
    """Return what the kernels of one iteration take; `apart`: prefill and decoding are a pass each, as in replays."""
    if apart and prefill_tokens:
        alone = seconds_of(model, prefill_tokens, 0, 0, apart=False)
        return alone + seconds_of(model, 0, decoding, kv_tokens, apart=False)
    scheduled = {
        "sum_prefill_tokens": prefill_tokens,
        "num_prefill_requests": -(-prefill_tokens // PROMPT_TOKENS),
        "sum_prefill_kv_tokens": 0,
        "num_decode_requests": decoding,
        "sum_decode_kv_tokens": kv_tokens,
    }
    return float(model.estimate_forward_pass_time_ms({"scheduled_requests": scheduled})) / 1000


def is_mixture(model: str) -> bool:
    """Return whether a model is a mixture of experts; False where its configuration is not in the wheel."""
    config = resources.files("aisimulate_core") / "model_configs" / f"{model.replace('/', '--')}_config.json"
    return config.is_file() and "experts" in config.read_text(encoding="utf-8")


def answer(query: Mapping[str, Any]) -> dict[str, Any]:
    """Return KV tokens, how they were counted, versions and iterations (seconds, prefill, decoding, KV tokens)."""
    capacity = import_module("aisimulate.capacity")
    estimator = import_module("aisimulate_core.sdk.rust_engine_step").RustForwardPassPerfModel
    experts = {"moe_tp_size": 1, "moe_ep_size": query["tensor_parallel"]} if is_mixture(query["model"]) else {}
    cache_facts: dict[str, Any] = {}
    num_blocks = capacity.estimate_num_gpu_blocks(
        backend_name=query["engine"],
        system=query["hardware"],
        model_path=query["model"],
        tp_size=query["tensor_parallel"],
        block_size=query["block_size"],
        max_num_batched_tokens=query["max_batch_tokens"],
        max_num_sequences=query["max_running"],
        diagnostics=cache_facts,
        **experts,
    )
    model = estimator.best_available(
        {
            "model": query["model"],
            "system": query["hardware"],
            "backend": query["engine"],
            "worker_type": "aggregated",
            "tp": query["tensor_parallel"],
            "estimation_mode": "op_level",
            **experts,
        }
    )
    kv_tokens = num_blocks * query["block_size"]
    grid = cells(query["max_running"], query["max_batch_tokens"], kv_tokens)
    return {
        "kv_tokens": kv_tokens,
        "kv_bytes_per_token": cache_facts["kv_size_per_token_bytes"],
        "kv_dtype": cache_facts["kvcache_quant_mode"],
        "weights_bytes": cache_facts["memory_breakdown"]["weights_bytes"],
        "aisimulate": metadata.version("aisimulate"),
        "engine_version": model.diagnostics()["provenance"]["config"]["backend_version"],
        "iterations": [[seconds_of(model, *cell, apart=query["apart"]), *cell] for cell in grid],
    }


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
