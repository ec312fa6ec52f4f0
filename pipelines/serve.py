"""Serve an exported predictor over HTTP, beside an engine."""

import argparse
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from predictor.errors import InputError

if TYPE_CHECKING:
    from predictor.sidecar.answers import SidecarSettings

HELP = "serve an export over HTTP: bounds at arrival, corrected online by what becomes of the requests"

ADAPTATIONS = ("off", "lower", "both")
# The event loop asks the worker thread for the interpreter this often; the default of 5 ms shows in the latency.
SWITCH_INTERVAL = 0.0005


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `amin serve`."""
    add = parser.add_argument
    add("export", metavar="SERVING", type=Path, help="folder that amin export wrote")
    add("--host", default="127.0.0.1", help="address to listen on; anyone who reaches it can use and steer the server")
    add("--port", type=int, default=8080, help="port; 0 takes a free one and prints it")
    add("--tau", type=float, default=0.1, help="probability allowed below the bound, where a request names none")
    add("--deadline-ms", type=float, default=100.0, help="milliseconds until the marginal bound is the answer")
    add("--max-wait-ms", type=float, default=2.0, help="milliseconds that a prompt waits for others in its batch")
    add("--max-batch", type=int, default=8, help="most prompts in one inference")
    add("--max-queue", type=int, default=256, help="most prompts that wait; others get the marginal bound at once")
    add("--workers", type=int, default=2, help="inferences at the same time, each on a core of its own")
    add("--threads", type=int, default=1, help="threads of onnxruntime in an inference; 0: its own choice")
    add("--max-body-bytes", type=int, default=1 << 20, help="largest request body")
    add("--max-prompts", type=int, default=256, help="most prompts in one request")
    add("--max-prompt-chars", type=int, default=20_000, help="longer prompts get the marginal bound at once")
    add("--max-connections", type=int, default=512, help="most open connections; others get 503")
    add("--adapt", choices=ADAPTATIONS, default="lower", help="what feedback may do to the bounds")
    add("--step", type=float, default=0.005, help="step of the online correction")


def run(args: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what is in flight and return.

    Raises:
        InputError: the folder is no whole export, an option is out of range, or the address cannot be bound.
        SystemExit: with 0, after a signal.
    """
    try:
        import uvicorn

        from predictor.serving import LengthPredictor
        from predictor.sidecar.app import create_app
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install -e '.[serve]'") from None
    settings = settings_of(args)
    length_predictor = LengthPredictor(args.export, num_threads=args.threads)
    length_predictor.spec.calibration().level(settings.tau)
    listener = listen(args.host, args.port)
    config = uvicorn.Config(
        create_app(length_predictor, settings),
        log_level="warning",
        access_log=False,
        limit_concurrency=args.max_connections,
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    host, port = listener.getsockname()[:2]
    print(f"amin serve: http://{f'[{host}]' if ':' in host else host}:{port} (API: /docs)", flush=True)
    sys.setswitchinterval(SWITCH_INTERVAL)
    # uvicorn raises the signal again when it is done; without a handler the process would end as killed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    uvicorn.Server(config).run(sockets=[listener])


def settings_of(args: argparse.Namespace) -> "SidecarSettings":
    """Return the options as settings; InputError where one is out of range."""
    from predictor.sidecar.answers import SidecarSettings
    from predictor.sidecar.online import MAX_LOOP_GAIN
    from predictor.sidecar.schema import MAX_PROMPTS

    at_least_one = ("max_batch", "max_queue", "max_body_bytes", "max_prompt_chars")
    for name in (*at_least_one, "max_connections"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: must be at least 1, not {getattr(args, name)}")
    for name, low, high in (
        ("deadline_ms", 1, 60_000),
        ("max_wait_ms", 0, 60_000),
        ("threads", 0, 4096),
        ("workers", 1, 4096),
        ("max_prompts", 1, MAX_PROMPTS),
    ):
        if not low <= getattr(args, name) <= high:
            raise InputError(
                f"--{name.replace('_', '-')}: must lie between {low} and {high}, not {getattr(args, name)}"
            )
    if not 0.0 < args.step <= MAX_LOOP_GAIN:
        raise InputError(f"--step: must lie between 0 and {MAX_LOOP_GAIN}, not {args.step}")
    return SidecarSettings(
        tau=args.tau,
        deadline=args.deadline_ms / 1000,
        max_wait=args.max_wait_ms / 1000,
        max_batch=args.max_batch,
        max_queue=args.max_queue,
        num_workers=args.workers,
        max_prompts=args.max_prompts,
        max_prompt_chars=args.max_prompt_chars,
        max_body_bytes=args.max_body_bytes,
        step=0.0 if args.adapt == "off" else args.step,
        may_raise=args.adapt == "both",
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address; InputError where it cannot."""
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port: must lie between 0 and 65535, not {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((str(address[0]), int(address[1])), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there: {error}") from None
    # Inherited by its connections. asyncio leaves it off on a socket of ours, and each answer would wait 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
