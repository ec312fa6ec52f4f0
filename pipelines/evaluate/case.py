"""What all runs of `amin evaluate` share: prompts, bounds, reference lengths and the options of policies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.collect.draws import PartialFile
from pipelines.evaluate.reference import reference_answers
from pipelines.request_bounds import RequestBounds
from pipelines.served_model.chats import chat_of
from pipelines.served_model.loading import ServedModel, encode_chats
from pipelines.settings.evaluate import EvaluateSettings
from predictor.records.records import prompt_of, read_records, select_rows
from predictor.records.rows import read_rows
from scheduler.kv_cache import KvCache
from scheduler.loop import check_fits
from scheduler.request import Request

DEFAULT_TAU = 0.1


@dataclass(frozen=True, slots=True)
class Case:
    """Prompts and, by prompt, facts and reference lengths; None where lengths are free."""

    bounds: RequestBounds
    texts: list[str]
    prompts: list[list[int]]
    facts: list[Request]
    """As they are at arrival, with nothing predicted."""
    requests: list[Request]
    """With what is predicted of each where there is time: for the default size of the cache and the report."""
    output_lens: list[int] | None
    reference: list[list[int]] | None
    """Token ids of the unconstrained greedy run, to compare with."""
    policy_options: Mapping[str, dict[str, Any]]
    """By name of a policy, what it is built with."""
    tokens: list[list[int]] | None = None
    """Token ids that the answers are made to have, where their states are read; otherwise lengths alone are forced."""


def prepare(
    settings: EvaluateSettings,
    served: ServedModel,
    policy_options: Mapping[str, dict[str, Any]],
    kept: dict[str, Any] | None,
    partial: PartialFile,
) -> Case:
    """Return the case: prompts read and encoded, bounds predicted, reference lengths taken or made.

    Args:
        settings: Settings of `amin evaluate`.
        served: The model.
        policy_options: By name of a policy, what it is built with.
        kept: `output_lens`, `reference` and `tokens` of an interrupted evaluation, or None.
        partial: Where reference answers are kept until they are whole.

    Raises:
        InputError: A file, option or prompt that the user can fix.
    """
    assert settings.predictor is not None, "the settings ask for one where no server is given"
    bounds = RequestBounds.read(settings.predictor, settings.predictor_model, settings.tau or DEFAULT_TAU)
    given = select_rows(settings.prompts, settings.model, settings.split)[: settings.limit]
    rows = [prompt_of(row) for row in given]
    prompts = encode_chats(served, [chat_of(row) for row in given], settings.prompts)
    texts = [row.prompt for row in rows]
    facts = [
        Request(row.prompt_id, len(prompt), settings.max_new_tokens, service_class=from_file.text("class"))
        for row, prompt, from_file in zip(rows, prompts, given, strict=True)
    ]
    requests = bounds.predicted(facts, texts)
    if settings.kv_blocks:  # before anything is generated
        for request in facts:
            check_fits(request, KvCache(settings.kv_blocks, settings.block_size))
    if kept is not None:
        known = (kept["output_lens"], kept["reference"], policy_options, kept.get("tokens"))
        return Case(bounds, texts, prompts, facts, requests, *known)
    is_forced = settings.decoding == "forced"
    output_lens = _recorded_lens(settings) if is_forced and settings.probe is None else None
    reference = tokens = None
    if output_lens is None and settings.decoding != "sample":
        answers = reference_answers(served, prompts, settings.seed, partial)
        output_lens = list(map(len, answers))
        reference = None if is_forced else answers
        tokens = answers if is_forced and settings.probe else None
    return Case(bounds, texts, prompts, facts, requests, output_lens, reference, policy_options, tokens)


def _recorded_lens(settings: EvaluateSettings) -> list[int] | None:
    """Return the first recorded draw of each prompt, cut at the cap, or None if the file has no lengths."""
    if not any(
        "output_lens" in row.fields or "output_len" in row.fields
        for row in read_rows(settings.prompts, one_model=False)
    ):
        return None
    records = read_records(settings.prompts, settings.model)
    chosen = [i for i in range(len(records)) if settings.split is None or (records.splits or ())[i] == settings.split]
    return [min(int(records.output_lens[i][0]), settings.max_new_tokens) for i in chosen[: settings.limit]]


def default_blocks(case: Case, block_size: int) -> int:
    """Return 15 % of the blocks that all requests hold at their peak, but enough for the largest one alone."""
    blocks = [-(-(r.num_prompt_tokens + (r.output_len_prediction or 1)) // block_size) for r in case.requests]
    largest = max(-(-(r.num_prompt_tokens + r.max_new_tokens) // block_size) for r in case.requests)
    return max(largest, sum(blocks) * 15 // 100)
