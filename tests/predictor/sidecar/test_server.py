"""The sidecar's HTTP interface, in-process, on a made-up predictor of two served models."""

import asyncio
import gc
import gzip
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.errors import InputError
from predictor.prompts.context import RequestContext
from predictor.sidecar import bodies
from predictor.sidecar.answers import MAX_ALIKE, SidecarSettings, check_settings
from predictor.sidecar.app import create_app
from predictor.spec import PredictorSpec

BINS = LengthBins.log_spaced(512, 16)
EDGES = BINS.as_array()
RNG = np.random.default_rng(0)


def survivals(prompts: Sequence[str]) -> np.ndarray:
    """Exponential lengths of mean 4 tokens a character of the prompt; the second model is half as terse."""
    means = 4.0 * np.array([[len(prompt), 2 * len(prompt)] for prompt in prompts])
    return np.exp(-EDGES / means[:, :, None])


class MadeUpPredictor:
    """Predicts as `survivals` says, not before `gate` is open; text with "poison" breaks it."""

    def __init__(self) -> None:
        held_out = [np.array([length]) for length in RNG.exponential(100, 200).astype(int) + 1]
        survival = np.repeat(survivals(["x" * 25]), 200, axis=0)
        tables = {
            "short": PitCalibration.fit(BINS, survival[:, 0], held_out),
            "long": PitCalibration.fit(BINS, survival[:, 1], [2 * draws for draws in held_out]),
            "average": PitCalibration.fit(BINS, survival.mean(axis=1), held_out),
        }
        self.spec = PredictorSpec(BINS, 64, 0, ("short", "long"), "short", (), tables, {})
        self.num_asked = 0
        self.gate = threading.Event()
        self.gate.set()

    def survivals(self, prompts: Sequence[str], contexts: Sequence[RequestContext | None] | None = None) -> np.ndarray:
        """[N, 2, K+1]."""
        self.num_asked += len(prompts)
        self.gate.wait(60)
        if any("poison" in prompt for prompt in prompts):
            raise RuntimeError("poison")
        return survivals(prompts)


PATIENT = SidecarSettings(deadline=60.0, max_prompts=20, max_body_bytes=20_000, max_prompt_chars=5000)


def client_of(length_predictor: MadeUpPredictor, settings: SidecarSettings = PATIENT) -> TestClient:
    """A client on this machine, of an application whose lifespan it enters."""
    return TestClient(create_app(length_predictor, settings), base_url="http://localhost")


@pytest.fixture
def length_predictor() -> MadeUpPredictor:
    """A fresh one a test."""
    return MadeUpPredictor()


@pytest.fixture
def client(length_predictor: MadeUpPredictor) -> Iterator[TestClient]:
    """An application whose lifespan is entered, with time for every prompt."""
    with client_of(length_predictor) as client:
        yield client


