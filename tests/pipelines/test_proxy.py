"""The proxy between a client and an engine made up for it, over sockets: what passes, what is added, what is learnt."""

import asyncio
import gzip
import json
import socket
import time
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pipelines.proxy import create_proxy
from pipelines.serve import listen
from pipelines.settings.proxy import ProxySettings
from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.errors import InputError
from predictor.prompts.context import RequestContext
from predictor.sidecar.connections import make_server
from predictor.sidecar.heard import AnswerReader, Length
from predictor.sidecar.late import LateHints
from predictor.spec import PredictorSpec
from scheduler.integrations.vllm_settings import group_and_class

BINS = LengthBins.log_spaced(512, 16)
SURVIVAL = np.exp(-BINS.as_array() / 100)


class MadeUpPredictor:
    """Exponential lengths of mean 100 for any prompt; "poison" breaks it, and a closed gate holds it up."""

    def __init__(self) -> None:
        lengths = np.random.default_rng(0).exponential(100, 500).astype(int) + 1
        table = PitCalibration.fit(BINS, np.repeat(SURVIVAL[None], 500, axis=0), [np.array([n]) for n in lengths])
        self.spec = PredictorSpec(BINS, 64, 0, ("served",), "served", (), {"served": table}, {})
        self.gate = Event()
        self.gate.set()

    def survivals(self, prompts: Sequence[str], contexts: Sequence[RequestContext | None] | None = None) -> np.ndarray:
        """[N, 1, K+1]."""
        self.gate.wait(60)
        if any("poison" in prompt for prompt in prompts):
            raise RuntimeError("poison")
        return np.repeat(SURVIVAL[None, None], len(prompts), axis=0)


def packed_as(coding: str, content: bytes) -> bytes:
    """The content in this coding; what is not known here becomes noise."""
    return {"": bytes, "gzip": gzip.compress, "deflate": zlib.compress}.get(coding, lambda text: text[::-1])(content)


