"""A random probe of the random served model, and small servers in this process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web


@pytest.fixture(scope="session")
def make_probe(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a random probe of the first layer of the random model, its source changed as given."""
    import torch

    from pipelines.predictor_digest import predictor_sha256
    from pipelines.served_model.hidden_states import state_source
    from pipelines.served_model.loading import load_served_model
    from predictor.bounds.bins import LengthBins
    from predictor.probe.calibration import Scores, StageCalibration
    from predictor.probe.conditioned import Mixture
    from predictor.probe.network import ProbeNetwork, ProbeShape
    from predictor.probe.probe import Probe

    served = load_served_model(str(chat_model), 24, "cpu")
    source = state_source(served, [1])

    def make(*, bias: float | None = None, mixed_with: Path | None = None, **changes: Any) -> Path:
        torch.manual_seed(0)
        bins = LengthBins.log_spaced(64, 12)
        network = ProbeNetwork(ProbeShape(source.hidden_size, bins.num_bins, 16)).eval()
        torch.nn.init.normal_(network.hazard.weight, std=0.5)
        if bias is not None:
            torch.nn.init.constant_(network.hazard.bias, bias)
        rng = np.random.default_rng(0)
        prompt, out = np.arange(200), np.repeat([0, 8], 100)
        calibration = StageCalibration.fit(Scores(prompt, prompt * 0, out, rng.random(200), prompt + 1, prompt < 0))
        mixture = None if mixed_with is None else Mixture(0.5, predictor_sha256(mixed_with), calibration)
        folder = tmp_path_factory.mktemp("probe")
        Probe(network, bins, replace(source, **changes), calibration, mixture).save(folder)
        return folder

    return make


@contextmanager
def in_a_thread(app: web.Application) -> Iterator[str]:
    """Serve an application on a thread of its own meanwhile; yield its address."""
    loop, runner, started = asyncio.new_event_loop(), web.AppRunner(app), threading.Event()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        started.set()
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


@pytest.fixture
def serve() -> Iterator[Callable[[web.Application], str]]:
    """A function that serves an application until the end of the test, and returns its address."""
    with ExitStack() as running:
        yield lambda app: running.enter_context(in_a_thread(app))