def predict(client: TestClient, **body: Any) -> dict[str, Any]:
    """The answer to a good request."""
    response = client.post("/v1/predict", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refusal(client: TestClient, path: str, **request: Any) -> tuple[int, str]:
    """Status and line of a refused request."""
    response = client.post(path, **request)
    assert set(response.json()) == {"error"}
    assert "\n" not in response.json()["error"]
    return response.status_code, response.json()["error"]


def metric(client: TestClient, name: str) -> float:
    """The value of a line of /metrics, labels included in `name`."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    assert len(lines) == 1, (name, client.get("/metrics").text)
    return float(lines[0].split()[-1])


def test_bounds_are_those_of_the_specification(client: TestClient, length_predictor: MadeUpPredictor) -> None:
    """Of one prompt, of several as text or chat, for each served model; limits cap them."""
    texts = ["a" * 40, "b" * 400, "c"]
    for model in ("short", "long", "average"):
        expected = length_predictor.spec.predictions(
            length_predictor.spec.survival_of(survivals(texts), model), 0.2, model=model
        )
        messages = [{"role": "user", "content": "earlier"}, {"role": "assistant", "content": "answered"}]
        messages.append({"role": "user", "content": texts[1]})
        parts = [{"type": "text", "text": texts[2]}, {"type": "image_url", "image_url": {"url": "x"}}]
        prompts = [{"prompt": texts[0]}, {"messages": messages}, {"messages": [{"role": "user", "content": parts}]}]
        answer = predict(client, prompts=prompts, tau=0.2, model=model, with_survival=True)
        rows = answer["predictions"]
        assert (answer["tau"], answer["model"], answer["bin_edges"]) == (0.2, model, BINS.to_list())
        assert [row["output_len_lower_bound"] for row in rows] == expected.lower_bounds.tolist()
        assert [row["output_len_median"] for row in rows] == expected.medians.tolist()
        np.testing.assert_allclose([row["survival"] for row in rows], expected.survival)
        alone = predict(client, prompt=texts[0], tau=0.2, model=model)["predictions"]
        assert alone[0]["output_len_lower_bound"] == expected.lower_bounds[0]
    assert predict(client, prompt="a" * 400, max_new_tokens=3)["predictions"][0]["output_len_lower_bound"] == 3
    assert predict(client, prompt="x")["model"] == "short"


def test_a_predictor_trained_with_context_is_asked_with_it(length_predictor: MadeUpPredictor) -> None:
    """Earlier turns stand before the prompt, as `amin train --context-turns` put them."""
    messages = [
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": [{"type": "text", "text": "said"}]},
        {"role": "user", "content": "now"},
    ]
    length_predictor.spec = replace(length_predictor.spec, context_turns=1, context_characters=100)
    with client_of(length_predictor) as client:
        with_context = predict(client, messages=messages, with_survival=True)["predictions"][0]["survival"]
    np.testing.assert_allclose(with_context, survivals(["assistant: said\n\nuser: now"])[0, 0])


def test_what_cannot_be_predicted_gets_the_marginal_bound(
    client: TestClient, length_predictor: MadeUpPredictor, caplog: pytest.LogCaptureFixture
) -> None:
    """In time, with the reason: too late, too long, or an error of the network, which is logged."""
    bound = length_predictor.spec.calibration("long").marginal_bound(0.1)
    assert predict(client, prompt="x" * 6000, model="long")["predictions"][0]["reason"] == "long_prompt"
    with caplog.at_level(logging.ERROR):
        assert predict(client, prompt="poison", model="long")["predictions"][0]["reason"] == "error"
    assert "cannot be predicted" in caplog.text
    length_predictor.gate.clear()
    start = time.perf_counter()
    row = predict(client, prompt="x", model="long", deadline_ms=50)["predictions"][0]
    assert time.perf_counter() - start < 30.0
    length_predictor.gate.set()
    assert (row["reason"], row["source"], row["output_len_lower_bound"]) == ("deadline", "fallback", bound)
    assert metric(client, 'amin_fallbacks_total{reason="deadline"}') == 1
    assert metric(client, 'amin_predictions_total{source="fallback"}') == 3
    assert predict(client, prompt="xx", model="long")["predictions"][0]["source"] == "model"


def test_a_median_is_at_least_the_bound(client: TestClient) -> None:
    """At a tau above one half, too, whether the model answers or stands back."""
    for prompt in ("x" * 40, "x" * 6000):
        row = predict(client, prompt=prompt, tau=0.9)["predictions"][0]
        assert row["output_len_median"] == row["output_len_lower_bound"] > 1


def test_overload_sheds_to_the_marginal_bound(length_predictor: MadeUpPredictor) -> None:
    """A queue of 2 before a stuck network: the rest is answered immediately, and all of it is answered."""
    with client_of(length_predictor, SidecarSettings(deadline=1.0, max_queue=2, max_wait=0.0)) as client:
        length_predictor.gate.clear()
        rows = predict(client, prompts=[{"prompt": "x"}] * 12, deadline_ms=100)["predictions"]
        length_predictor.gate.set()
    assert {row["source"] for row in rows} == {"fallback"}
    assert sum(row["reason"] == "queue_full" for row in rows) == 10


def test_feedback_of_finished_and_running_requests_adapts_the_bounds(client: TestClient) -> None:
    """Answers shorter than their bounds lower the next bound; running ones count once they reach theirs."""
    first = predict(client, prompt="x" * 400, request_id="r0")["predictions"][0]["output_len_lower_bound"]

    def report(request_id: str, num_tokens: int, state: str) -> str:
        body = {"reports": [{"request_id": request_id, "num_tokens": num_tokens, "state": state}]}
        verdict: str = client.post("/v1/feedback", json=body).json()["verdicts"][0]
        return verdict

    assert report("r0", first - 1, "running") == "pending"
    assert report("r0", first, "running") == "covered"
    assert report("r0", 2 * first, "finished") == "covered"
    assert report("r0", 2 * first, "finished") == "unknown"
    labels = '{model="short",source="model",tau="0.1"}'
    assert metric(client, f"amin_live_coverage{labels}") == 1.0
    assert metric(client, f"amin_live_tightness{labels}") == pytest.approx(0.5)
    level, shipped = (f'{name}{{model="short",tau="0.1"}}' for name in ("amin_level", "amin_shipped_level"))
    assert metric(client, level) == pytest.approx(metric(client, shipped), abs=0.02)
    for i in range(1, 400):
        predict(client, prompt="x" * 400, request_id=f"r{i}")
        report(f"r{i}", 1 + i % 20, "finished")
    assert predict(client, prompt="x" * 400)["predictions"][0]["output_len_lower_bound"] in (1, 2, 3)
    assert predict(client, prompt="x" * 400, model="average")["predictions"][0]["output_len_lower_bound"] > 100
    assert metric(client, level) < 0.1 * metric(client, shipped)
    assert metric(client, 'amin_answers{model="short"}') == 400
    assert metric(client, 'amin_feedback_total{verdict="missed"}') > 80


def test_feedback_may_carry_the_bound_itself(client: TestClient) -> None:
    """For a client that keeps bounds; a tau that cannot be is refused before any report of the request counts."""
    good = {"output_len_lower_bound": 50, "num_tokens": 20, "model": "long"}
    assert client.post("/v1/feedback", json={"reports": [good]}).json() == {"verdicts": ["missed"]}
    status, error = refusal(client, "/v1/feedback", json={"reports": [good, {**good, "tau": 1e-5}]})
    assert (status, error[:4]) == (422, "tau:")
    assert metric(client, 'amin_feedback_total{verdict="missed"}') == 1


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b'{"prompt": "x"', 400, "not JSON"),
        (b'{"prompt": "\xff"}', 400, "not UTF-8 at byte 12"),
        (b'{"prompt": "\\ud800"}', 400, "hex escape"),
        (b'{"prompt": ' + b"[" * 9000 + b"}", 400, "not JSON|cannot be read"),
        (b'{"prompt": "x", "tau": NaN}', 422, "tau"),
        (b'{"prompt": "x", "max_new_tokens": ' + b"9" * 5000 + b"}", 400, "body|cannot be read"),
        (b"[]", 422, "body"),
        (b"null", 422, "body"),
        (b'"x"', 422, "body"),
        (b"{}", 422, "prompt"),
        (b'{"prompt": 5}', 422, "prompt"),
        (b'{"prompt": null}', 422, "prompt"),
        (b'{"prompt": ["x", 5]}', 422, "prompt"),
        (b'{"prompt": "x", "prompts": []}', 422, "prompt"),
        (b'{"prompts": []}', 422, "prompts"),
        (b'{"prompts": [{"prompt": "x"}, {"prompt": {}}]}', 422, "prompts.1.prompt"),
        (b'{"prompts": ' + json.dumps([{"prompt": "x"}] * 21).encode() + b"}", 422, "at most 20"),
        (b'{"prompts": ' + json.dumps([5] * 5000).encode() + b"}", 422, "prompts.0"),
        (b'{"messages": []}', 422, "messages"),
        (b'{"prompt": "x", "tau": "0.1"}', 422, "tau"),
        (b'{"prompt": "x", "tau": 1.0}', 422, "tau"),
        (b'{"prompt": "x", "tau": 0.0001}', 422, "calibration prompts"),
        (b'{"prompt": "x", "max_new_tokens": 0}', 422, "max_new_tokens"),
        (b'{"prompt": "x", "max_new_tokens": true}', 422, "max_new_tokens"),
        (b'{"prompt": "x", "deadline_ms": -1}', 422, "deadline_ms"),
        (b'{"prompt": "' + b"x" * 20_000 + b'"}', 413, "larger than 20000 bytes"),
    ],
)
def test_bad_requests_get_a_status_and_one_line(client: TestClient, content: bytes, status: int, says: str) -> None:
    """And the next request is served."""
    refused, error = refusal(client, "/v1/predict", content=content, headers={"content-type": "application/json"})
    assert refused == status
    assert any(part in error for part in says.split("|")), error
    assert predict(client, prompt="x")["predictions"][0]["source"] == "model"


def test_other_bad_requests(client: TestClient) -> None:
    """Form data from a web page, unknown paths and methods, a negative length of an answer."""
    assert refusal(client, "/v1/predict", content=b'{"prompt": "x"}')[0] == 415
    assert refusal(client, "/v1/predict", data={"prompt": "x"})[0] == 415
    assert refusal(client, "/nowhere", json={})[0] == 404
    assert client.get("/v1/predict").status_code == 405
    report = {"request_id": "a", "num_tokens": -1, "state": "running"}
    assert refusal(client, "/v1/feedback", json={"reports": [report]})[0] == 422
    assert (
        refusal(client, "/v1/feedback", json={"reports": [{**report, "num_tokens": 0, "state": "finished"}]})[0] == 422
    )
    assert metric(client, 'amin_request_seconds_count{path="other",status="404"}') == 1


def test_health_readiness_and_the_api_page(client: TestClient) -> None:
    """Ready while the lifespan lasts; the description is there, without a page that loads scripts from elsewhere."""
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    page = client.get("/openapi.json").json()
    assert "/v1/predict" in page["paths"]
    assert {"PredictRequest", "FeedbackRequest", "PromptBody"} <= set(page["components"]["schemas"])
    assert client.get("/docs").status_code == 404


def test_an_openai_body_is_answered_as_it_is(client: TestClient, length_predictor: MadeUpPredictor) -> None:
    """Unknown fields, a served model by its owner's name or unknown; each prompt of a batch has its answer."""
    body = {
        "model": "somebody/Long", "messages": [{"role": "user", "content": "x" * 40}], "max_completion_tokens": 3,
        "temperature": 0.7, "stream": True, "stream_options": {"include_usage": True}, "tools": [{"type": "function"}],
        "user": "me", "logprobs": None,
    }  # fmt: skip
    answer = predict(client, **body)
    assert (answer["model"], answer["predictions"][0]["output_len_lower_bound"]) == ("long", 3)
    assert predict(client, prompt="x", model="nobody/knows")["model"] == "average"
    rows = predict(client, prompts=[{"prompt": "x"}, {"prompt": ""}, {"prompt": [1, 2]}, {"messages": [{}]}])
    reasons = [row["reason"] for row in rows["predictions"]]
    assert reasons == [None, "no_text", "no_text", "no_text"]
    bound = length_predictor.spec.calibration("short").marginal_bound(0.1)
    assert rows["predictions"][1]["output_len_lower_bound"] == bound
    assert [row["request_id"] for row in predict(client, prompt=["x", "y"], request_id="r")["predictions"]] == [
        "r-0",
        "r-1",
    ]


def test_how_likely_an_answer_ends_within_so_many_tokens(client: TestClient) -> None:
    """By the survival curve, exponential with mean 4 * 25: P(<= t + h | > t) = 1 - exp(-h / 100), up to the bins."""
    for generated in (0, 30):
        row = predict(client, prompt="x" * 25, generated_tokens=generated, ends_within=[1, 20, 100, 600])
        within = row["predictions"][0]["ends_within"]
        expected = 1 - np.exp(-np.array([1, 20, 100]) / 100)
        np.testing.assert_allclose(within[:3], expected, atol=0.03)
        assert within[3] == 1.0
    capped = predict(client, prompt="x" * 25, max_tokens=40, generated_tokens=30, ends_within=[9, 10])
    assert capped["predictions"][0]["ends_within"][0] < capped["predictions"][0]["ends_within"][1] == 1.0
    fallback = predict(client, prompt="", ends_within=[50])["predictions"][0]
    assert 0 < fallback["ends_within"][0] < 1
    assert predict(client, prompt="x")["predictions"][0]["ends_within"] is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),
        ({"host": "evil.example:8080"}, 400),
        ({"host": "localhost.evil.example"}, 400),
        ({"host": "localhost@evil.example"}, 400),
        ({"host": "10.0.0.7"}, 400),
        ({"host": ""}, 400),
        ({"host": "localhost:8080"}, 200),
        ({"host": "127.0.0.1:1"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "Amin.internal"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
    ],
)
def test_pages_of_other_hosts_can_neither_ask_nor_report(
    length_predictor: MadeUpPredictor, headers: dict[str, str], status: int
) -> None:
    """A name that is rebound to this machine still stands in the Host header."""
    with client_of(length_predictor, replace(PATIENT, allowed_hosts=("amin.internal",))) as client:
        assert client.post("/v1/predict", json={"prompt": "x"}, headers=headers).status_code == status
        assert client.get("/metrics", headers=headers).status_code == status