class Engine:
    """An OpenAI-compatible server: remembers what it was sent, answers as it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Any = {"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 7}}
        self.events: list[bytes] = []
        self.status, self.is_cut, self.has_left = 200, False, Event()
        self.is_silent, self.is_asked = False, Event()
        self.coding = ""

    async def answer_to(self, request: Request) -> Response:
        """Answer any request."""
        self.heard.append((str(request.url.path), dict(request.headers), await request.body()))
        coded = {"content-encoding": self.coding} if self.coding else {}
        self.is_asked.set()
        while self.is_silent:  # it computes, and sends nothing before the whole answer is there
            if await request.is_disconnected():
                self.has_left.set()
                break
            await asyncio.sleep(0.005)
        if not self.events:
            packed = packed_as(self.coding, json.dumps(self.answer).encode())
            return Response(packed, self.status, {"x-engine": "here", **coded}, "application/json")
        return StreamingResponse(self._stream(), media_type="text/event-stream", headers=coded)

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            for event in self.events:
                yield event
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.has_left.set()
            raise
        if self.is_cut:
            raise ConnectionError("the engine dies")


@contextmanager
def running(app: Starlette, make: Any = None) -> Iterator[str]:
    """The URL of an application that a thread serves."""
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    server = make_server(app, max_connections=100, patience=10) if make else uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture
def engine() -> Engine:
    """A fresh one a test."""
    return Engine()


@pytest.fixture
def length_predictor() -> MadeUpPredictor:
    """A fresh one a test."""
    return MadeUpPredictor()


@contextmanager
def proxied(behind: Engine, length_predictor: MadeUpPredictor, **options: Any) -> Iterator[tuple[httpx2.Client, Any]]:
    """A client of the proxy in front of the engine, and the application of the proxy."""
    methods = ["GET", "POST", "PUT", "DELETE"]
    with running(Starlette(routes=[Route("/{path:path}", behind.answer_to, methods=methods)])) as upstream:
        settings = ProxySettings(**{"upstream": upstream, "predictor": Path(), "deadline_ms": 60_000.0, **options})
        app = create_proxy(length_predictor, settings)
        with running(app, make_server) as url, httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield client, app


def learnt(app: Any, num_expected: int = 1) -> list[list[Any]]:
    """Tokens and whether it was cut, of each answer; the client may have it before the proxy has thought about it."""
    for _ in range(6000 if num_expected else 10):
        calibrations = app.state.relay._sidecar.ledger.calibrations
        rows = calibrations["served"].state()["answers"] if calibrations else []
        if len(rows) >= max(1, num_expected):
            break
        time.sleep(0.01)
    return [[row[0], row[2]] for row in rows]


CHAT = {"model": "m", "messages": [{"role": "user", "content": "Name a prime."}], "zahl": 1.50}


@pytest.mark.parametrize("kind", ["vllm", "dynamo", "llm-d", "other"])
def test_each_engine_is_told_in_its_own_words(engine: Engine, length_predictor: MadeUpPredictor, kind: str) -> None:
    """And every one by our headers, which a client cannot forge; the rest of the body stays byte for byte."""
    content = b'{"model": "m", "messages": [{"role": "user", "content": "Name a prime."}], "zahl": 1.50}'
    with proxied(engine, length_predictor, engine=kind) as (client, app):
        forged = {"x-amin-output-len-median": "1", "content-type": "application/json", "authorization": "Bearer k"}
        answer = client.post("/v1/chat/completions?x=%20y", content=content, headers=forged)
        assert (answer.status_code, answer.headers["x-engine"], answer.json()) == (200, "here", engine.answer)
        assert learnt(app) == [[7, False]]
    path, headers, body = engine.heard[0]
    lower, median = int(headers["x-amin-output-len-lower-bound"]), int(headers["x-amin-output-len-median"])
    assert 5 <= lower <= 20 < 60 <= median <= 80
    assert (path, headers["authorization"], headers.get("x-amin-output-len-bucket")) == (
        "/v1/chat/completions",
        "Bearer k",
        "SHORT" if kind == "llm-d" else None,
    )
    sent = json.loads(body)
    if kind == "vllm":
        bounds = sent.pop("vllm_xargs")
        assert bounds == {
            "output_len_lower_bound": lower,
            "output_len_prediction": median,
            "output_len_upper_bound": bounds["output_len_upper_bound"],
        }
        assert 250 <= bounds["output_len_upper_bound"] <= 350
        assert body.endswith(content[1:])
    elif kind == "dynamo":
        assert sent.pop("nvext") == {"agent_hints": {"osl": median}}
        assert body.endswith(content[1:])
    else:
        assert body == content
    assert sent == CHAT


def test_what_a_request_says_itself_stays(engine: Engine, length_predictor: MadeUpPredictor) -> None:
    """Its own bounds and hints win."""
    for kind, name, given in (
        ("vllm", "vllm_xargs", {"output_len_lower_bound": 3, "other": 1}),
        ("dynamo", "nvext", {"agent_hints": {"osl": 3, "priority": 5}, "other": 1}),
        ("dynamo", "nvext", None),
        ("vllm", "vllm_xargs", "odd"),
    ):
        with proxied(engine, length_predictor, engine=kind) as (client, _):
            client.post("/v1/chat/completions", json={**CHAT, name: given})
        sent = json.loads(engine.heard[-1][2])[name]
        if isinstance(given, dict):
            expected = {**sent, **given}
            assert sent == expected
        else:
            assert sent == given or "agent_hints" in sent


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({**CHAT, "messages": [{"role": "user", "content": "poison"}]}, "it cannot be predicted"),
        ({**CHAT, "messages": []}, "no text"),
        ({**CHAT, "n": 2, "best_of": 3}, "the shown answers are chosen"),
        ({**CHAT, "n": 0}, "no number of answers"),
        ({**CHAT, "n": 129}, "more answers than are told apart"),
        ({"prompt": ["a", "b"]}, "several prompts"),
        ([1, 2], "no object"),
        ("{", "no JSON"),
    ],
)
def test_where_nothing_is_predicted_nothing_is_added(
    engine: Engine, length_predictor: MadeUpPredictor, body: Any, reason: str
) -> None:
    """The request passes as it came."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    with proxied(engine, length_predictor, engine="vllm") as (client, _):
        assert client.post("/v1/completions", content=content).status_code == 200
    _, headers, sent = engine.heard[0]
    assert sent == content, reason
    assert not any(name.startswith("x-amin") for name in headers)


