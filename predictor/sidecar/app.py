"""The sidecar over HTTP: bounds at arrival, feedback afterwards, health and metrics."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from predictor.errors import InputError
from predictor.sidecar.answers import Answer, Sidecar, SidecarSettings, num_tokens_about
from predictor.sidecar.batching import Batcher
from predictor.sidecar.feedback import TrackKey
from predictor.sidecar.guard import Guard, on_crash, on_http_error, on_input_error, on_invalid, problem
from predictor.sidecar.metrics import ServerMetrics
from predictor.sidecar.schema import (
    BoundReport,
    FeedbackRequest,
    FeedbackResponse,
    IdReport,
    Prediction,
    PredictRequest,
    PredictResponse,
    Problem,
    Status,
)
from predictor.spec import LengthPredictorLike

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "not JSON"},
    408: {"model": Problem, "description": "the body did not arrive in time"},
    413: {"model": Problem, "description": "the body is too large"},
    415: {"model": Problem, "description": "not application/json"},
    422: {"model": Problem, "description": "JSON, but not as described"},
}


def create_app(length_predictor: LengthPredictorLike, settings: SidecarSettings | None = None) -> FastAPI:
    """Return the application that serves `length_predictor`; its worker threads live as long as its lifespan."""
    options = settings or SidecarSettings()
    metrics = ServerMetrics()
    max_tokens = length_predictor.spec.max_prompt_tokens

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher = Batcher(
            length_predictor.survivals,
            size=lambda prompt: num_tokens_about(prompt, max_tokens),
            max_work=max_tokens,
            max_wait=options.max_wait,
            max_batch=options.max_batch,
            max_queue=options.max_queue,
            num_workers=options.num_workers,
            on_batch=metrics.add_batch,
        )
        app.state.sidecar = Sidecar(length_predictor.spec, batcher, options, metrics.add_answers)
        metrics.watch(app.state.sidecar)
        async with batcher:
            yield

    app = FastAPI(
        title="Amin length predictor",
        description="Calibrated lower bounds of LLM response lengths, in tokens.",
        lifespan=lifespan,
        exception_handlers={
            RequestValidationError: on_invalid,
            InputError: on_input_error,
            HTTPException: on_http_error,
            Exception: on_crash,
        },
    )
    app.add_middleware(
        Guard, max_bytes=options.max_body_bytes, timeout=options.body_timeout, on_request=metrics.add_request
    )
    _add_predict(app, options)
    _add_feedback(app, metrics)
    _add_probes(app, metrics)
    return app


def _add_predict(app: FastAPI, options: SidecarSettings) -> None:
    @app.post("/v1/predict", response_model=PredictResponse, responses=_PROBLEMS)
    async def predict(request: Annotated[PredictRequest, Body()]) -> PredictResponse | JSONResponse:
        """Bounds for one prompt or several, by the model or, where time or room is short, without it."""
        sidecar = _sidecar(app)
        asks = request.asks(sidecar.spec.chat_options)
        if len(asks) > options.max_prompts:
            return problem(422, f"prompts: {len(asks)}, at most {options.max_prompts} in one request")
        tau, model = sidecar.check(request.tau, request.model)
        deadline = None if request.deadline_ms is None else request.deadline_ms / 1000
        answers = await sidecar.predict(asks, tau, model, deadline)
        return PredictResponse(
            tau=tau,
            model=model,
            bin_edges=sidecar.spec.bins.to_list() if request.with_survival else None,
            predictions=[_prediction(answer, with_survival=request.with_survival) for answer in answers],
        )


def _prediction(answer: Answer, *, with_survival: bool) -> Prediction:
    return Prediction(
        request_id=answer.request_id,
        output_len_lower_bound=answer.lower_bound,
        output_len_median=answer.median,
        source=answer.source,
        reason=answer.reason,
        survival=answer.survival.tolist() if with_survival and answer.survival is not None else None,
    )


def _add_feedback(app: FastAPI, metrics: ServerMetrics) -> None:
    @app.post("/v1/feedback", response_model=FeedbackResponse, responses=_PROBLEMS)
    async def feedback(request: FeedbackRequest) -> FeedbackResponse:
        """Lengths of finished and running requests, which correct the bounds to come."""
        sidecar = _sidecar(app)
        # All bounds are checked before any report counts.
        keys = [_key(sidecar, report) if isinstance(report, BoundReport) else None for report in request.reports]
        verdicts = []
        for report, key in zip(request.reports, keys, strict=True):
            if isinstance(report, IdReport):
                verdicts.append(sidecar.ledger.report(report.request_id, report.num_tokens, report.state))
            else:
                assert key is not None
                bound = report.output_len_lower_bound
                verdicts.append(sidecar.ledger.report_unremembered(key, bound, report.num_tokens))
        metrics.add_verdicts(verdicts)
        return FeedbackResponse(verdicts=verdicts)


def _key(sidecar: Sidecar, report: BoundReport) -> TrackKey:
    tau, model = sidecar.check(report.tau, report.model)
    return TrackKey(tau, model, report.source)


def _add_probes(app: FastAPI, metrics: ServerMetrics) -> None:
    @app.get("/healthz", response_model=Status)
    async def healthz() -> Status:
        """Whether the process answers."""
        return Status(status="ok")

    @app.get("/readyz", response_model=Status, responses={503: {"model": Problem, "description": "not predicting"}})
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