def test_an_unknown_model_is_read_by_the_name_that_the_server_or_the_request_gives(
    length_predictor: MadeUpPredictor,
) -> None:
    """`--like`: one name for all, or the name that came; by default the average; never more corrections than 64."""
    calibrations = {**length_predictor.spec.calibrations, "like:": length_predictor.spec.calibrations["long"]}
    length_predictor.spec = replace(length_predictor.spec, calibrations=calibrations)
    for like, name, read in [
        (None, "org/Qwen3-8B", "average"),
        (None, "like:Qwen3-8B", "like:Qwen3-8B"),
        ("Qwen3-8B", "org/other", "like:Qwen3-8B"),
        ("Qwen3-8B", "org/SHORT", "short"),
        ("request", "org/Qwen3-8B", "like:qwen3-8b"),
    ]:
        with client_of(length_predictor, replace(PATIENT, like=like)) as client:
            assert predict(client, prompt="x" * 25, model=name)["model"] == read
    with client_of(length_predictor, replace(PATIENT, like="request")) as client:
        read_as = [predict(client, prompt="x", model=f"model-{k}b")["model"] for k in range(MAX_ALIKE + 2)]
        assert read_as[-3:] == [f"like:model-{MAX_ALIKE - 1}b", "average", "average"]
        assert predict(client, prompt="x", model="model-3b")["model"] == "like:model-3b"


