"""What a server that predicts has while it runs: worker threads, a sidecar, and a file of what was learnt."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import attrgetter

from starlette.applications import Starlette

from predictor.bounds.distribution import FloatArray
from predictor.sidecar.answers import Sidecar, SidecarSettings, Task, survivals_of
from predictor.sidecar.batching import Batcher
from predictor.sidecar.metrics import ServerMetrics
from predictor.sidecar.state import kept, read_state
from predictor.spec import LengthPredictorLike

# Up to so many tokens a batch takes less time than its prompts apart: five of 24 take six tenths of it.
_BATCH_TOKENS = 128


@asynccontextmanager
async def predicting(
    app: Starlette, length_predictor: LengthPredictorLike, settings: SidecarSettings, metrics: ServerMetrics
) -> AsyncIterator[Sidecar]:
    """Yield the sidecar of an application, which is then also in `app.state`, and end its threads afterwards.

    Raises:
        InputError: the state file is not one that a server wrote.
    """
    batcher = Batcher[Task, FloatArray](
        survivals_of,
        size=attrgetter("size"),
        max_work=max(length_predictor.spec.max_prompt_tokens, _BATCH_TOKENS),
        max_wait=settings.max_wait,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        num_workers=settings.num_workers,
        on_batch=metrics.add_batch,
    )
    sidecar = Sidecar(length_predictor, batcher, settings, metrics.add_answers)
    app.state.sidecar, app.state.loop = sidecar, asyncio.get_running_loop()
    if settings.state_file is not None:
        read_state(settings.state_file, sidecar.spec, sidecar.ledger.restore)
    with metrics.watching(sidecar):
        async with batcher, kept(settings.state_file, lambda: (sidecar.spec, sidecar.ledger)):
            yield sidecar
