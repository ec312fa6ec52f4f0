"""Serve an exported predictor over HTTP, next to an engine."""

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from starlette.applications import Starlette

from pipelines.settings.serve import ServeSettings
from predictor.errors import InputError
from predictor.serving import LengthPredictor
from predictor.sidecar.access import is_loopback
from predictor.sidecar.answers import SidecarSettings, check_settings
from predictor.sidecar.app import create_app
from predictor.sidecar.connections import make_server
from predictor.sidecar.feedback import FeedbackLedger, LedgerSettings
from predictor.sidecar.state import read_state

# The event loop asks the worker thread for the interpreter this often; the default of 5 ms shows in the latency.
SWITCH_INTERVAL = 0.0005
API_KEY_VARIABLE = "AMIN_API_KEY"


def run(args: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what is in flight and return; read the folder again at SIGHUP.

    Raises:
        InputError: the folder is no whole export, or the address cannot be bound.
        SystemExit: with 0, after a signal.
    """
    settings = sidecar_settings(args)
    length_predictor = LengthPredictor(args.export, num_threads=args.threads)
    check_settings(length_predictor.spec, settings)
    if args.state is not None:
        check_state(args.state, length_predictor)
    listener = listen(args.host, args.port)
    app = create_app(length_predictor, settings)
    server = make_server(app, max_connections=args.max_connections, patience=args.silence)
    handle_signals(app, args.export, args.threads, settings)
    # Last: who reads the address may send a signal.
    print(f"amin serve: {address_of(listener)} (API: /openapi.json)", flush=True)
    warn_of_strangers("amin serve", listener.getsockname()[0], settings.api_key)
    server.run(sockets=[listener])


def handle_signals(app: Starlette, folder: Path, num_threads: int, settings: SidecarSettings) -> None:
    """End with code 0 at SIGTERM and Ctrl-C, read the predictor's folder again at SIGHUP; threads take short turns."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    # uvicorn raises the signal again when it is done; without a handler the process would end as killed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    read_again_at_hangup(app, folder, num_threads, settings)


def address_of(listener: socket.socket) -> str:
    """Return the URL that a socket listens on."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def check_state(file: Path, length_predictor: LengthPredictor) -> None:
    """Raise InputError where a file can be neither read as a state nor made."""
    read_state(file, length_predictor.spec, FeedbackLedger(length_predictor.spec).restore)
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"--state {file}: {file.parent} is no folder that can be written to")


def read_again_at_hangup(app: Starlette, folder: Path, num_threads: int, settings: SidecarSettings) -> None:
    """Read the folder again at each SIGHUP and answer by it; where it cannot be read all stays as it is."""

    def read_again() -> None:
        try:
            length_predictor = LengthPredictor(folder, num_threads=num_threads)
            check_settings(length_predictor.spec, settings)
        except InputError as error:
            print(f"amin: the predictor stays as it is: {error}", file=sys.stderr, flush=True)
            return
        while not hasattr(app.state, "loop"):  # it has only begun to start
            time.sleep(0.01)
        app.state.loop.call_soon_threadsafe(app.state.sidecar.take_over, length_predictor)
        print(f"amin: {folder} has been read again", flush=True)

    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=read_again, daemon=True).start())


def sidecar_settings(args: ServeSettings) -> SidecarSettings:
    """Return what the sidecar itself is told."""
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
        body_timeout=args.silence,
        max_active=args.max_connections,
        allowed_hosts=tuple(filter(None, args.allowed_hosts.split(","))),
        api_key=read_api_key(args.api_key_file),
        like=args.like,
        state_file=args.state,
        feedback=LedgerSettings(
            adapt=args.adapt, only_asked=args.feedback == "asked", max_client_share=args.max_client_share
        ),
    )


def read_api_key(file: Path | None) -> str | None:
    """Return the key in a file, else the one in the environment, else None; InputError where the file holds none."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api-key-file {file}: cannot be read: {error}") from None
    if not key.isascii() or not key.isprintable() or not key:
        raise InputError(f"--api-key-file {file}: must hold one line of printable ASCII characters")
    return key


def warn_of_strangers(command: str, host: str, api_key: str | None) -> None:
    """Say on stderr where anyone on the network can use a server."""
    if api_key is None and not is_loopback(host):
        line = f"{host} is reached from other machines, and anyone there can read predictions and steer the bounds"
        print(f"{command}: warning: {line}; give a key with --api-key-file", file=sys.stderr, flush=True)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address; InputError where it cannot."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server((str(address[0]), int(address[1])), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} --port {port}: cannot listen there: {error}") from None
    # Inherited by its connections. asyncio leaves it off on a socket of ours, and each answer would wait 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
