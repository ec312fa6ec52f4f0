"""Collect output lengths: real sampled answers of the served model to each prompt, several draws each."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.files import atomic_file
from pipelines.options import require_at_least
from predictor.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipelines.served_model import ServedModel, Snapshot
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
    parser.add_argument("--model", help="served model whose rows of --prompts are read, where they name several")
    parser.add_argument("--split", help="only the prompts of this split")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--max-running", type=int, default=32, help="answers generated at a time")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the served model brings; read it first"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--out", type=Path, required=True, help="records (parquet); an interrupted call continues")


def run(args: argparse.Namespace) -> None:
    """Collect the draws that are missing and write the records when all are there."""
    from predictor.records.records import read_prompts

    require_at_least(args, 1, "draws", "max_new_tokens", "max_running", "limit")
    require_at_least(args, 0, "seed")
    rows = read_prompts(args.prompts, args.model, args.split)[: args.limit]
    if not rows:
        raise InputError(f"{args.prompts}: --limit {args.limit} leaves no prompt")

    from pipelines.served_model import encode_prompts, load_served_model

    served = load_served_model(
        args.served_model, args.max_new_tokens, args.device, trust_remote_code=args.trust_remote_code
    )
    prompts = encode_prompts(served, [row.prompt for row in rows], args.prompts)
    partial = Draws(args.out.with_name(args.out.name + ".partial.json"), _settings(args, [row.prompt for row in rows]))
    _collect_missing(args, served, prompts, partial)
    _write(args, rows, [len(p) for p in prompts], served.name, partial)
    partial.path.unlink(missing_ok=True)


def _collect_missing(
    args: argparse.Namespace, served: "ServedModel", prompts: list[list[int]], partial: "Draws"
) -> None:
    from pipelines.served_model import device_memory, generate

    todo = [(i, d) for d in range(args.draws) for i in range(len(prompts)) if (i, d) not in partial.ended]
    begun = [partial.begun.get(key, []) for key in todo]
    ended_before, begun_before = partial.ended, partial.begun
    if ended_before or begun_before:
        total = len(prompts) * args.draws
        print(f"continuing: {len(ended_before)} of {total} answers are there, {len(begun_before)} begun")

    def ended(outputs: "Mapping[int, Output]") -> dict[tuple[int, int], tuple[int, bool]]:
        new = {todo[k]: (len(begun[k]) + len(out.tokens), out.is_truncated) for k, out in outputs.items()}
        return {**ended_before, **new}

    def keep(snapshot: "Snapshot") -> None:
        done = ended(snapshot.ended)
        going_on = {todo[k]: [*begun[k], *new] for k, new in snapshot.begun.items()}
        not_yet = {key: tokens for key, tokens in begun_before.items() if key not in done}
        partial.keep(done, {**not_yet, **going_on})

    if todo:
        with device_memory("lower --max-running or --max-new-tokens"):
            outputs = generate(
                served,
                [prompts[i] for i, _ in todo],
                max_running=args.max_running,
                seed=args.seed + partial.num_tokens,  # a continued run must not repeat the draws it has
                description="collect",
                begun=begun,
                on_snapshot=keep,
            )
        partial.keep(ended(dict(enumerate(outputs))), {})


class Draws:
    """The answers so far, ended and begun, in a file that survives an interruption."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Read what is there; InputError where it was made with other settings or is damaged."""
        self.path, self._settings = path, settings
        self.ended: dict[tuple[int, int], tuple[int, bool]] = {}
        """Length in tokens and whether it was cut, by prompt and draw."""
        self.begun: dict[tuple[int, int], list[int]] = {}
        """Tokens so far, by prompt and draw."""
        if not path.exists():
            return
        remedy = "remove it or use another --out"
        try:
            there = json.loads(path.read_bytes())
            self.ended = {(i, d): (int(length), bool(is_cut)) for i, d, length, is_cut in there["ended"]}
            self.begun = {(i, d): list(map(int, tokens)) for i, d, tokens in there["begun"]}
            is_same = there["settings"] == settings
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: damaged ({' '.join(str(error).split())}); {remedy}") from None
        if not is_same:
            raise InputError(f"{path}: holds answers made with other settings; {remedy}")

    @property
    def num_tokens(self) -> int:
        """How many tokens there are."""
        return sum(length for length, _ in self.ended.values()) + sum(map(len, self.begun.values()))

    def keep(self, ended: dict[tuple[int, int], tuple[int, bool]], begun: dict[tuple[int, int], list[int]]) -> None:
        """Take what there is at one moment in place of what there was."""
        self.ended, self.begun = ended, begun
        value = {
            "settings": self._settings,
            "ended": [[*key, *answer] for key, answer in ended.items()],
            "begun": [[*key, tokens] for key, tokens in begun.items()],
        }
        with atomic_file(self.path) as aside:
            aside.write_text(json.dumps(value))


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

    from predictor.bounds.metrics import between_prompt_share

    kept = [[draws.ended[i, d] for d in range(args.draws)] for i in range(len(rows))]
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
