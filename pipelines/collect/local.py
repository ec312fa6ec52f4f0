"""Answers generated here, with a snapshot now and then."""

from collections.abc import Mapping, Sequence

from pipelines.collect.draws import Answer, Collected, Key, PartialFile
from pipelines.served_model.answers import Snapshot, generate
from pipelines.served_model.loading import Chat, ServedModel, device_memory, encode_chats, load_served_model
from pipelines.settings.collect import CollectSettings
from predictor.errors import InputError
from scheduler.integrations.transformers_engine import Output


def collect_here(settings: CollectSettings, chats: Sequence[Chat], partial: PartialFile) -> tuple[str, list[int]]:
    """Generate the draws that are missing, up to the file; return the model's name and the prompts' lengths."""
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
    prompts = encode_chats(served, chats, settings.prompts)
    before = partial.read()
    todo = [(i, d) for d in range(settings.draws) for i in range(len(prompts)) if (i, d) not in before.ended]
    if before.ended or before.begun:
        total = len(prompts) * settings.draws
        print(f"continuing: {len(before.ended)} of {total} answers are there, {len(before.begun)} begun")
    if todo:
        _generate(settings, served, prompts, todo, before, partial)
    return served.name, [len(prompt) for prompt in prompts]


def _generate(
    settings: CollectSettings,
    served: ServedModel,
    prompts: Sequence[list[int]],
    todo: Sequence[Key],
    before: Collected,
    partial: PartialFile,
) -> None:
    begun = [before.begun.get(key, []) for key in todo]

    def ended(outputs: Mapping[int, Output]) -> dict[Key, Answer]:
        new = {todo[k]: (len(begun[k]) + len(out.tokens), out.is_truncated) for k, out in outputs.items()}
        return {**before.ended, **new}

    def keep(snapshot: Snapshot) -> None:
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
    partial.keep(Collected(ended(dict(enumerate(outputs)))))
