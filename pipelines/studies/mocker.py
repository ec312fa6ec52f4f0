"""Replays a trace on NVIDIA Dynamo's mocker; runs in an environment of its own, where the product is not installed."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any


def with_own_blocks(trace: Path, block_size: int) -> Iterator[dict[str, Any]]:
    """Yield the requests of a trace, each with block hashes that no other has, so that nothing is shared."""
    next_id = 0
    for line in trace.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        blocks = -(-row["input_length"] // block_size)
        yield {**row, "hash_ids": list(range(next_id, next_id + blocks))}
        next_id += blocks


def main() -> None:
    """Replay the trace and print the figures as JSON; times in seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, help="JSONL: timestamp (ms), input_length, output_length")
    parser.add_argument("--engine", choices=["vllm", "sglang", "trtllm"], required=True)
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument("--block-size", type=int, required=True)
    parser.add_argument(
        "--iteration-ms", type=float, default=10.0, help="of an iteration that decodes; prefill is free"
    )
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    os.environ.setdefault("DYN_LOG", "error")
    import dynamo._core as core  # type: ignore[import-not-found]

    engine = {
        "backend": args.engine,
        "num_gpu_blocks": args.blocks,
        "block_size": args.block_size,
        "max_num_seqs": 100_000,
        "max_num_batched_tokens": 1_000_000,
        "enable_prefix_caching": False,
        "speedup_ratio": 1.0,
        "timing_model": {"type": "fixed", "prefill_ms": 0.0, "decode_ms": args.iteration_ms},
    }
    config = core._normalize_mocker_config({"engine": engine})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in with_own_blocks(args.trace, args.block_size)))
        options = {"extra_engine_args": config, "trace_block_size": args.block_size}
        seconds = []
        for _ in range(args.repeats):
            started = time.process_time()
            summary = core.run_mocker_trace_replay([str(path)], **options).summary
            seconds.append(time.process_time() - started)
        # Not timed: records of every request, which count the readmissions, slow a replay down.
        records = core.run_mocker_trace_replay([str(path)], capture_per_request=True, **options).per_request
    figures = {
        "seconds": seconds,
        "tokens_per_second": summary["total_output_tokens"] / sorted(seconds)[len(seconds) // 2],
        "completed": summary["completed_requests"],
        "makespan": summary["duration_ms"] / 1e3,
        "mean_latency": summary["mean_e2e_latency_ms"] / 1e3,
        "num_preemptions": sum(record["readmission_count"] or 0 for record in records),
        "version": metadata.version("ai-dynamo-runtime"),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
