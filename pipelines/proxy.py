"""An OpenAI-compatible proxy in front of an engine: predicts at arrival, adds hints, learns from the answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipelines.serve import address_of, check_state, handle_signals, listen
from pipelines.settings.proxy import ProxySettings
from predictor.serving import LengthPredictor
from predictor.sidecar.answers import SidecarSettings, check_settings
from predictor.sidecar.connections import make_server
from predictor.sidecar.feedback import LedgerSettings
from predictor.sidecar.lifespan import predicting
from predictor.sidecar.metrics import ServerMetrics
from predictor.sidecar.relay import Relay, create_relay_app, make_client
from predictor.spec import LengthPredictorLike


def run(args: ProxySettings) -> None:
    """Pass requests on until SIGTERM or Ctrl-C, then end what is in flight and return; read the folder again at SIGHUP.

    Raises:
        InputError: the folder is no whole export, or the address cannot be bound.
        SystemExit: with 0, after a signal.
    """
    length_predictor = LengthPredictor(args.predictor, num_threads=args.threads)
    settings = sidecar_settings(args)
    check_settings(length_predictor.spec, settings)
    if args.state is not None:
        check_state(args.state, length_predictor)
    listener = listen(args.host, args.port)
    app = create_proxy(length_predictor, args)
    server = make_server(app, max_connections=args.max_connections, patience=args.silence)
    handle_signals(app, args.predictor, args.threads, settings)
    print(f"amin proxy: {address_of(listener)} -> {args.upstream}", flush=True)
    server.run(sockets=[listener])


def create_proxy(length_predictor: LengthPredictorLike, args: ProxySettings) -> Starlette:
    """Return the application; its worker threads and its connections to the engine live as long as its lifespan."""
    metrics, options = ServerMetrics(), sidecar_settings(args)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with (
            predicting(app, length_predictor, options, metrics) as sidecar,
            make_client(args.connect_timeout) as client,
        ):
            app.state.relay = Relay(client, args.upstream, sidecar, args.engine, metrics.add_wait)
            yield

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics_text(request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    own = {"/healthz": healthz, "/metrics": metrics_text}
    app = create_relay_app(lambda: app.state.relay, lifespan, own)
    return app


def sidecar_settings(args: ProxySettings) -> SidecarSettings:
    """Return what the prediction itself is told; a prompt waits for no other."""
    return SidecarSettings(
        tau=args.tau,
        deadline=args.deadline_ms / 1000,
        max_wait=0.0,
        max_queue=args.max_queue,
        num_workers=args.workers,
        feedback=LedgerSettings(adapt=args.adapt),
        like=args.like,
        state_file=args.state,
    )
