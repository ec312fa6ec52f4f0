"""Does the attention of each request over its own keys work on this device, and what does an iteration take?

    python -m pipelines.studies.gpu.check --out attention.json

Eight bundled prompts are answered greedily twice: as `amin evaluate` runs the model, and with stock attention without
CUDA graphs. Rounding lets likeliest tokens differ, so each token is judged by a plain forward pass over prompt and
answer: how far it is below the likeliest one there. A wrong mask or a stale length is far below; rounding is not. On a
GPU the iteration of 64 running requests of 400 tokens is timed, too.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.files import write_json
from pipelines.served_model.chats import chat_of
from pipelines.served_model.loading import ServedModel, encode_chats, load_served_model
from pipelines.studies.iteration_time import Setting, decoding_engine
from predictor.records.rows import read_rows
from scheduler.integrations.transformers_attention import STOCK
from scheduler.integrations.transformers_engine import Engine
from scheduler.kv_cache import KvCache

PROMPTS = Path(__file__).parents[3] / "checkpoints" / "prompts.jsonl"
NUM_PROMPTS = 8
NUM_NEW = 32
BATCH_TOKENS = 128
"""So few that long prompts are prefilled in parts."""
ROUNDING = 0.5
"""Logits that half precision explains; what the stock attention itself is off by explains twice that."""
TIMED = Setting("64 of 400 tokens, greedy", 64, (400, 400))
NUM_TIMED = 40


@dataclass(frozen=True, slots=True)
class Answers:
    """What one attention made of the prompts.

    Attributes:
        attention: In words.
        tokens: Of each answer.
        most_below: Logits by which one of them is below the likeliest token of a plain forward pass, at most.
        milliseconds: An iteration of `TIMED`, the median; None on a CPU.
    """

    attention: str
    tokens: list[list[int]]
    most_below: float
    milliseconds: float | None


def check(served: ServedModel, prompts: Sequence[list[int]]) -> tuple[Answers, Answers]:
    """Return the answers of our attention and of the stock one."""
    ours = _answers(served, prompts, use_graphs=True)
    with stock_attention():
        return ours, _answers(served, prompts, use_graphs=False)


def is_right(ours: Answers, stock: Answers) -> bool:
    """Return whether rounding explains all tokens of ours; no comparison with a NaN is true."""
    return ours.most_below <= max(ROUNDING, 2 * stock.most_below)


@contextmanager
def stock_attention() -> Iterator[None]:
    """Leave engines that are made meanwhile their stock attention."""
    before = os.environ.get(STOCK)
    os.environ[STOCK] = "1"
    try:
        yield
    finally:
        del os.environ[STOCK]
        if before is not None:
            os.environ[STOCK] = before


def _answers(served: ServedModel, prompts: Sequence[list[int]], *, use_graphs: bool) -> Answers:
    num_blocks = sum(-(-(len(prompt) + NUM_NEW) // 16) + 1 for prompt in prompts)
    engine = Engine(
        served.model,
        KvCache(num_blocks, 16),
        served.generation_config,
        max_batch_tokens=BATCH_TOKENS,
        is_forced=True,
        seed=0,
        safety_margin=0.0,
        use_graphs=use_graphs,
    )
    try:
        states = [engine.state(index, prompt, NUM_NEW) for index, prompt in enumerate(prompts)]
        for state in states:
            engine.queues.add_waiting_request(state)
        while engine.queues.active_requests or engine.queues.waiting_requests:
            engine.prepare()
            engine.forward()
        tokens = [engine.output(state, len(prompt)).tokens for state, prompt in zip(states, prompts, strict=True)]
        attention = engine.attention
    finally:
        engine.close()
    return Answers(attention, tokens, _most_below(served, prompts, tokens), _timed(served, use_graphs))


def _most_below(served: ServedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> float:
    """Return the most that a token is below the likeliest one, NaN if a logit is none."""
    most = []
    for prompt, answer in zip(prompts, answers, strict=True):
        read = torch.tensor([[*prompt, *answer[:-1]]], device=served.model.device)
        with torch.no_grad():
            logits = served.model(read, use_cache=False).logits[0, len(prompt) - 1 :].float()
        chosen = torch.tensor(answer, device=logits.device)[:, None]
        most.append(float((logits.amax(-1) - logits.gather(1, chosen)[:, 0]).max()))
    return float(np.max(most))


def _timed(served: ServedModel, use_graphs: bool) -> float | None:
    if served.model.device.type == "cpu":
        return None
    engine = decoding_engine(served, TIMED, use_graphs=use_graphs)
    taken = []
    try:
        for _ in range(NUM_TIMED):
            started = time.perf_counter()
            engine.prepare()
            engine.forward()
            taken.append(time.perf_counter() - started)
    finally:
        engine.close()
    return 1e3 * float(np.median(taken))


def main() -> None:
    """Parse the command line and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--served-model", default="smollm2", help="(default smollm2)")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    served = load_served_model(args.served_model, NUM_NEW)
    rows = read_rows(PROMPTS, one_model=False)[:NUM_PROMPTS]
    prompts = encode_chats(served, [chat_of(row) for row in rows], PROMPTS)
    ours, stock = check(served, prompts)
    same = sum(mine == other for mine, other in zip(ours.tokens, stock.tokens, strict=True))
    result = {"is_right": is_right(ours, stock), "same_answers": same, "ours": asdict(ours), "stock": asdict(stock)}
    write_json(args.out, result)


if __name__ == "__main__":
    main()