def test_a_predictor_that_hangs_holds_up_no_request(engine: Engine, length_predictor: MadeUpPredictor) -> None:
    """After the time limit the request passes; its answer is learnt from for the lengths alone."""
    length_predictor.gate.clear()
    with proxied(engine, length_predictor, engine="vllm", deadline_ms=30) as (client, _):
        assert client.post("/v1/chat/completions", json=CHAT).elapsed.total_seconds() < 2
        length_predictor.gate.set()
    assert json.loads(engine.heard[0][2]) == CHAT


def test_other_requests_pass_as_they_are(engine: Engine, length_predictor: MadeUpPredictor) -> None:
    """Any method and path, with and without a body; our own pages stand under /amin."""
    with proxied(engine, length_predictor, engine="vllm") as (client, _):
        assert client.get("/v1/models").json() == engine.answer
        assert client.put("/files/a%2Fb", content=b"\x00\xff").status_code == 200
        assert client.delete("/files/x").status_code == 200
        assert client.get("/amin/healthz").json() == {"status": "ok"}
        assert "amin_proxy_added_seconds" in client.get("/amin/metrics").text
    assert [(path, body) for path, _, body in engine.heard] == [
        ("/v1/models", b""),
        ("/files/a/b", b"\x00\xff"),
        ("/files/x", b""),
    ]
    assert "transfer-encoding" not in engine.heard[0][1]


def stream_of(tokens: int, reason: str | None, usage: int | None) -> list[bytes]:
    """Events of a streamed chat answer, cut at odd places."""
    events = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}]
    events += [{"choices": [{"index": 0, "delta": {"content": f"w{i}"}, "finish_reason": None}]} for i in range(tokens)]
    if reason is not None:
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    if usage is not None:
        events.append({"choices": [], "usage": {"completion_tokens": usage}})
    text = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    return [text[start : start + 37] for start in range(0, len(text), 37)]


@pytest.mark.parametrize(
    ("reason", "usage", "expected"),
    [("stop", 31, [[31, False]]), ("stop", None, [[21, False]]), ("length", None, [[20, True]]), (None, None, [])],
)
def test_streams_pass_byte_for_byte_and_are_counted(
    engine: Engine, length_predictor: MadeUpPredictor, reason: str | None, usage: int | None, expected: list[Any]
) -> None:
    """By the usage where the engine states it, else by events and the end token; a cut answer is longer than it."""
    engine.events = stream_of(20, reason, usage)
    with proxied(engine, length_predictor) as (client, app):
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert b"".join(answer.iter_raw()) == b"".join(engine.events)
        assert learnt(app, len(expected)) == expected


def test_a_cut_stream_is_seen_as_cut(engine: Engine, length_predictor: MadeUpPredictor) -> None:
    """The client does not take half an answer for a whole one; what was counted is known to be longer."""
    engine.events, engine.is_cut = stream_of(20, None, None)[:20], True
    with proxied(engine, length_predictor) as (client, app):
        received = bytearray()

        def receive() -> None:
            with client.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
                for data in answer.iter_raw():
                    received.extend(data)

        with pytest.raises(httpx2.RemoteProtocolError):
            receive()
        assert received == b"".join(engine.events)
        assert [is_cut for _, is_cut in learnt(app)] == [True]


def test_a_client_that_leaves_ends_the_engines_work(engine: Engine, length_predictor: MadeUpPredictor) -> None:
    """And its answer counts as cut."""
    engine.events = stream_of(2000, "stop", None)
    with proxied(engine, length_predictor) as (client, app):
        with client.stream("POST", "/v1/chat/completions", json=CHAT) as answer:
            next(answer.iter_raw())
        assert engine.has_left.wait(60)
        assert len(learnt(app, 0)) <= 1


