"""`amin collect --endpoint` against a small server in this process."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web

from pipelines.cli import main
from pipelines.served_model.chats import chat_of
from predictor.records.records import read_records, select_rows

LENGTHS = {"a": 3, "b": 7, "c": 20}


class Server:
    """Answers prompt "a", "b" or "c" with so many tokens; `faults` are handlers that stand in for the next answers."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[Callable[[web.Request], Any]] = []
        self.num_answered = 1 << 30
        self.refusal: Callable[[web.Request], Any] | None = None  # how many answers come before it
        self.usage = True
        self.ignores_cap = False
        self.num_open = self.most_open = 0
        self.url = ""

    def app(self) -> web.Application:
        """What is served."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if self.faults:
            return await self.faults.pop(0)(request)
        if len(self.requests) > self.num_answered:
            assert self.refusal is not None
            return await self.refusal(request)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        await asyncio.sleep(0.01)
        length = LENGTHS[body["messages"][-1]["content"]]
        cap = length if self.ignores_cap else body["max_tokens"]
        response = await stream(request, min(length, cap))
        reason = "length" if length > cap else "stop"
        await event(response, {"choices": [{"delta": {}, "finish_reason": reason}]})
        if self.usage:
            counts = {"completion_tokens": min(length, cap), "prompt_tokens": 5}
            await event(response, {"choices": [], "usage": counts})
        await response.write(b"data: [DONE]\n\n")
        self.num_open -= 1
        return response


async def stream(request: web.Request, num_tokens: int) -> web.StreamResponse:
    """Begin an answer of so many tokens, one of them of reasoning."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for k in range(num_tokens):
        name = "reasoning_content" if k == 0 else "content"
        await event(response, {"choices": [{"delta": {name: "x"}, "finish_reason": None}]})
    return response


async def event(response: web.StreamResponse, value: Any) -> None:
    """Send an event."""
    await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")


async def break_off(request: web.Request) -> web.StreamResponse:
    """Half an answer: two tokens, then the connection is lost."""
    response = await stream(request, 2)
    assert request.transport is not None
    request.transport.close()
    return response


