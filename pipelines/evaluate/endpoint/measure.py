"""One run against one server: every request sent at its time, its answer timed as it streams."""

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import aiohttp
import numpy as np
from tqdm import tqdm

from pipelines.collect.asking import Chat, chat_request, one_line, open_session, problem_of
from pipelines.collect.stream import Reply, read_reply
from pipelines.settings.evaluate import EvaluateSettings
from predictor.errors import InputError
from scheduler.simulation.arrivals import arrival_times


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its name in the results ("a" or "b"), its address, and the model's name there."""

    name: str
    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Planned:
    """A request of a run, the same for every server.

    Attributes:
        prompt: Place of its prompt in the file, from 0.
        arrival_time: Seconds from the start.
        seed: Of its draw.
        max_new_tokens: A cap of its own; None takes that of the run.
    """

    prompt: int
    arrival_time: float
    seed: int
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a request; times in seconds from the start of the run.

    Attributes:
        prompt: Place of its prompt in the file, from 0.
        arrival_time: When it was due. Latencies count from here.
        send_delay: Seconds that this client was late.
        first_token_time: When the first text came, NaN where none did.
        finish_time: When the answer ended, or failed.
        output_len: Tokens as the server counts them; of a failed answer, pieces that came.
        num_prompt_tokens: As the server counts them.
        is_cut: Whether the cap ended it.
        answer: Hash of its text, to compare by.
        error: Why it failed, "" where it did not.
    """

    prompt: int
    arrival_time: float
    send_delay: float
    first_token_time: float
    finish_time: float
    output_len: int
    num_prompt_tokens: int
    is_cut: bool
    answer: str
    error: str


@dataclass(frozen=True, slots=True)
class ServerRun:
    """One run: a server's name, the seed, and the requests in order of arrival."""

    server: str
    seed: int
    requests: Sequence[Sent]


def plan(arrivals: str, num_prompts: int, seed: int) -> list[Planned]:
    """Return the requests of the runs with this seed: every prompt once, in random order, the first at 0 seconds.

    Raises:
        InputError: `arrivals` is malformed, or its file has too few times.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(num_prompts).tolist()
    draws = rng.integers(2**31, size=num_prompts).tolist()
    times = arrival_times(arrivals, num_prompts, rng)
    return [Planned(*each) for each in zip(order, (times - times[0]).tolist(), draws, strict=True)]


Wait = Callable[[float, Callable[[], bool]], Awaitable[None]]
"""Returns when a request is due at so many seconds; the function says whether no other one is in flight."""


async def measure(
    server: Server,
    seed: int,
    planned: Sequence[Planned],
    chats: Sequence[Chat],
    settings: EvaluateSettings,
    wait: Wait | None = None,
) -> ServerRun:
    """Return what became of every request; a failed one is not tried again.

    Requests are sent by this machine's clock, or by that of `wait`; their arrival then is when they were sent.
    """
    cap, sampling = settings.max_new_tokens, settings.sampling.given
    bodies = [
        json.dumps(
            chat_request(server.model, chats[each.prompt], each.max_new_tokens or cap, each.seed, sampling)
        ).encode()
        for each in planned
    ]  # before the clock runs
    with tqdm(total=len(planned), desc=f"{server.name}, seed {seed}", unit="request") as bar:
        async with open_session(settings.servers.api_key_env, settings.servers.timeout) as session:
            start, tasks = time.perf_counter(), list[asyncio.Task[Sent]]()
            async with asyncio.TaskGroup() as group:
                for each, body in zip(planned, bodies, strict=True):
                    if wait is not None:
                        await wait(each.arrival_time, lambda: all(task.done() for task in tasks))
                        each = replace(each, arrival_time=time.perf_counter() - start)
                    elif (left := start + each.arrival_time - time.perf_counter()) > 0:
                        await asyncio.sleep(left)
                    task = group.create_task(_send(session, server, each, body, start))
                    task.add_done_callback(lambda _: bar.update())
                    tasks.append(task)
    return ServerRun(server.name, seed, [task.result() for task in tasks])


async def _send(session: aiohttp.ClientSession, server: Server, planned: Planned, body: bytes, start: float) -> Sent:
    reply, error, sent = Reply(), "", time.perf_counter() - start
    headers = {"Content-Type": "application/json"}
    try:
        async with session.post(f"{server.url}/chat/completions", data=body, headers=headers) as response:
            if response.status == 200:
                await read_reply(response, reply, server.url)
            else:
                error = await problem_of(response)
    except (aiohttp.ClientError, InputError, OSError, TimeoutError) as problem:
        error = one_line(str(problem)) or type(problem).__name__
    return Sent(
        prompt=planned.prompt,
        arrival_time=planned.arrival_time,
        send_delay=sent - planned.arrival_time,
        first_token_time=math.nan if reply.first_time is None else reply.first_time - start,
        finish_time=time.perf_counter() - start,
        output_len=reply.num_tokens,
        num_prompt_tokens=reply.num_prompt_tokens,
        is_cut=reply.is_cut,
        answer=hashlib.sha256("".join(reply.pieces).encode("utf-8", "surrogatepass")).hexdigest()[:16],
        error=error,
    )
