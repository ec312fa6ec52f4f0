"""The sidecar over HTTP: bounds at arrival, feedback afterwards, health and metrics."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from predictor.sidecar.access import Access
from predictor.sidecar.answers import Answer, Sidecar, SidecarSettings
from predictor.sidecar.bodies import describe, described, read_body
from predictor.sidecar.feedback import TrackKey, Verdict
from predictor.sidecar.guard import FEEDBACK, PREDICT, Endpoint, Guard
from predictor.sidecar.lifespan import predicting
from predictor.sidecar.metrics import ServerMetrics
from predictor.sidecar.problem import on_crash, on_http_error, problem
from predictor.sidecar.schema import (
    BoundReport,
    FeedbackRequest,
    FeedbackResponse,
    IdReport,
    PredictRequest,
    PredictResponse,
    Problem,
    Status,
)
from predictor.spec import LengthPredictorLike

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "not JSON, or a host that is not trusted"},
    401: {"model": Problem, "description": "without the key"},
    403: {"model": Problem, "description": "from a page of a host that is not trusted"},
    408: {"model": Problem, "description": "the body did not arrive in time"},
    413: {"model": Problem, "description": "the body is too large"},
    415: {"model": Problem, "description": "not application/json, or compressed"},
    422: {"model": Problem, "description": "JSON, but not as described"},
    503: {"model": Problem, "description": "too many requests at a time"},
}
_NOT_PREDICTING: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "not predicting"}}
# Reports between two looks at other requests.
_REPORTS_AT_ONCE = 128


def create_app(length_predictor: LengthPredictorLike, settings: SidecarSettings | None = None) -> FastAPI:
    """Return the application that serves `length_predictor`; its worker threads live as long as its lifespan."""
    options = settings or SidecarSettings()
    metrics = ServerMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with predicting(app, length_predictor, options, metrics):
            yield

    app = FastAPI(
        title="Amin length predictor",
        description="Calibrated lower bounds of LLM response lengths, in tokens.",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would repeat the Host header
        docs_url=None,  # the page loads scripts from elsewhere
        redoc_url=None,
        # Metrics are ours; to look for others at each request takes time.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        exception_handlers={HTTPException: on_http_error, Exception: on_crash},
    )
    app.add_middleware(
        Guard,
        endpoints={PREDICT: _add_predict(app, options), FEEDBACK: _add_feedback(app, metrics)},
        max_bytes=options.max_body_bytes,
        timeout=options.body_timeout,
        max_active=options.max_active,
        on_request=metrics.add_request,
    )
    app.add_middleware(Access, hosts=options.allowed_hosts, key=options.api_key)
    _add_probes(app, metrics)
    describe(app, PredictRequest, FeedbackRequest)
    return app


def _add_predict(app: FastAPI, options: SidecarSettings) -> Endpoint:
    async def predict(body: bytes, client: str) -> Response:
        """Bounds for one prompt or several, by the model or, where time or room is short, without it."""
        request = await read_body(PredictRequest, body)
        if isinstance(request, JSONResponse):
            return request
        sidecar = _sidecar(app)
        asks = request.asks(sidecar.spec.chat_options)
        if len(asks) > options.max_prompts:
            return problem(422, f"prompts: {len(asks)}, at most {options.max_prompts} in one request")
        tau, model = sidecar.check(request.tau, request.model)
        deadline = None if request.deadline_ms is None else request.deadline_ms / 1000
        answers = await sidecar.predict(asks, tau, model, deadline, request.ends_within)
        # What is answered is ours: to check it against `PredictResponse` is left to the tests.
        response = {
            "tau": tau,
            "model": model,
            "bin_edges": sidecar.spec.bins.to_list() if request.with_survival else None,
            "predictions": [_prediction(answer, with_survival=request.with_survival) for answer in answers],
        }
        return Response(to_json(response), media_type="application/json")

    _list(app, PREDICT, predict, PredictRequest, PredictResponse)
    return predict


def _prediction(answer: Answer, *, with_survival: bool) -> dict[str, Any]:
    return {
        "request_id": answer.request_id,
        "output_len_lower_bound": answer.lower_bound,
        "output_len_median": answer.median,
        "source": answer.source,
        "reason": answer.reason,
        "survival": answer.survival.tolist() if with_survival and answer.survival is not None else None,
        "ends_within": answer.ends_within,
    }


def _add_feedback(app: FastAPI, metrics: ServerMetrics) -> Endpoint:
    async def feedback(body: bytes, client: str) -> Response:
        """Lengths of finished and running requests, which correct the bounds to come."""
        request = await read_body(FeedbackRequest, body)
        if isinstance(request, JSONResponse):
            return request
        sidecar, verdicts = _sidecar(app), list[Verdict]()
        # All bounds are checked before any report counts.
        keys = [_key(sidecar, report) if isinstance(report, BoundReport) else None for report in request.reports]
        for report, key in zip(request.reports, keys, strict=True):
            verdicts.append(_take(sidecar, report, key, client))
            if len(verdicts) % _REPORTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        metrics.add_verdicts(verdicts)
        return Response(FeedbackResponse(verdicts=verdicts).model_dump_json(), media_type="application/json")

    _list(app, FEEDBACK, feedback, FeedbackRequest, FeedbackResponse)
    return feedback


def _list(app: FastAPI, path: str, answer: Endpoint, body: type[BaseModel], response: type[BaseModel]) -> None:
    """Put an endpoint on the API page; requests never come this way, since `Guard` answers them before."""

    async def listed(request: Request) -> Response:
        return await answer(await request.body(), request.client.host if request.client else "")

    app.post(
        path,
        response_model=response,
        responses=_PROBLEMS,
        openapi_extra=described(body),
        name=path.rpartition("/")[2],
        description=answer.__doc__,
    )(listed)


def _take(sidecar: Sidecar, report: IdReport | BoundReport, key: TrackKey | None, client: str) -> Verdict:
    if isinstance(report, IdReport):
        return sidecar.ledger.report(report.request_id, report.num_tokens, report.state, client)
    assert key is not None
    return sidecar.ledger.report_unremembered(key, report.output_len_lower_bound, report.num_tokens, client)


def _key(sidecar: Sidecar, report: BoundReport) -> TrackKey:
    tau, model = sidecar.check(report.tau, report.model)
    return TrackKey(tau, model, report.source)


def _add_probes(app: FastAPI, metrics: ServerMetrics) -> None:
    @app.get("/healthz", response_model=Status, responses=_NOT_PREDICTING)
    async def healthz() -> Status | JSONResponse:
        """Whether the server can do its work; it is to be started again where it cannot."""
        return Status(status="ok") if _sidecar(app).batcher.is_running else problem(503, "prompts are not predicted")

    @app.get("/readyz", response_model=Status, responses=_NOT_PREDICTING)
    async def readyz() -> Status | JSONResponse:
        """Whether prompts are being predicted; without, they get the marginal bound."""
        return Status(status="ready") if _sidecar(app).batcher.is_running else problem(503, "not predicting")

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics_text() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _sidecar(app: FastAPI) -> Sidecar:
    sidecar: Sidecar = app.state.sidecar
    return sidecar