def test_a_client_that_leaves_before_the_answer_ends_the_engines_work(
    engine: Engine, length_predictor: MadeUpPredictor
) -> None:
    """An answer that is not streamed has no byte before its end: the engine would compute it for nobody."""
    engine.is_silent = True
    with proxied(engine, length_predictor) as (client, app):
        body = json.dumps(CHAT).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", client.base_url.port or 80)) as connection:
            connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
            assert engine.is_asked.wait(60)
        assert engine.has_left.wait(60)
        engine.is_silent = False
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert len(learnt(app)) == 1


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_what_the_engine_refuses_the_client_sees(
    engine: Engine, length_predictor: MadeUpPredictor, status: int
) -> None:
    """With the engine's status and words, and nothing is learnt."""
    engine.status, engine.answer = status, {"error": {"message": "no"}}
    with proxied(engine, length_predictor) as (client, app):
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()) == (status, engine.answer)
        assert learnt(app, 0) == []


def test_an_engine_that_is_down_gives_502(engine: Engine, length_predictor: MadeUpPredictor) -> None:
    """In the form of OpenAI's errors; the proxy goes on."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    listener.close()
    with proxied(engine, length_predictor, upstream=f"http://127.0.0.1:{port}") as (client, _):
        for _ in range(2):
            answer = client.post("/v1/chat/completions", json=CHAT)
            assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")


def test_what_was_learnt_corrects_the_next_hint_and_survives(
    engine: Engine, length_predictor: MadeUpPredictor, tmp_path: Path
) -> None:
    """400 short answers lower the bound that the engine is told, in this process and the next."""
    engine.answer = {"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
    bounds = []
    for _ in range(2):
        with proxied(engine, length_predictor, state=tmp_path / "state.json") as (client, _):
            for _ in range(400 if not bounds else 1):
                client.post("/v1/chat/completions", json=CHAT)
        told = [int(headers["x-amin-output-len-lower-bound"]) for _, headers, _ in engine.heard]
        bounds.append((told[0], told[-1]))
        engine.heard.clear()
    assert bounds[0][0] > 5
    assert bounds[0][1] == bounds[1][0] <= 2


@pytest.mark.parametrize(("coding", "expected"), [("gzip", [[7, False]]), ("deflate", [[7, False]]), ("br", [])])
def test_compressed_answers_pass_as_they_are_and_teach(
    engine: Engine, length_predictor: MadeUpPredictor, coding: str, expected: list[Any]
) -> None:
    """A client's wish for a coding that cannot be read here is not passed on; an engine's own teaches nothing."""
    engine.coding = coding
    with proxied(engine, length_predictor) as (client, app):
        headers = {"accept-encoding": "br;q=1.0, gzip;q=0.8, zstd"}
        with client.stream("POST", "/v1/chat/completions", json=CHAT, headers=headers) as answer:
            assert answer.headers["content-encoding"] == coding
            assert b"".join(answer.iter_raw()) == packed_as(coding, json.dumps(engine.answer).encode())
        assert learnt(app, len(expected)) == expected
        client.get("/v1/models", headers=headers)
    assert [heard[1]["accept-encoding"] for heard in engine.heard] == ["gzip;q=0.8", headers["accept-encoding"]]


def test_a_compressed_stream_teaches_as_it_comes(engine: Engine, length_predictor: MadeUpPredictor) -> None:
    """Byte for byte, cut at places of the engine's."""
    packer = zlib.compressobj(wbits=31)
    engine.events = [
        packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in stream_of(20, "stop", None)
    ] + [packer.flush()]
    engine.coding = "gzip"
    with proxied(engine, length_predictor) as (client, app):
        with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            assert b"".join(answer.iter_raw()) == b"".join(engine.events)
        assert learnt(app) == [[21, False]]


