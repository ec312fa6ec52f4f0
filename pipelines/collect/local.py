"""Answers generated here, with a snapshot now and then."""

import time
from collections.abc import Mapping, Sequence

from pipelines.collect.answer_tokens import AnswerTokens
from pipelines.collect.draws import Answer, Answerer, Collected, Key, PartialFile
from pipelines.collect.folder import say_size, states_folder
from pipelines.collect.states import write_states
from pipelines.served_model.answers import Snapshot, generate
from pipelines.served_model.hidden_states import state_source
from pipelines.served_model.loading import Chat, ServedModel, device_memory, encode_chats, load_served_model
from pipelines.settings.collect import CollectSettings
from predictor.errors import InputError
from scheduler.integrations.transformers_engine import Output


def collect_here(settings: CollectSettings, chats: Sequence[Chat], partial: PartialFile) -> Answerer:
    """Generate the draws that are missing, up to the file, and then the states that are asked for."""
    served = load_served_model(
        settings.served_model,
        settings.max_new_tokens,
        settings.device,
        sampling=settings.sampling,
        trust_remote_code=settings.trust_remote_code,
    )
    if settings.draws > 1 and not served.generation_config.do_sample:
        raise InputError(
            f"--draws {settings.draws}: {served.name} takes the likeliest token, so that all draws would be the same; "
            "give --temperature, or --draws 1"
        )
    source = state_source(served, settings.layers) if settings.layers else None
    prompts = encode_chats(served, chats, settings.prompts)
    before = partial.read()
    if source is not None:
        say_size(source, len(prompts) * settings.draws, settings.max_new_tokens, states_folder(settings.out))
    started, kept = time.perf_counter(), AnswerTokens(settings.out)
    tokens = kept.read(before.ended) if source is not None else None
    todo = [(i, d) for d in range(settings.draws) for i in range(len(prompts)) if (i, d) not in before.ended]
    if before.ended or before.begun:
        total = len(prompts) * settings.draws
        print(f"continuing: {len(before.ended)} of {total} answers are there, {len(before.begun)} begun")
    if todo:
        answers = _generate(settings, served, prompts, todo, before, partial, None if source is None else kept)
        tokens = None if tokens is None else {**tokens, **answers}
    if source is not None and tokens is not None:
        generated = time.perf_counter() - started
        seconds = write_states(served, source, prompts, tokens, states_folder(settings.out))
        print(f"states: {seconds:.0f} s, {seconds / (generated + seconds):.1%} of the time of this call")
    return Answerer(served.name, [len(prompt) for prompt in prompts], source)


def _generate(
    settings: CollectSettings,
    served: ServedModel,
    prompts: Sequence[list[int]],
    todo: Sequence[Key],
    before: Collected,
    partial: PartialFile,
    kept: AnswerTokens | None,
) -> dict[Key, list[int]]:
    """Return the tokens of the answers to `todo`; those that end are put into `kept` on the way."""
    begun = [before.begun.get(key, []) for key in todo]

    def ended(outputs: Mapping[int, Output]) -> dict[Key, Answer]:
        new = {todo[k]: (len(begun[k]) + len(out.tokens), out.is_truncated) for k, out in outputs.items()}
        return {**before.ended, **new}

    def whole(outputs: Mapping[int, Output]) -> dict[Key, list[int]]:
        return {todo[k]: [*begun[k], *out.tokens] for k, out in outputs.items()}

    def keep(snapshot: Snapshot) -> None:
        if kept is not None:
            kept.add(whole(snapshot.ended))
        done = ended(snapshot.ended)
        going_on = {todo[k]: [*begun[k], *new] for k, new in snapshot.begun.items()}
        not_yet = {key: tokens for key, tokens in before.begun.items() if key not in done}
        partial.keep(Collected(done, {**not_yet, **going_on}))

    with device_memory("lower --max-running or --max-new-tokens"):
        outputs = generate(
            served,
            [prompts[i] for i, _ in todo],
            max_running=settings.max_running,
            seed=settings.seed + before.num_tokens,  # a continued run must not repeat the draws it has
            description="collect",
            begun=begun,
            on_snapshot=keep,
        )
    last = dict(enumerate(outputs))
    if kept is not None:
        kept.add(whole(last))
    partial.keep(Collected(ended(last)))
    return whole(last)
