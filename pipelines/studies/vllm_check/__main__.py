"""Asks vLLM's own scheduler and ours the same by HTTP, and writes one table.

    make .venv-vllm/installed
    .venv/bin/python -m pipelines.studies.vllm_check --out runs/vllm

One server a scheduler, each on the same few blocks of KV cache, prefix caching on. They are asked in turn: the same
requests at once and by Poisson arrivals at shares of the rate at which vLLM's own scheduler served all at once, with a
common system prompt, and with `max_tokens` that differ. In single precision, so that a draw with the same seed is the
same under every scheduler but for ties in the last digit. Times are given in seconds and in processor seconds of the
server, which other work on the machine does not move; arrivals go by the latter. Finished runs are kept, and the same
command goes on.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from pipelines.evaluate.endpoint.figures import answered, run_figures
from pipelines.served_model.chats import chat_of
from pipelines.served_model.gguf import bundled_file, converted
from pipelines.studies.vllm_check.cells import ALL, Cell, Check, Measured
from pipelines.studies.vllm_check.servers import BLOCK_SIZE, OWN, ROOT, WITH_PROBE, Options, VllmServer, running_server
from pipelines.studies.vllm_check.table import report
from predictor.records.records import select_rows
from scheduler.metrics import Targets


def check(args: argparse.Namespace) -> None:
    """Start the servers and measure seed by seed, cell by cell; the table is written after each cell."""
    options = Options(
        model=args.model or converted(bundled_file(), torch.float32),
        num_blocks=args.num_blocks,
        max_model_len=args.max_model_len,
        predictor=args.predictor,
        predictor_model=args.predictor_model,
        probe=args.probe,
        timeout=args.timeout,
        python=args.vllm_python,
        out=args.out / "servers",
    )
    chats = [chat_of(row) for row in select_rows(args.prompts, None, args.split)[: args.num_requests]]
    unshared = ("out", "python") if args.probe else ("out", "python", "probe")
    shared = {name: str(value) for name, value in asdict(options).items() if name not in unshared}
    every = Check(args.out, args.prompts, chats, args.max_new_tokens, args.temperature, shared)
    cells = [cell for cell in ALL if cell is ALL[0] or cell.name in args.cells]
    found: dict[str, list[Measured]] = {cell.name: [] for cell in cells}
    capacity: float | None = None
    with ExitStack() as running:
        names = [OWN, *args.policies, *(policy + WITH_PROBE for policy in args.policies if args.probe)]
        servers = [running.enter_context(running_server(options, name)) for name in names]
        for seed in range(args.seed, args.seed + args.seeds):
            for k, cell in enumerate(cells):
                first = (seed - args.seed + k) % len(servers)  # who begins alternates
                found[cell.name] += measured(every, cell, servers[first:] + servers[:first], seed, capacity)
                capacity = capacity or requests_per_second(found[ALL[0].name])
                write_table(args.out / "table.md", found)


def measured(
    every: Check, cell: Cell, servers: Sequence[VllmServer], seed: int, capacity: float | None
) -> list[Measured]:
    """Return the runs of a cell and seed, one a server, in this order; those made that are not there."""
    planned = cell.planned(len(every.chats), seed, capacity)
    return [
        every.load(cell, server.name, seed, planned) or every.measure(cell, server, seed, planned) for server in servers
    ]


def requests_per_second(at_once: Sequence[Measured]) -> float:
    """Return the rate at which vLLM's own scheduler served its first run, by the server's processor time."""
    run = next(each.in_processor_time for each in at_once if each.run.server == OWN)
    figures = run_figures(run, answered(run), 0, Targets())
    rate: float = figures["requests_per_second"]
    return rate


def write_table(path: Path, found: dict[str, list[Measured]]) -> None:
    """Write and print what has been measured."""
    text = report({name: runs for name, runs in found.items() if runs})
    path.write_text(text, "utf-8")
    print(text, flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.studies.vllm_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a folder that vLLM reads; default: the bundled SmolLM2 in float32")
    parser.add_argument("--prompts", type=Path, default=ROOT / "checkpoints/records.parquet")
    parser.add_argument("--split", default="test", help="only these prompts, which the predictor has not seen")
    parser.add_argument("--predictor", type=Path, default=ROOT / "checkpoints/length-predictor-small")
    parser.add_argument("--predictor-model", help="served model that it predicts for; default: the predictor's own")
    parser.add_argument("--policies", nargs="+", default=["amin-survival", "amin"])
    parser.add_argument("--probe", type=Path, help="of the model: each policy is served once more, with it")
    parser.add_argument("--cells", nargs="+", default=[cell.name for cell in ALL], choices=[cell.name for cell in ALL])
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds that a request waits for its prediction")
    parser.add_argument("--num-requests", type=int, default=48)
    parser.add_argument("--num-blocks", type=int, default=60, help=f"of {BLOCK_SIZE} tokens")
    parser.add_argument("--max-new-tokens", type=int, default=384)
    parser.add_argument("--max-model-len", type=int, default=1024, help="must fit into the blocks")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm/bin/python")
    args = parser.parse_args(argv)
    for name in ("out", "model", "prompts", "predictor", "probe", "vllm_python"):  # servers run in another folder
        if (path := getattr(args, name)) is not None:
            setattr(args, name, path.absolute())
    return args


if __name__ == "__main__":
    check(parse())
