"""Measure one running server, or two side by side on the same requests, in real generation seen from outside."""

import asyncio
from collections.abc import Sequence
from typing import Any

from pipelines.collect.asking import Chat
from pipelines.collect.draws import digest
from pipelines.evaluate.endpoint.figures import answered
from pipelines.evaluate.endpoint.knock import find_servers
from pipelines.evaluate.endpoint.measure import Server, ServerRun, measure, plan
from pipelines.evaluate.endpoint.output import num_warm_up, write_all
from pipelines.evaluate.endpoint.store import ServerRuns
from pipelines.served_model.chats import chat_of
from pipelines.settings.evaluate import EvaluateSettings
from predictor.errors import InputError
from predictor.records.records import select_rows


def run(settings: EvaluateSettings) -> None:
    """Ask every server in every seed, write results and report.

    Raises:
        InputError: A file, an option or a server that the user can fix; finished runs stay.
    """
    chats = [chat_of(row) for row in select_rows(settings.prompts, settings.model, settings.split)[: settings.limit]]
    plans = {seed: plan(settings.arrivals, len(chats), seed) for seed in _seeds(settings)}
    servers = asyncio.run(find_servers(settings, chats))
    store = ServerRuns(settings.out, _shared_by_runs(settings, servers, chats, plans), resume=settings.resume)
    wanted = turns(servers, list(plans))
    runs = {(s.name, seed): found for s, seed in wanted if (found := store.load(s.name, seed, len(chats))) is not None}
    if runs:
        print(f"continuing: {len(runs)} of {len(wanted)} runs are there")
    try:
        for server, seed in wanted:
            if (server.name, seed) not in runs:
                made = asyncio.run(measure(server, seed, plans[seed], chats, settings))
                _require_answers(server, made, num_warm_up(settings, len(chats)))
                store.keep(made)
                runs[server.name, seed] = made
    finally:
        missing = [f"{server.name} seed {seed}" for server, seed in wanted if (server.name, seed) not in runs]
        if runs:
            in_order = [runs[server.name, seed] for seed in plans for server in servers if (server.name, seed) in runs]
            write_all(settings, servers, chats, in_order, missing)


def turns(servers: Sequence[Server], seeds: Sequence[int]) -> list[tuple[Server, int]]:
    """Return the runs in the order in which they are made: seed by seed, the server that begins alternating.

    Two servers are never asked at the same time: they may share a machine, and each is to be measured alone.
    """
    return [(server, seed) for k, seed in enumerate(seeds) for server in (servers[::-1] if k % 2 else servers)]


def _seeds(settings: EvaluateSettings) -> range:
    return range(settings.seed, settings.seed + settings.seeds)


def _shared_by_runs(
    settings: EvaluateSettings, servers: Sequence[Server], chats: Sequence[Chat], plans: Any
) -> dict[str, Any]:
    """Return what all runs of one evaluation must share."""
    return {
        "endpoint": settings.servers.endpoint,
        "endpoint_b": settings.servers.endpoint_b,
        "served models": [server.model for server in servers],
        "prompts": digest(chats),
        "arrivals": settings.arrivals,
        "times of arrival": digest([[each.arrival_time for each in plans[settings.seed]]]),
        "max_new_tokens": settings.max_new_tokens,
        "sampling": settings.sampling.given,
        "seed": settings.seed,
    }


def _require_answers(server: Server, made: ServerRun, num_left_out: int) -> None:
    if not answered(made)[num_left_out:].any():
        option = "--endpoint" if server.name == "a" else "--endpoint-b"
        problem = next((sent.error for sent in made.requests if sent.error), "all answers came in the warm-up")
        raise InputError(
            f"{option} {server.url}: no request of seed {made.seed} was answered ({problem}); finished runs are kept, "
            "--resume goes on"
        )