def test_a_tau_is_judged_by_the_predictor_in_use(length_predictor: MadeUpPredictor) -> None:
    """That it was fine enough for the one before is forgotten with that one."""
    coarse = MadeUpPredictor()
    lengths = [np.array([length]) for length in range(1, 31)]
    tables = dict.fromkeys(("short", "long", "average"), PitCalibration.marginal(lengths))
    coarse.spec = replace(coarse.spec, calibrations=tables)
    with client_of(length_predictor) as client:
        for _ in range(2):
            assert predict(client, prompt="x", tau=0.01)["tau"] == 0.01
        client.app.state.sidecar.take_over(coarse)  # type: ignore[attr-defined]
        assert predict(client, prompt="x", tau=0.1)["tau"] == 0.1
        status, line = refusal(client, "/v1/predict", json={"prompt": "x", "tau": 0.01})
    assert (status, line.split(":")[0]) == (422, "tau")


def test_a_predictor_that_cannot_stand_for_others_says_so(length_predictor: MadeUpPredictor) -> None:
    """At the start, not at the first request; and a request that asks for it itself gets one line."""
    with pytest.raises(InputError, match="no calibration for it"):
        check_settings(length_predictor.spec, replace(PATIENT, like="Qwen3-8B"))
    with client_of(length_predictor) as client:
        status, error = refusal(client, "/v1/predict", json={"prompt": "x", "model": "like:Qwen3-8B"})
        assert (status, "no calibration" in error) == (422, True)


