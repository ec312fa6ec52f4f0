"""The sidecar's HTTP interface, in-process, on a made-up predictor of two served models."""

import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
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
from predictor.sidecar.answers import SidecarSettings
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
        self.gate = threading.Event()
        self.gate.set()

    def survivals(self, prompts: Sequence[str]) -> np.ndarray:
        """[N, 2, K+1]."""
        self.gate.wait(5)
        if any("poison" in prompt for prompt in prompts):
            raise RuntimeError("poison")
        return survivals(prompts)


PATIENT = SidecarSettings(deadline=5.0, max_prompts=20, max_body_bytes=20_000, max_prompt_chars=5000)


@pytest.fixture
def length_predictor() -> MadeUpPredictor:
    """A fresh one a test."""
    return MadeUpPredictor()


@pytest.fixture
def client(length_predictor: MadeUpPredictor) -> Iterator[TestClient]:
    """An application whose lifespan is entered, with time for every prompt."""
    with TestClient(create_app(length_predictor, PATIENT)) as client:
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
    with TestClient(create_app(length_predictor, PATIENT)) as client:
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
    assert time.perf_counter() - start < 2.0
    length_predictor.gate.set()
    assert (row["reason"], row["source"], row["output_len_lower_bound"]) == ("deadline", "fallback", bound)
    assert metric(client, 'amin_fallbacks_total{reason="deadline"}') == 1
    assert metric(client, 'amin_predictions_total{source="fallback"}') == 3
    assert predict(client, prompt="xx", model="long")["predictions"][0]["source"] == "model"


def test_overload_sheds_to_the_marginal_bound(length_predictor: MadeUpPredictor) -> None:
    """A queue of 2 before a stuck network: the rest is answered at once, and all of it is answered."""
    with TestClient(create_app(length_predictor, SidecarSettings(deadline=1.0, max_queue=2, max_wait=0.0))) as client:
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
    assert metric(client, f"amin_online_correction{labels}") == 0.0
    for i in range(1, 15):
        predict(client, prompt="x" * 400, request_id=f"r{i}")
        assert report(f"r{i}", 1, "finished") == "missed"
    assert predict(client, prompt="x" * 400)["predictions"][0]["output_len_lower_bound"] < first
    other = predict(client, prompt="x" * 400, model="average")["model"]
    assert other == "average"
    assert metric(client, f"amin_live_coverage{labels}") == pytest.approx(1 / 15)
    assert metric(client, f"amin_online_correction{labels}") < 0
    assert metric(client, 'amin_feedback_total{verdict="missed"}') == 14


def test_feedback_may_carry_the_bound_itself(client: TestClient) -> None:
    """For a client that keeps bounds; an unknown model is refused before any report of the request counts."""
    good = {"output_len_lower_bound": 50, "num_tokens": 20, "model": "long"}
    assert client.post("/v1/feedback", json={"reports": [good]}).json() == {"verdicts": ["missed"]}
    status, error = refusal(client, "/v1/feedback", json={"reports": [good, {**good, "model": "gpt"}]})
    assert (status, error[:12]) == (422, "model: 'gpt'")
    assert metric(client, 'amin_feedback_total{verdict="missed"}') == 1


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 422, "body"),
        (b'{"prompt": "x"', 400, "not JSON"),
        (b'{"prompt": "\xff"}', 400, "not UTF-8 at byte 12"),
        (b'{"prompt": "\\ud800"}', 422, "surrogate"),
        (b'{"prompt": ' + b"[" * 9000 + b"}", 400, "not JSON|cannot be read"),
        (b'{"prompt": "x", "tau": NaN}', 422, "tau"),
        (b'{"prompt": "x", "max_new_tokens": ' + b"9" * 5000 + b"}", 400, "body|cannot be read"),
        (b"[]", 422, "body"),
        (b"null", 422, "body"),
        (b'"x"', 422, "body"),
        (b"{}", 422, "prompt"),
        (b'{"prompt": ""}', 422, "prompt: empty"),
        (b'{"prompt": " \\n"}', 422, "prompt: empty"),
        (b'{"prompt": 5}', 422, "prompt"),
        (b'{"prompt": null}', 422, "prompt"),
        (b'{"prompt": ["x"]}', 422, "prompt"),
        (b'{"prompt": "x", "prompts": []}', 422, "prompt"),
        (b'{"prompts": []}', 422, "prompts"),
        (b'{"prompts": [{"prompt": "x"}, {"prompt": ""}]}', 422, "prompts.1.prompt: empty"),
        (b'{"prompts": ' + json.dumps([{"prompt": "x"}] * 21).encode() + b"}", 422, "at most 20"),
        (b'{"prompts": ' + json.dumps([5] * 5000).encode() + b"}", 422, "prompts.0"),
        (b'{"messages": []}', 422, "messages"),
        (b'{"messages": [{"role": "system", "content": "x"}]}', 422, "no message of role user"),
        (b'{"messages": [{"role": "user", "content": 5}]}', 422, "text"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "user", "content": "x"}]}', 422, "surrogate"),
        (
            b'{"messages": [{"role": "user", "content": [5, {"type": "text"}]}]}',
            422,
            "messages: no message of role user with text",
        ),
        (b'{"prompt": "x", "tau": "0.1"}', 422, "tau"),
        (b'{"prompt": "x", "tau": 1.0}', 422, "tau"),
        (b'{"prompt": "x", "tau": 0.0001}', 422, "calibration prompts"),
        (b'{"prompt": "x", "model": "gpt"}', 422, "it knows short, long, average"),
        (b'{"prompt": "x", "max_new_tokens": 0}', 422, "max_new_tokens"),
        (b'{"prompt": "x", "max_new_tokens": true}', 422, "max_new_tokens"),
        (b'{"prompt": "x", "deadline_ms": -1}', 422, "deadline_ms"),
        (b'{"prompt": "x", "surprise": 1}', 422, "surprise"),
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
    """Ready while the lifespan lasts; the page and its schema are there."""
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert "/v1/predict" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 200


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_answered(client: TestClient, content: bytes) -> None:
    """With a 4xx in JSON, for both paths."""
    for path in ("/v1/predict", "/v1/feedback"):
        assert refusal(client, path, content=content, headers={"content-type": "application/json"})[0] in (400, 422)


def fuzzed_app() -> FastAPI:
    """The application whose own description the fuzzing follows, which does not know of its limit on bodies."""
    return create_app(MadeUpPredictor(), SidecarSettings(max_body_bytes=1 << 24))


schema = schemathesis.openapi.from_asgi("/openapi.json", fuzzed_app())


@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_api_keeps_its_own_description(case: schemathesis.Case) -> None:
    """Statuses, content types and bodies are as described, and nothing gives a 5xx."""
    # What a schema cannot say is refused as well: blank prompts, unknown models, a tau too fine for the calibration.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