def fail(status: int, **headers: str) -> Callable[[web.Request], Any]:
    """A handler that answers with an error."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, text="not\nnow", headers=headers)

    return handler


@pytest.fixture
def make_server(serve: Callable[[web.Application], str]) -> Callable[[], Server]:
    """A function that starts a server."""

    def make() -> Server:
        server = Server()
        server.url = f"{serve(server.app())}/v1"
        return server

    return make


@pytest.fixture
def server(make_server: Callable[[], Server]) -> Server:
    """A server."""
    return make_server()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts, one as the end of a conversation."""
    path = tmp_path / "prompts.jsonl"
    turns = [("system", "Be brief."), ("user", "c"), ("assistant", "?"), ("user", "b"), ("assistant", "unread")]
    rows: list[dict[str, Any]] = [{"prompt": "a"}, {"prompt": "c"}]
    rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other immediately."""
    import pipelines.collect.endpoint

    monkeypatch.setattr(pipelines.collect.endpoint, "LONGEST_WAIT", 0.01)


def collect(url: str, prompts: Path, out: Path, *more: str) -> int:
    """Exit code of `amin collect` with two draws."""
    argv = ["collect", "--endpoint", url, "--served-model", "big", "--prompts", str(prompts), "--out", str(out)]
    return main([*argv, "--draws", "2", "--max-new-tokens", "10", *more])


def test_lengths_are_those_that_the_server_counts(server: Server, prompts: Path, tmp_path: Path) -> None:
    """Reasoning included; an answer at the cap is cut; whole conversations go out, with the settings given."""
    out = tmp_path / "records.parquet"
    assert collect(server.url, prompts, out, "--temperature", "0.7", "--max-running", "2") == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["output_lens"] for row in rows] == [[3, 3], [10, 10], [7, 7]]
    assert [row["is_truncated"] for row in rows] == [[False] * 2, [True] * 2, [False] * 2]
    assert [row["num_prompt_tokens"] for row in rows] == [5, 5, 5]
    assert {row["model"] for row in rows} == {"big"}
    conversations = [body["messages"] for body in server.requests if len(body["messages"]) > 1]
    assert [message["content"] for message in conversations[0]] == ["Be brief.", "c", "?", "b"]
    assert {body["temperature"] for body in server.requests} == {0.7}
    assert len({body["seed"] for body in server.requests}) == 6
    assert server.most_open <= 2
    assert {path.name for path in tmp_path.iterdir()} == {"records.parquet", "prompts.jsonl"}


def test_records_keep_what_was_asked(server: Server, prompts: Path, tmp_path: Path) -> None:
    """Training reads the context of a conversation, and the same is asked again; prompts alone need no such column."""
    out, alone = tmp_path / "records.parquet", tmp_path / "alone.parquet"
    assert collect(server.url, prompts, out) == 0
    contexts = read_records(out).contexts
    assert contexts is not None
    assert [context.system_prompt for context in contexts] == ["", "", "Be brief."]
    assert [context.num_earlier_turns for context in contexts] == [0, 0, 2]
    assert [chat_of(row) for row in select_rows(out)] == [chat_of(row) for row in select_rows(prompts)]
    assert collect(server.url, prompts, alone, "--limit", "2") == 0
    assert "messages" not in pq.read_schema(alone).names


def test_a_server_that_ignores_the_cap_is_recorded_as_it_is(
    server: Server, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole answers beyond the cap are whole, the records state no cap, and the last line says why."""
    server.ignores_cap = True
    out = tmp_path / "records.parquet"
    assert collect(server.url, prompts, out) == 0
    assert "2 answers are longer: the server ignores the cap" in capsys.readouterr().out
    rows = pq.read_table(out).to_pylist()
    assert [row["output_lens"] for row in rows] == [[3, 3], [20, 20], [7, 7]]
    assert not any(any(row["is_truncated"]) for row in rows)
    assert [row["max_new_tokens"] for row in rows] == [None] * 3
    assert read_records(out).max_new_tokens is None


def test_overloads_and_lost_answers_are_tried_again(server: Server, prompts: Path, tmp_path: Path) -> None:
    """Half an answer is not dropped, which would leave the short ones: it stays as cut, next to a whole one."""
    out = tmp_path / "records.parquet"
    server.faults = [fail(429, **{"Retry-After": "0"}), fail(503), break_off, fail(500)]
    assert collect(server.url, prompts, out, "--max-running", "1") == 0
    rows = pq.read_table(out).to_pylist()
    assert Counter(len(row["output_lens"]) for row in rows) == {2: 2, 3: 1}
    assert (rows[0]["output_lens"], rows[0]["is_truncated"]) == ([3, 3, 2], [False, False, True])


def test_several_servers_share_the_work(make_server: Callable[[], Server], prompts: Path, tmp_path: Path) -> None:
    """And the key goes to each."""
    servers = [make_server(), make_server()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "secret")
        assert collect(",".join(each.url for each in servers), prompts, tmp_path / "out.parquet") == 0
    assert [len(each.requests) for each in servers] == [3, 3]
    assert {header["Authorization"] for each in servers for header in each.headers} == {"Bearer secret"}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "OPENAI_API_KEY is missing or refused"),
        (404, "no such model or path"),
        (400, "refused (HTTP 400: not now)"),
    ],
)
def test_a_refusal_is_one_line_and_the_next_call_goes_on(
    server: Server, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, message: str
) -> None:
    """What had come is kept, and not asked for again."""
    out = tmp_path / "records.parquet"
    server.num_answered, server.refusal = 4, fail(status)
    assert collect(server.url, prompts, out, "--max-running", "1") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amin collect: error")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not out.exists()
    assert len(json.loads((tmp_path / "records.parquet.partial.json").read_text())["ended"]) == 4
    server.requests.clear()
    assert collect(server.url, prompts, out) == 0
    assert len(server.requests) == 2
    assert "continuing: 4 of 6" in capsys.readouterr().out