def test_no_redirect_repeats_the_host_header(client: TestClient) -> None:
    """A slash too many is another path."""
    for path in ("/v1/predict/", "/healthz/"):
        assert client.get(path, follow_redirects=False).status_code == 404


def test_a_key_guards_predictions_and_reports(length_predictor: MadeUpPredictor) -> None:
    """Probes and metrics need none."""
    with client_of(length_predictor, replace(PATIENT, api_key="Secret")) as client:
        for path in ("/v1/predict", "/v1/feedback"):
            for value in (None, "Bearer secret", "Bearer Secret2", "Basic Secret", "Secret"):
                assert refusal(client, path, json={}, headers={"authorization": value} if value else {})[0] == 401
        right = {"authorization": "bearer Secret"}
        assert client.post("/v1/predict", json={"prompt": "x"}, headers=right).status_code == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200


def test_a_compressed_body_is_refused_as_such(client: TestClient) -> None:
    """Not as broken JSON."""
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    status, error = refusal(client, "/v1/predict", content=gzip.compress(b'{"prompt": "x"}'), headers=headers)
    assert status == 415
    assert "uncompressed" in error


def test_health_tells_of_a_batcher_that_has_ended(length_predictor: MadeUpPredictor) -> None:
    """503, so that an orchestrator starts the server again; prompts get the marginal bound meanwhile."""
    app = create_app(length_predictor, PATIENT)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/healthz").status_code == 200
        client.portal.call(app.state.sidecar.batcher.__aexit__)  # type: ignore[union-attr]
        assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [503, 503]
        assert predict(client, prompt="x")["predictions"][0]["reason"] == "stopped"


