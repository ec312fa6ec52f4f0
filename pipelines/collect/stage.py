"""Collect output lengths: real sampled answers of the served model to each prompt, several draws each."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.collect.answer_tokens import AnswerTokens
from pipelines.collect.draws import Answerer, Collected, PartialFile, digest
from pipelines.collect.folder import prepare_folder, states_folder
from pipelines.files import atomic_file, content_sha256
from pipelines.served_model.chats import chat_of
from pipelines.settings.collect import CollectSettings
from predictor.bounds.metrics import between_prompt_share
from predictor.errors import InputError
from predictor.probe.states import SOURCE_FILE, write_source
from predictor.records.records import prompt_of, select_rows
from predictor.records.rows import Row

Chat = list[dict[str, str]]

MADE_WITH = b"amin_collect"
"""Key of the settings in the metadata of the records."""


def run(settings: CollectSettings) -> None:
    """Collect the draws that are missing and write the records when all are there."""
    rows = select_rows(settings.prompts, settings.model, settings.split)[: settings.limit]
    chats = [chat_of(row) for row in rows]
    made_with = _made_with(settings, chats)
    if settings.out.exists() and not settings.force:
        _require_same(settings, made_with)
        print(f"{settings.out}: finished already and left alone; --force collects anew")
        return
    partial, tokens = PartialFile(settings.out, made_with), AnswerTokens(settings.out)
    is_anew = settings.force or not settings.resume
    if is_anew:
        partial.remove()
        tokens.remove()
    if settings.layers or is_anew:
        prepare_folder(settings.out, is_begun=partial.path.exists(), force=is_anew)
    if settings.endpoints:
        from pipelines.collect.endpoint import collect_from  # aiohttp

        answerer = collect_from(settings, chats, partial)
    else:
        from pipelines.collect.local import collect_here  # torch

        answerer = collect_here(settings, chats, partial)
    _write(settings, rows, chats, answerer, partial.read(), made_with)
    tokens.remove()
    partial.remove()


def _made_with(settings: CollectSettings, chats: Sequence[Any]) -> dict[str, Any]:
    """Return what all answers of one file must share."""
    return {
        "served_model": settings.served_model,
        "endpoint": settings.endpoint is not None,
        "prompts": digest(chats),
        "draws": settings.draws,
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        **settings.sampling.given,
        **({"states": list(settings.layers)} if settings.layers else {}),
    }


def _require_same(settings: CollectSettings, made_with: dict[str, Any]) -> None:
    stored = (pq.read_schema(settings.out).metadata or {}).get(MADE_WITH)
    there = None if stored is None else json.loads(stored)
    if there is not None and there != made_with:
        name = next(name for name in {**there, **made_with} if there.get(name) != made_with.get(name))
        raise InputError(
            f"--out: {settings.out} was made with {name} {there.get(name)}, now it is {made_with.get(name)}; give "
            "another name, or replace it with --force"
        )


def _write(
    settings: CollectSettings,
    given: Sequence[Row],
    chats: Sequence[Chat],
    answerer: Answerer,
    collected: Collected,
    made_with: dict[str, Any],
) -> None:
    rows = [prompt_of(row) for row in given]
    kept = [[collected.ended[i, d] for d in range(settings.draws)] for i in range(len(rows))]
    for i, length in collected.cut:
        kept[i].append((length, True))
    columns: dict[str, Any] = {
        "prompt_id": [row.prompt_id for row in rows],
        "dataset": [row.dataset for row in rows],
        "model": [answerer.name] * len(rows),
        "prompt": [row.prompt for row in rows],
        "num_prompt_tokens": answerer.num_prompt_tokens,
        "output_lens": [[length for length, _ in draws] for draws in kept],
        "is_truncated": [[is_truncated for _, is_truncated in draws] for draws in kept],
        "max_new_tokens": pa.array(
            [None if _longer(settings, kept) else settings.max_new_tokens] * len(rows), pa.int64()
        ),
    }
    if any(len(chat) > 1 for chat in chats):  # what was asked besides the prompts belongs to the lengths
        columns["messages"] = chats
    if all(row.split for row in rows):
        columns["split"] = [row.split for row in rows]
    table = pa.table(columns).replace_schema_metadata({MADE_WITH: json.dumps(made_with)})
    with atomic_file(settings.out) as aside:
        pq.write_table(table, aside)
        if answerer.states is not None:  # the records come last: while they are missing, the same call goes on
            with atomic_file(states_folder(settings.out) / SOURCE_FILE) as named:
                write_source(named.parent, answerer.states, content_sha256(aside))
    print(f"{settings.out}: {_summary(settings, kept)}")


def _longer(settings: CollectSettings, kept: Sequence[Sequence[tuple[int, bool]]]) -> int:
    """Return how many answers are longer than the cap: of a server that ignores it, whose rows then state none."""
    return sum(length > settings.max_new_tokens for draws in kept for length, _ in draws)


def _summary(settings: CollectSettings, kept: Sequence[Sequence[tuple[int, bool]]]) -> str:
    lengths = [np.array([length for length, _ in draws]) for draws in kept]
    cut = [is_truncated for draws in kept for _, is_truncated in draws]
    share = between_prompt_share(lengths)
    longer = _longer(settings, kept)
    return (
        f"{len(kept)} prompts x {settings.draws} draws, mean length {np.concatenate(lengths).mean():.0f} tokens, "
        f"{np.mean(cut):.1%} cut at {settings.max_new_tokens}"
        + ("" if share is None else f", {share:.0%} of the variance of log length is between prompts")
        + (f"; {longer} answers are longer: the server ignores the cap, and their lengths stand" if longer else "")
    )
