"""What an iteration of the engine costs on top of the model's own forward pass on as many tokens.

    python -m pipelines.studies.iteration_time --out iteration_time.json

One thread. Iterations of all cases and dense forward passes take turns, so that a machine that slows down slows all of
them; the table has medians of the processor time and their ratios. Forward passes are dense: each token attends to
itself and those before it among as many as the batch has.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.files import write_json
from pipelines.served_model.loading import ServedModel, load_served_model
from scheduler.integrations.transformers_engine import Engine
from scheduler.kv_cache import KvCache


@dataclass(frozen=True, slots=True)
class Setting:
    """Requests that run, their tokens at the start, and how tokens are chosen.

    Attributes:
        name: In the table.
        num_running: Requests.
        num_tokens: Of each, from and to.
        top_p: Of sampling; None for the likeliest token.
    """

    name: str
    num_running: int
    num_tokens: tuple[int, int]
    top_p: float | None = None


SETTINGS = (
    Setting("64 of 64 to 90 tokens, greedy", 64, (64, 90)),
    Setting("64 of 64 to 90 tokens, top_p 0.95", 64, (64, 90), 0.95),
    Setting("64 of 64 to 90 tokens, top_p 1", 64, (64, 90), 1.0),
    Setting("32 of 70 tokens, greedy", 32, (70, 70)),
    Setting("32 of 800 tokens, greedy", 32, (800, 800)),
)


def decoding_engine(served: ServedModel, setting: Setting, *, use_graphs: bool = True) -> Engine:
    """Return an engine whose requests have all been prefilled; on a GPU with or without CUDA graphs."""
    rng = np.random.default_rng(0)
    generation_config = served.generation_config
    generation_config.do_sample = setting.top_p is not None
    generation_config.temperature, generation_config.top_p = (0.7, setting.top_p) if setting.top_p else (None, None)
    generation_config.top_k = 0 if setting.top_p else None
    pages = setting.num_running * (setting.num_tokens[1] // 16 + 4)
    engine = Engine(
        served.model,
        KvCache(pages, 16),
        generation_config,
        max_batch_tokens=512,
        is_forced=False,
        seed=0,
        safety_margin=0.0,
        use_graphs=use_graphs,
    )
    sizes = rng.integers(setting.num_tokens[0], setting.num_tokens[1] + 1, setting.num_running)
    for index, size in enumerate(sizes.tolist()):
        prompt = rng.integers(5, len(served.tokenizer), size).tolist()
        engine.queues.add_waiting_request(engine.state(index, prompt, 1 << 20))
    while engine.prepare():
        engine.forward()
    engine.forward()
    return engine


def time_steps(steps: dict[str, Callable[[], None]], num_rounds: int) -> dict[str, float]:
    """Return the median milliseconds of processor time of each step, all of them once a round."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(num_rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            taken[name].append(time.process_time() - started)
    return {name: 1e3 * float(np.median(each)) for name, each in taken.items()}


def study(served: ServedModel, num_rounds: int) -> list[dict[str, Any]]:
    """Return a row for each setting: milliseconds, those of the dense forward pass, and their ratio."""
    rows = []
    for setting in SETTINGS:
        tokens = torch.arange(setting.num_running)[None]
        engine = decoding_engine(served, setting)

        def iterate(engine: Engine = engine) -> None:
            engine.prepare()
            engine.forward()

        def dense(tokens: torch.Tensor = tokens) -> None:
            with torch.no_grad():
                served.model(tokens, use_cache=False)

        taken = time_steps({"iteration": iterate, "dense": dense}, num_rounds)
        engine.close()
        ratio = taken["iteration"] / taken["dense"]
        rows.append({"setting": setting.name, **taken, "ratio": ratio})
        print(f"{setting.name:40} {taken['iteration']:8.1f} {taken['dense']:8.1f} {ratio:8.2f}", flush=True)
    return rows


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--served-model", default="smollm2", help="(default smollm2)")
    parser.add_argument("--rounds", type=int, default=9, help="iterations of each setting (default 9)")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    served = load_served_model(args.served_model, 1024, "cpu")
    print(f"{'setting':40} {'ms':>8} {'dense ms':>8} {'ratio':>8}   {served.model.dtype}, one thread")
    rows = study(served, args.rounds)
    if args.out:
        write_json(args.out, {"dtype": str(served.model.dtype), "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