def test_beyond_the_limit_requests_get_503_and_probes_an_answer(length_predictor: MadeUpPredictor) -> None:
    """Two requests are stuck in the network; a third is told immediately."""
    with client_of(length_predictor, replace(PATIENT, max_active=2)) as client:
        length_predictor.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            stuck = [pool.submit(predict, client, prompt="x", deadline_ms=60_000) for _ in range(2)]
            while length_predictor.num_asked + client.app.state.sidecar.batcher.num_waiting < 2:  # type: ignore[attr-defined]
                time.sleep(0.01)
            assert refusal(client, "/v1/predict", json={"prompt": "x"})[0] == 503
            assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
            length_predictor.gate.set()
            assert [answer.result()["predictions"][0]["source"] for answer in stuck] == ["model"] * 2
        assert predict(client, prompt="x")["predictions"][0]["source"] == "model"


def test_metrics_do_not_double_when_the_application_starts_again(length_predictor: MadeUpPredictor) -> None:
    """Each lifespan has gauges of its own."""
    app = create_app(length_predictor, PATIENT)
    for _ in range(2):
        with TestClient(app, base_url="http://localhost") as client:
            assert metric(client, "amin_queue_prompts") == 0


@pytest.mark.parametrize(
    "content",
    [
        b"{" + b",".join(b'"%d": 1' % i for i in range(90_000)) + b', "prompt": "x"}',
        json.dumps({"prompts": [{"prompt": "x", **{str(i): 1 for i in range(400)}}] * 200}).encode(),
        json.dumps({"messages": [{"role": "user", "content": "x"}] * 20_000}).encode(),
        b'{"prompts": [' + b",".join([b"{}"] * 300_000) + b"]}",
    ],
    ids=["keys", "keys in prompts", "messages", "prompts"],
)
def test_large_bodies_do_not_hold_up_the_loop(
    length_predictor: MadeUpPredictor, content: bytes, request: pytest.FixtureRequest
) -> None:
    """About a megabyte: parsed on a thread, and no list of errors without end; the loop is late by little."""
    app = create_app(length_predictor, replace(PATIENT, max_body_bytes=1 << 21, max_prompts=300))
    worst = 0.0
    gc.collect()
    gc.freeze()  # what earlier tests left is not collected while the loop is watched
    request.addfinalizer(gc.unfreeze)

    async def watch() -> None:
        nonlocal worst
        while True:
            start = time.process_time()  # what other processes do does not count
            await asyncio.sleep(0.005)
            worst = max(worst, time.process_time() - start)

    with TestClient(app, base_url="http://localhost") as client:
        watcher = client.portal.start_task_soon(watch)  # type: ignore[union-attr]
        headers = {"content-type": "application/json"}
        assert client.post("/v1/predict", content=content, headers=headers).status_code in (200, 422)
        watcher.cancel()
    assert worst < 0.5