def test_a_chunked_body_is_predicted_and_taught_from(engine: Engine, length_predictor: MadeUpPredictor) -> None:
    """A client that states no length of its request is served like others."""
    content = json.dumps(CHAT).encode()
    with proxied(engine, length_predictor) as (client, app):
        assert client.post("/v1/chat/completions", content=iter([content[:9], content[9:]])).status_code == 200
        assert learnt(app) == [[7, False]]
    _, headers, body = engine.heard[0]
    assert body == content
    assert "x-amin-output-len-median" in headers


def test_a_body_too_large_to_read_passes_in_parts(
    engine: Engine, length_predictor: MadeUpPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a length or chunked; nothing is added."""
    monkeypatch.setattr("predictor.sidecar.relay._MAX_BODY", 100)
    content = json.dumps({**CHAT, "more": "x" * 200}).encode()
    with proxied(engine, length_predictor) as (client, _):
        for sent in (content, iter([content[:50], content[50:120], content[120:]])):
            assert client.post("/v1/chat/completions", content=sent).status_code == 200
    assert [body for _, _, body in engine.heard] == [content, content]
    assert not any("x-amin-output-len-median" in headers for _, headers, _ in engine.heard)


@pytest.mark.parametrize("is_stream", [False, True])
def test_several_answers_are_hinted_once_and_taught_each(
    engine: Engine, length_predictor: MadeUpPredictor, is_stream: bool
) -> None:
    """Their common usage is divided by what each said, whichever way they come."""
    texts, reasons = ["w" * 10, "w" * 30, "w" * 20], ["stop", "length", "stop"]
    pairs = list(enumerate(zip(texts, reasons, strict=True)))
    usage = {"completion_tokens": 60}
    if is_stream:
        events: list[Any] = [{"choices": [{"index": i, "delta": {"content": "w"}}]} for i, (t, _) in pairs for _ in t]
        events += [{"choices": [{"index": i, "delta": {}, "finish_reason": reason}]} for i, (_, reason) in pairs]
        events += [{"choices": [], "usage": usage}]
        engine.events = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    else:
        choices = [{"index": i, "finish_reason": reason, "message": {"content": text}} for i, (text, reason) in pairs]
        engine.answer = {"choices": choices[::-1], "usage": usage}
    with proxied(engine, length_predictor, engine="vllm") as (client, app):
        client.post("/v1/chat/completions", json={**CHAT, "n": 3, "stream": is_stream})
        assert learnt(app, 3) == [[10, False], [30, True], [20, False]]
    body = json.loads(engine.heard[0][2])
    assert body["n"] == 3
    assert "output_len_lower_bound" in body["vllm_xargs"]
    of_each = {group_and_class(f"{number}_chatcmpl-7", body["vllm_xargs"]) for number in range(3)}
    assert of_each == {("chatcmpl-7", "")}, "vLLM's plug-in takes them for siblings"


def test_a_group_and_a_class_of_the_client_reach_the_plug_in(engine: Engine, length_predictor: MadeUpPredictor) -> None:
    """Requests sent one by one are siblings where their client says so: the hint leaves both names as they are."""
    with proxied(engine, length_predictor, engine="vllm") as (client, _):
        for _ in range(2):
            client.post("/v1/chat/completions", json={**CHAT, "vllm_xargs": {"group": "job-7", "class": "batch"}})
    said = [json.loads(heard[2])["vllm_xargs"] for heard in engine.heard]
    assert all("output_len_lower_bound" in each for each in said)
    assert [group_and_class(f"chatcmpl-{k}", each) for k, each in enumerate(said)] == [("job-7", "batch")] * 2


def test_shares_of_a_count_keep_its_sum() -> None:
    """Texts of no size share alike; an answer has a token at least."""
    reader = AnswerReader(is_stream=False, num_answers=3)
    ends = [{"finish_reason": "stop", "text": text} for text in ("", "", "")]
    reader.feed(json.dumps({"choices": ends, "usage": {"completion_tokens": 10}}).encode())
    assert [length and length.num_tokens for length in reader.lengths()] == [3, 4, 3]
    reader = AnswerReader(is_stream=False, num_answers=2)
    ends = [{"finish_reason": "stop", "text": "x" * size} for size in (1, 10_000)]
    reader.feed(json.dumps({"choices": ends, "usage": {"completion_tokens": 10}}).encode())
    assert [length and length.num_tokens for length in reader.lengths()] == [1, 10]


def test_a_bomb_is_not_unpacked() -> None:
    """An answer of gigabytes of nothing is given up."""
    reader = AnswerReader(is_stream=False, coding="gzip")
    reader.feed(gzip.compress(bytes(1 << 24)))
    assert (reader.lengths(), len(reader._rest)) == ([None], 0)


@pytest.mark.parametrize(
    ("answer", "length"),
    [
        ({"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 5}}, Length(5, False)),
        ({"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 5}}, Length(5, True)),
        ({"choices": [{"finish_reason": "tool_calls"}], "usage": {"completion_tokens": 5}}, Length(5, False)),
        ({"status": "completed", "usage": {"output_tokens": 9}}, Length(9, False)),
        ({"status": "incomplete", "usage": {"output_tokens": 9}}, Length(9, True)),
        ({"choices": [{"finish_reason": "stop"}]}, None),
        ({"choices": [{"finish_reason": "stop"}] * 2, "usage": {"completion_tokens": 5}}, None),
        ([], None),
        ({"choices": 5, "usage": 5}, None),
        ({"choices": [{"finish_reason": "content_filter"}], "usage": {"completion_tokens": 5}}, Length(5, is_cut=True)),
        ({"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 10**30}}, None),
    ],
)
def test_lengths_are_read_off_answers_of_every_api(answer: Any, length: Length | None) -> None:
    """What does not say its length teaches nothing."""
    reader = AnswerReader(is_stream=False)
    reader.feed(json.dumps(answer).encode())
    assert reader.lengths() == [length]


def test_a_stream_of_the_responses_api_is_read_too() -> None:
    """Its deltas count, its last event has the usage."""
    reader = AnswerReader(is_stream=True)
    for _ in range(5):
        reader.feed(b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"x"}\n\n')
    assert (reader.num_tokens, reader.lengths()) == ([5], [None])
    reader.feed(
        b'data: {"type":"response.completed","response":{"status":"completed","usage":{"output_tokens":6}}}\n\n'
    )
    assert reader.lengths() == [Length(6, is_cut=False)]


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_an_upstream_with_its_api_is_the_same_engine(
    engine: Engine, length_predictor: MadeUpPredictor, end: str
) -> None:
    """Clients are told base URLs that end in /v1, and so may the proxy be."""
    app = Starlette(routes=[Route("/{path:path}", engine.answer_to, methods=["POST"])])
    with running(app) as url, proxied(engine, length_predictor, upstream=url + end) as (client, _):
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert [path for path, _, _ in engine.heard] == ["/v1/chat/completions"]


def test_hints_that_come_too_late_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Where most of twenty requests were late; then of forty. What has no text is not late."""
    late = LateHints(deadline=0.01)
    for reason in ["no_text"] * 9 + ["deadline"] * 10 + [None]:
        late.add(reason)
    assert not caplog.records
    for reason in ["queue_full"] * 1 + ["deadline"] * 10 + [None] * 9:
        late.add(reason)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "11 of 20 requests passed without a hint: the prediction took more than 10 ms"
    ]
    for _ in range(39):
        late.add("deadline")
    assert len(caplog.records) == 1
    late.add("deadline")
    assert len(caplog.records) == 2


def test_a_proxy_whose_hints_come_too_late_says_so(
    engine: Engine, length_predictor: MadeUpPredictor, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests pass all the same."""
    length_predictor.gate.clear()
    with proxied(engine, length_predictor, deadline_ms=1) as (client, _):
        for _ in range(20):
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        length_predictor.gate.set()
    assert sum("20 of 20 requests passed without a hint" in record.getMessage() for record in caplog.records) == 1


def test_a_bad_upstream_is_refused() -> None:
    """Before anything is loaded."""
    with pytest.raises(InputError, match="--upstream"):
        ProxySettings(upstream="localhost:8000", predictor=Path())
