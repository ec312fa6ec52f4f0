"""Load on a running `amin serve`.

    python -m pipelines.studies.load PROMPTS --requests 10000 --concurrency 8 --out load.json

A closed loop: each connection sends its next request when the last was answered. It takes its share of the cores: run
it on others than the server where there are some.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.files import write_json
from pipelines.results import print_table
from predictor.errors import InputError
from predictor.records.records import read_prompts

HISTOGRAM_MS = (1, 2, 5, 10, 15, 20, 30, 40, 50, 75, 100, 200, 500, 1000)
NUM_WARM_UP = 100
# Beyond any time limit that the server keeps: an answer that takes longer is lost.
PATIENCE = 60.0


@dataclass(slots=True)
class Outcome:
    """What the requests came to: `latencies` of the answered ones in seconds, answers by reason, errors by kind."""

    latencies: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


class Connection:
    """One kept-alive HTTP connection, opened again after an error."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to a JSON body; OSError, EOFError or ValueError where none came."""
        try:
            async with asyncio.timeout(PATIENCE):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._host, self._port)
                reader, writer = self._streams
                head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                status, *fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                headers = dict(line.split(b": ", 1) for line in fields if line)
                answer = await reader.readexactly(int(headers[b"content-length"]))
        except (OSError, EOFError, ValueError, KeyError):
            self.close()
            raise
        if headers.get(b"connection") == b"close":
            self.close()
        return int(status.split()[1]), answer

    def close(self) -> None:
        """Close it; the next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def send(connection: Connection, bodies: Iterator[bytes], outcome: Outcome) -> None:
    """Send bodies one after the other until none is left."""
    for body in bodies:
        start = time.perf_counter()
        try:
            status, answer = await connection.post("/v1/predict", body)
        except (OSError, EOFError, ValueError, KeyError) as error:
            outcome.errors[type(error).__name__] += 1
            continue
        seconds = time.perf_counter() - start
        if status != 200:
            outcome.errors[f"status {status}"] += 1
            continue
        outcome.latencies.append(seconds)
        outcome.answers.update(row["reason"] or row["source"] for row in json.loads(answer)["predictions"])
    connection.close()


async def load(host: str, port: int, bodies: Sequence[bytes], concurrency: int) -> Outcome:
    """Return the outcome of one request per body over `concurrency` connections."""
    outcome, waiting = Outcome(), iter(bodies)
    await asyncio.gather(*(send(Connection(host, port), waiting, outcome) for _ in range(concurrency)))
    return outcome


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


def main() -> None:
    """Run the load, print what came of it, and end with 1 where a request was not answered, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="JSONL or parquet with prompt or messages; sent again and again")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--model", help="served model to predict for; default: the server's")
    parser.add_argument("--deadline-ms", type=float, help="default: the server's")
    parser.add_argument("--split", help="only the prompts of this split")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    args = parser.parse_args()
    if args.requests < 1 or args.concurrency < 1:
        parser.error(f"--requests {args.requests} and --concurrency {args.concurrency}: must be at least 1")
    options = {"model": args.model, "deadline_ms": args.deadline_ms}
    try:
        prompts = [row.prompt for row in read_prompts(args.prompts, split=args.split)]
    except InputError as error:
        parser.error(str(error))
    bodies = [json.dumps({"prompt": prompt, **options}).encode() for prompt in prompts]
    bodies *= -(-args.requests // len(bodies))
    asyncio.run(load(args.host, args.port, bodies[:NUM_WARM_UP], args.concurrency))
    start = time.perf_counter()
    outcome = asyncio.run(load(args.host, args.port, bodies[: args.requests], args.concurrency))
    figures = summarize(outcome, args.requests, args.concurrency, time.perf_counter() - start)
    show(figures)
    if args.out is not None:
        write_json(args.out, figures)
    sys.exit(1 if outcome.errors else 0)


if __name__ == "__main__":
    main()
