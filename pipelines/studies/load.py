"""Load on a running `amin serve`.

    python -m pipelines.studies.load PROMPTS --requests 10000 --concurrency 8 --out load.json
    python -m pipelines.studies.load PROMPTS --overload 1,2,5 --out overload.json

A closed loop: each connection sends its next request when the last was answered. With `--rate` an open one: requests
come at random times, whatever becomes of those before, and their latency counts from then. `--overload` measures the
capacity by a closed loop and then offers multiples of it. Give server and load a core each, so that neither takes the
other's: `taskset -c 0 amin serve SERVING` and `taskset -c 1 python -m pipelines.studies.load ...`. On a machine with
other work, `--server-pid` counts seconds of the server's processor time, in which requests then come and are answered;
what is in time goes by the clock on the wall all the same.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.files import write_json
from pipelines.results import print_table
from pipelines.studies.load_client import Client
from pipelines.studies.processor_time import processor_seconds
from predictor.errors import InputError
from predictor.records.records import read_prompts

HISTOGRAM_MS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 75, 100, 200, 500, 1000)
NUM_WARM_UP = 500
MAX_CONNECTIONS = 400
LEAST_ASLEEP, MOST_ASLEEP = 0.001, 0.01
"""Seconds between two looks at a clock that may be slower than the wall's, and stands still while this client runs."""
Address = tuple[str, int]
Clock = Callable[[], float]


@dataclass(slots=True)
class Outcome:
    """What the requests came to: `latencies` of the answered ones in seconds, answers by reason, errors by kind."""

    latencies: list[float] = field(default_factory=list)
    in_time: list[float] = field(default_factory=list)
    """Latencies of those answers that were predicted."""
    answers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


async def send(client: Client, body: bytes, outcome: Outcome, start: float) -> None:
    """Send one body; its latency counts from `start`."""
    try:
        status, answer = await client.post("/v1/predict", body)
    except (OSError, EOFError) as error:  # a TimeoutError is an OSError
        outcome.errors[type(error).__name__] += 1
        return
    seconds = time.perf_counter() - start
    if status != 200:
        outcome.errors[f"status {status}"] += 1
        return
    outcome.latencies.append(seconds)
    reasons = [row["reason"] or row["source"] for row in json.loads(answer)["predictions"]]
    outcome.answers.update(reasons)
    if all(reason == "model" for reason in reasons):
        outcome.in_time.append(seconds)


async def _send_all(client: Client, bodies: Iterator[bytes], outcome: Outcome) -> None:
    for body in bodies:
        await send(client, body, outcome, time.perf_counter())


async def load(server: Address, bodies: Sequence[bytes], concurrency: int) -> Outcome:
    """Return the outcome of one request per body over `concurrency` connections, a closed loop."""
    outcome, waiting = Outcome(), iter(bodies)
    async with Client(*server, concurrency) as client:
        await asyncio.gather(*(_send_all(client, waiting, outcome) for _ in range(concurrency)))
    return outcome


async def open_load(
    server: Address, bodies: Sequence[bytes], rate: float, clock: Clock = time.perf_counter, seed: int = 0
) -> Outcome:
    """Return the outcome of one request per body at random times, `rate` a second of `clock` on average."""
    outcome, requests = Outcome(), set[asyncio.Task[None]]()
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, len(bodies)))
    async with Client(*server, MAX_CONNECTIONS) as client:
        begin = clock()
        for body, arrival in zip(bodies, arrivals, strict=True):
            while (left := begin + arrival - clock()) > 0:
                if clock is not time.perf_counter and not requests:  # an idle server's clock stands still
                    begin -= left
                    break
                await asyncio.sleep(max(LEAST_ASLEEP, min(left, MOST_ASLEEP)))
            task = asyncio.create_task(send(client, body, outcome, time.perf_counter() + min(left, 0.0)))
            requests.add(task)
            task.add_done_callback(requests.discard)
        await asyncio.gather(*requests)
    return outcome


def processor_clock(pid: int) -> Clock:
    """Return a clock of the processor seconds that a process has used; InputError where there is no such process."""
    if not processor_seconds([pid]):
        raise InputError(f"--server-pid {pid}: no such process")
    return lambda: processor_seconds([pid])


