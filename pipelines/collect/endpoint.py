"""Answers of OpenAI-compatible servers (vLLM, SGLang, TGI, llama.cpp, Dynamo): many at a time, over several servers."""

import asyncio
import random
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import aiohttp
from tqdm import tqdm

from pipelines.collect.asking import Chat, chat_request, one_line, open_session, problem_of, refusal
from pipelines.collect.draws import Answer, Answerer, Collected, Key, PartialFile
from pipelines.collect.stream import Reply, read_reply
from pipelines.settings.collect import CollectSettings
from predictor.errors import InputError

SECONDS_BETWEEN_SNAPSHOTS = 2.0
LONGEST_WAIT = 60.0
"""Seconds between two tries of a request at most."""


def collect_from(settings: CollectSettings, chats: Sequence[Chat], partial: PartialFile) -> Answerer:
    """Ask the servers for the draws that are missing, up to the file; they count the tokens of the prompts.

    Raises:
        InputError: No server can be reached, or one refuses; what was collected stays.
    """
    collector = Collector(settings, chats, partial)
    asyncio.run(collector.run())
    return Answerer(settings.served_model, [collector.num_prompt_tokens.get(i) for i in range(len(chats))])


class Collector:
    """Keeps `max_running` requests open until every draw has its answer."""

    def __init__(self, settings: CollectSettings, chats: Sequence[Chat], partial: PartialFile) -> None:
        """Read what an earlier call left."""
        self._settings, self._chats, self._partial = settings, chats, partial
        there = partial.read()
        self._ended: dict[Key, Answer] = dict(there.ended)
        self._cut: list[tuple[int, int]] = list(there.cut)
        self._open: dict[Key, Reply] = {}
        self._endpoints = cycle(settings.endpoints)
        self._rng = random.Random(settings.seed + there.num_tokens)  # other draws than those that are there
        self.num_prompt_tokens: dict[int, int] = dict(there.num_prompt_tokens)
        """By prompt."""

    async def run(self) -> None:
        """Collect; whatever happens, what there is then is on disk."""
        asked = self._settings
        total = len(self._chats) * asked.draws
        todo = [(i, d) for d in range(asked.draws) for i in range(len(self._chats))]
        missing = iter([key for key in todo if key not in self._ended])
        if self._ended:
            print(f"continuing: {len(self._ended)} of {total} answers are there")
        with tqdm(total=total, initial=len(self._ended), desc="collect", unit="answer") as bar:
            try:
                async with open_session(asked.api_key_env, asked.timeout) as session, asyncio.TaskGroup() as tasks:
                    snapshots = tasks.create_task(self._snapshots())
                    workers = [tasks.create_task(self._work(session, missing, bar)) for _ in range(asked.max_running)]
                    await asyncio.gather(*workers)
                    snapshots.cancel()
            except* InputError as errors:
                raise errors.exceptions[0] from None
            finally:
                self._keep()

    async def _snapshots(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_SNAPSHOTS)
            self._keep()

    def _keep(self) -> None:
        open_now = [(i, reply.num_tokens) for (i, _), reply in self._open.items() if reply.num_tokens]
        self._partial.keep(
            Collected(self._ended, cut=[*self._cut, *open_now], num_prompt_tokens=self.num_prompt_tokens)
        )

    async def _work(self, session: aiohttp.ClientSession, missing: Any, bar: Any) -> None:
        for key in missing:
            reply = await self._answer(session, key)
            self._ended[key] = (reply.num_tokens, reply.is_cut)
            self.num_prompt_tokens[key[0]] = reply.num_prompt_tokens
            bar.update()

    async def _answer(self, session: aiohttp.ClientSession, key: Key) -> Reply:
        """Return the whole answer to a prompt, tried again as often as is allowed."""
        problem = ""
        for attempt in range(self._settings.retries + 1):
            endpoint = next(self._endpoints)
            reply = self._open[key] = Reply()
            wait = 0.0
            try:
                async with session.post(f"{endpoint}/chat/completions", json=self._request(key[0])) as response:
                    if response.status == 200:
                        await read_reply(response, reply, endpoint)
                        del self._open[key]
                        return reply
                    problem = await problem_of(response)
                    if response.status != 429 and response.status < 500:
                        meant = refusal(response.status, problem, self._settings.api_key_env)
                        raise InputError(f"--endpoint {endpoint}: {meant}")
                    wait = _seconds(response.headers.get("Retry-After"))
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = one_line(str(error)) or type(error).__name__
            if reply.num_tokens:  # half an answer: it has at least so many tokens, and is not drawn again
                self._cut.append((key[0], reply.num_tokens))
            self._open.pop(key, None)
            if attempt < self._settings.retries:
                await asyncio.sleep(max(wait, min(LONGEST_WAIT, 0.5 * 2**attempt * self._rng.uniform(0.5, 1.5))))
        raise InputError(
            f"--endpoint {endpoint}: no whole answer in {self._settings.retries + 1} tries ({problem}); what was "
            "collected is kept, the same call goes on"
        )

    def _request(self, prompt: int) -> dict[str, Any]:
        asked, seed = self._settings, self._rng.randrange(2**31)
        return chat_request(asked.served_model, self._chats[prompt], asked.max_new_tokens, seed, asked.sampling.given)


def _seconds(retry_after: str | None) -> float:
    """Return what a server asks to wait; 0 where it says nothing, or a date."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(retry_after or 0)))
    except ValueError:
        return 0.0
