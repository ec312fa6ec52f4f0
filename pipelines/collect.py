"""Collect output lengths: real sampled answers of the served model to each prompt, several draws each."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.files import atomic_file
from predictor.errors import InputError

if TYPE_CHECKING:
    from pipelines.served_model import ServedModel
    from scheduler.integrations.transformers_engine import Output

HELP = "generate answers with the served model and record their lengths"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--served-model", required=True, help="folder or hub name of a causal language model")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL or parquet with prompt or messages")
    parser.add_argument("--draws", type=int, default=4, help="sampled answers per prompt")
    parser.add_argument(
        "--max-new-tokens", type=int, default=512, help="cap of an answer in tokens; a cut one is censored"
    )
    parser.add_argument("--split", help="only the prompts of this split")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--max-running", type=int, default=32, help="answers generated at a time")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--out", type=Path, required=True, help="records (parquet); an interrupted call continues")


def run(args: argparse.Namespace) -> None:
    """Collect the draws that are missing and write the records when all are there."""
    from predictor.records import read_prompts

    for name in ("draws", "max_new_tokens", "max_running"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, must be >= 1")
    rows = read_prompts(args.prompts, split=args.split)[: args.limit]
    if not rows:
        raise InputError(f"{args.prompts}: --limit {args.limit} leaves no prompt")

    from pipelines.served_model import encode_prompts, load_served_model

    served = load_served_model(args.served_model, args.max_new_tokens, args.device)
    prompts = encode_prompts(served, [row.prompt for row in rows], args.prompts)
    partial = Draws(args.out.with_name(args.out.name + ".partial.jsonl"), _settings(args, [row.prompt for row in rows]))
    with partial:
        _collect_missing(args, served, prompts, partial)
    _write(args, rows, [len(p) for p in prompts], served.name, partial)
    partial.path.unlink()


def _collect_missing(
    args: argparse.Namespace, served: "ServedModel", prompts: list[list[int]], partial: "Draws"
) -> None:
    from pipelines.served_model import generate

    todo = [(i, d) for d in range(args.draws) for i in range(len(prompts)) if (i, d) not in partial.done]
    if partial.done:
        print(f"continuing: {len(partial.done)} of {len(prompts) * args.draws} answers are there")

    def keep(position: int, output: "Output") -> None:
        partial.add(*todo[position], len(output.tokens), output.is_truncated)

    if todo:
        generate(
            served,
            [prompts[i] for i, _ in todo],
            max_running=args.max_running,
            seed=args.seed + len(partial.done),  # a continued run must not repeat the draws it has
            description="collect",
            on_output=keep,
        )


class Draws:
    """The answers so far, in a file that survives an interruption."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Read what is there; InputError where it was made with other settings."""
        self.path = path
        self.done: dict[tuple[int, int], tuple[int, bool]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        if lines and json.loads(lines[0]) != settings:
            raise InputError(f"{path}: holds answers made with other settings; remove it or use another --out")
        complete = []
        for line in lines[1:]:
            if not line.endswith("]"):
                break  # the write that an interruption cut off
            prompt, draw, length, is_truncated = json.loads(line)
            self.done[prompt, draw] = (length, is_truncated)
            complete.append(line)
        with atomic_file(path) as aside:
            aside.write_text("".join(line + "\n" for line in [json.dumps(settings), *complete]))
        self._file = path.open("a")

    def __enter__(self) -> "Draws":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, prompt: int, draw: int, length: int, is_truncated: bool) -> None:
        """Keep one answer."""
        self.done[prompt, draw] = (length, is_truncated)
        self._file.write(json.dumps([prompt, draw, length, is_truncated]) + "\n")
        self._file.flush()


def _settings(args: argparse.Namespace, prompts: list[str]) -> dict[str, Any]:
    digest = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
    return {
        "served_model": args.served_model,
        "prompts": digest,
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
    }


def _write(args: argparse.Namespace, rows: list[Any], num_prompt_tokens: list[int], model: str, draws: Draws) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from predictor.metrics import between_prompt_share

    kept = [[draws.done[i, d] for d in range(args.draws)] for i in range(len(rows))]
    columns: dict[str, Any] = {
        "prompt_id": [row.prompt_id for row in rows],
        "dataset": [row.dataset for row in rows],
        "model": [model] * len(rows),
        "prompt": [row.prompt for row in rows],
        "num_prompt_tokens": num_prompt_tokens,
        "output_lens": [[length for length, _ in draw] for draw in kept],
        "is_truncated": [[is_truncated for _, is_truncated in draw] for draw in kept],
        "max_new_tokens": [args.max_new_tokens] * len(rows),
    }
    if all(row.split for row in rows):
        columns["split"] = [row.split for row in rows]
    with atomic_file(args.out) as aside:
        pq.write_table(pa.table(columns), aside)
    lengths = [np.array([length for length, _ in draw]) for draw in kept]
    cut = np.mean([is_truncated for draw in kept for _, is_truncated in draw])
    share = between_prompt_share(lengths)
    print(
        f"{args.out}: {len(rows)} prompts x {args.draws} draws, mean length {np.mean(lengths):.0f} tokens, "
        f"{cut:.1%} cut at {args.max_new_tokens}"
        + ("" if share is None else f", {share:.0%} of the variance of log length is between prompts")
    )