def test_a_server_without_usage_or_none_at_all_is_one_line(
    server: Server, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lengths cannot be guessed from pieces of text."""
    out = tmp_path / "records.parquet"
    server.usage = False
    assert collect(server.url, prompts, out) == 2
    assert "without usage.completion_tokens" in capsys.readouterr().err
    assert collect("http://127.0.0.1:9/v1", prompts, out, "--retries", "1", "--force") == 2
    assert "no whole answer in 2 tries (Cannot connect" in capsys.readouterr().err
    assert collect("localhost:8000", prompts, out) == 2
    assert "--endpoint: 'localhost:8000' is not an address" in capsys.readouterr().err


def test_finished_records_are_left_alone(
    server: Server, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same call says so; another one is refused; --force collects anew."""
    out = tmp_path / "records.parquet"
    assert collect(server.url, prompts, out) == 0
    whole = out.read_bytes()
    server.requests.clear()
    assert collect(server.url, prompts, out) == 0
    assert "finished already and left alone" in capsys.readouterr().out
    assert collect(server.url, prompts, out, "--seed", "1") == 2
    assert "was made with seed 0, now it is 1" in capsys.readouterr().err
    assert out.read_bytes() == whole
    assert not server.requests
    assert collect(server.url, prompts, out, "--seed", "1", "--force") == 0
    assert len(server.requests) == 6


STOP = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


def say(*events: Any) -> Callable[[web.Request], Any]:
    """A handler that streams these events."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await stream(request, 0)
        for value in events:
            await event(response, value)
        return response

    return handler


async def speak_latin(request: web.Request) -> web.Response:
    """A refusal in bytes that are no UTF-8, under a name that is no encoding."""
    return web.Response(status=400, body=b"\xe9t\xe9", headers={"Content-Type": "text/plain; charset=nonsense"})


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        (say({"choices": [[1]]}), r"OpenAI's servers do \('{\"choices\": \[\[1"),
        (say({"choices": 5}), r"OpenAI's servers do \('{\"choices\": 5"),
        (say({"choices": {"a": 1}}), r"OpenAI's servers do \('{\"choices\": {"),
        (say({"choices": [{"delta": ["x"]}]}), r"OpenAI's servers do \('{\"choices\": \[{"),
        (say(STOP, {"usage": {"completion_tokens": 10**30}}), r"completion_tokens is 10+, no number"),
        (say(STOP, {"usage": {"completion_tokens": -5}}), "completion_tokens is -5, no number"),
        (say(STOP, {"usage": {"completion_tokens": True}}), "completion_tokens is True, no number"),
        (say(STOP, {"usage": {"completion_tokens": 2.5}}), r"completion_tokens is 2\.5, no number"),
        (speak_latin, "HTTP 400"),
    ],
)
def test_a_server_that_answers_nonsense_is_named_in_a_line(
    server: Server, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], handler: Any, problem: str
) -> None:
    """Neither a traceback nor a length that nobody said."""
    server.num_answered, server.refusal = 0, handler
    assert collect(server.url, prompts, tmp_path / "out.parquet") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amin collect")]
    assert re.search(problem, line)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"prompt_tokens": "x"}, 0),
        ({"prompt_tokens": -4}, 0),
        ({"prompt_tokens": 10**30}, 0),
        ({"prompt_tokens": 3.0}, 3),
    ],
)
def test_a_prompt_length_that_is_no_count_is_unknown(
    server: Server, prompts: Path, tmp_path: Path, counts: dict[str, Any], expected: int
) -> None:
    """The answer's length stands; an engine's "error": null is no error, and an aborted answer is cut."""
    ended = {"choices": [{"delta": {}, "finish_reason": "abort"}], "error": None}
    server.num_answered, server.refusal = (
        0,
        say(ended, {"usage": {"completion_tokens": 5.0, **counts}, "choices": None}),
    )
    assert collect(server.url, prompts, tmp_path / "out.parquet") == 0
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert {tuple(row["output_lens"]) for row in rows} == {(5, 5)}
    assert {tuple(row["is_truncated"]) for row in rows} == {(True, True)}
    assert {row["num_prompt_tokens"] for row in rows} == {expected}