def summarize(outcome: Outcome, num_requests: int, concurrency: int, seconds: float) -> dict[str, Any]:
    """Return the figures of a run that took `seconds`; latencies in ms, null where nothing was answered."""
    ms = 1000 * np.asarray(outcome.latencies)
    quantiles = {f"p{100 * q:g}": float(np.quantile(ms, q)) if len(ms) else None for q in (0.5, 0.9, 0.99, 0.999)}
    counts, _ = np.histogram(ms, (0, *HISTOGRAM_MS, np.inf))
    return {
        "requests": num_requests,
        "concurrency": concurrency,
        "seconds": seconds,
        "requests_per_second": len(outcome.latencies) / seconds,
        "predicted_per_second": len(outcome.in_time) / seconds,
        "latency_ms": {**quantiles, "max": float(ms.max()) if len(ms) else None},
        "errors": dict(outcome.errors),
        "predicted": outcome.answers["model"],
        "fallbacks": {reason: count for reason, count in outcome.answers.items() if reason != "model"},
        "histogram_ms": {"edges": list(HISTOGRAM_MS), "counts": counts.tolist()},
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures of a run as tables."""
    latency = {name: "-" if value is None else f"{value:.1f}" for name, value in figures["latency_ms"].items()}
    counts = [figures["predicted"], sum(figures["fallbacks"].values()), sum(figures["errors"].values())]
    header = ["requests", "at a time", "per second", *(f"{name} ms" for name in latency), "predicted", "fallbacks"]
    row = [figures["requests"], figures["concurrency"], round(figures["requests_per_second"]), *latency.values()]
    print_table([*header, "errors"], [[str(value) for value in [*row, *counts]]])
    for name in ("fallbacks", "errors"):
        for reason, count in figures[name].items():
            print(f"{name}: {count} {reason}")
    print()
    edges = [0, *figures["histogram_ms"]["edges"], "..."]
    total = max(sum(figures["histogram_ms"]["counts"]), 1)
    rows = [
        [f"{low}-{high}", str(count), f"{100 * count / total:.1f} %", "#" * round(40 * count / total)]
        for low, high, count in zip(edges[:-1], edges[1:], figures["histogram_ms"]["counts"], strict=True)
    ]
    for ms, count, share, bar in [["ms", "requests", "share", ""], *rows]:
        print(f"{ms:<9}{count:>9}{share:>9}  {bar}".rstrip())


def overload(
    server: Address, bodies: Sequence[bytes], multiples: Sequence[float], args: argparse.Namespace, clock: Clock
) -> dict[str, Any]:
    """Return goodput, answers predicted and in time a second, at multiples of the capacity, and show it as a table."""
    # Without hurry: what is refused would be no part of the capacity, and still take time from it.
    patient = [json.dumps({**json.loads(body), "deadline_ms": 60_000}).encode() for body in bodies[: args.requests]]
    start = clock()
    closed = asyncio.run(load(server, patient, args.concurrency))
    capacity = len(closed.in_time) / (clock() - start)
    rows, figures = [], []
    for multiple in multiples:
        rate = multiple * capacity
        sent = [bodies[i % len(bodies)] for i in range(max(1, round(rate * args.seconds)))]
        start = clock()
        outcome = asyncio.run(open_load(server, sent, rate, clock))
        seconds = clock() - start
        in_time = sum(latency <= args.in_time_ms / 1000 for latency in outcome.in_time) / seconds
        figures.append({"offered": len(sent) / seconds, "goodput": in_time, "share_of_capacity": in_time / capacity})
        figures[-1] |= {"errors": dict(outcome.errors), "answers": dict(outcome.answers)}
        rows.append([f"{multiple:g}", f"{len(sent) / seconds:.0f}", f"{in_time:.0f}", f"{in_time / capacity:.2f}"])
        rows[-1].append(str(sum(outcome.errors.values())))
    print(f"capacity, {args.concurrency} at a time: {capacity:.0f} predicted a second")
    print_table(["times capacity", "offered/s", "in time/s", "of capacity", "errors"], rows)
    return {"capacity": capacity, "in_time_ms": args.in_time_ms, "loads": figures}


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and what it was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="JSONL or parquet with prompt or messages; sent again and again")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rate", type=float, help="requests a second, an open loop; default: a closed one")
    parser.add_argument("--overload", help="multiples of the capacity to offer, with commas; it is measured first")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each open loop of --overload (default 10)")
    parser.add_argument("--in-time-ms", type=float, default=110.0, help="what counts as in time (default 110)")
    parser.add_argument(
        "--server-pid", type=int, help="with --overload: count seconds of this process's processor time"
    )
    parser.add_argument("--model", help="served model to predict for; default: the server's")
    parser.add_argument("--deadline-ms", type=float, help="default: the server's")
    parser.add_argument("--split", help="only the prompts of this split")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    args = parser.parse_args()
    if args.requests < 1 or args.concurrency < 1:
        parser.error(f"--requests {args.requests} and --concurrency {args.concurrency}: must be at least 1")
    if args.rate is not None and not 0 < args.rate < 1e6:
        parser.error(f"--rate {args.rate}: must be above 0")
    return parser, args


def main() -> None:
    """Run the load, print what came of it, and end with 1 where a request was not answered, 2 for bad input."""
    parser, args = parse()
    options = {"model": args.model, "deadline_ms": args.deadline_ms}
    try:
        multiples = [float(value) for value in args.overload.split(",")] if args.overload else []
        prompts = [row.prompt for row in read_prompts(args.prompts, split=args.split)]
        clock = time.perf_counter if args.server_pid is None else processor_clock(args.server_pid)
    except (InputError, ValueError) as error:
        parser.error(str(error))
    bodies = [json.dumps({"prompt": prompt, **options}).encode() for prompt in prompts]
    bodies *= -(-args.requests // len(bodies))
    server = (args.host, args.port)
    asyncio.run(load(server, bodies[:NUM_WARM_UP], args.concurrency))
    if multiples:
        figures = overload(server, bodies, multiples, args, clock)
        has_errors = any(each["errors"] for each in figures["loads"])
    else:
        start = time.perf_counter()
        bodies = bodies[: args.requests]
        loaded = load(server, bodies, args.concurrency) if args.rate is None else open_load(server, bodies, args.rate)
        outcome = asyncio.run(loaded)
        figures = summarize(outcome, args.requests, args.concurrency, time.perf_counter() - start)
        show(figures)
        has_errors = bool(outcome.errors)
    if args.out is not None:
        write_json(args.out, figures)
    sys.exit(1 if has_errors else 0)


if __name__ == "__main__":
    main()