def test_many_bodies_of_reports_are_read_one_at_a_time_off_the_loop(
    length_predictor: MadeUpPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25 of 4,000 reports each: on the one thread that parses; between two looks at other requests few are taken."""
    app = create_app(length_predictor, replace(PATIENT, max_body_bytes=1 << 20))
    reports = [{"request_id": str(i), "num_tokens": 9, "state": "finished"} for i in range(4000)]
    content, headers = json.dumps({"reports": reports}).encode(), {"content-type": "application/json"}
    read, parsers, num_taken = bodies._read, list[str](), Counter[int]()

    def noting_read(*arguments: Any) -> Any:
        parsers.append(threading.current_thread().name)
        return read(*arguments)

    monkeypatch.setattr(bodies, "_read", noting_read)
    num_looks = 0

    async def look() -> None:
        nonlocal num_looks
        while True:
            num_looks += 1
            await asyncio.sleep(0)

    with TestClient(app, base_url="http://localhost") as client, ThreadPoolExecutor(25) as senders:
        ledger = app.state.sidecar.ledger
        report = ledger.report

        def counting_report(*arguments: Any) -> Any:
            num_taken[num_looks] += 1
            return report(*arguments)

        monkeypatch.setattr(type(ledger), "report", lambda self, *arguments: counting_report(*arguments))
        looking = client.portal.start_task_soon(look)  # type: ignore[union-attr]
        answers = list(senders.map(lambda _: client.post("/v1/feedback", content=content, headers=headers), range(25)))
        looking.cancel()
    assert [answer.status_code for answer in answers] == [200] * 25
    assert set(parsers) == {"parse_0"}
    assert num_taken.total() == 25 * 4000
    assert max(num_taken.values()) <= 25 * 128


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_answered(client: TestClient, content: bytes) -> None:
    """With a 4xx in JSON, for both paths."""
    for path in ("/v1/predict", "/v1/feedback"):
        assert refusal(client, path, content=content, headers={"content-type": "application/json"})[0] in (400, 422)


def fuzzed_app() -> FastAPI:
    """The application whose own description the fuzzing follows, which does not know of its limit on bodies."""
    return create_app(MadeUpPredictor(), SidecarSettings(max_body_bytes=1 << 24, allowed_hosts=("testserver",)))


schema = schemathesis.openapi.from_asgi("/openapi.json", fuzzed_app())


@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_api_keeps_its_own_description(case: schemathesis.Case) -> None:
    """Statuses, content types and bodies are as described, and nothing gives a 5xx."""
    # What a schema cannot say is refused as well: blank prompts, unknown models, a tau too fine for the calibration.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
