"""The reference answers of an evaluation, in a file that survives an interruption until they are whole."""

from collections.abc import Sequence

from pipelines.collect.draws import Collected, Key, PartialFile
from pipelines.served_model.answers import Snapshot, generate
from pipelines.served_model.loading import ServedModel

MAX_RUNNING = 32


def reference_answers(
    served: ServedModel, prompts: Sequence[list[int]], seed: int, partial: PartialFile
) -> list[list[int]]:
    """Return the token ids of an answer to each prompt, made without memory pressure; the file has them then.

    Answers that an interrupted call had begun are continued: to draw them afresh would leave out the long ones.
    """
    before = partial.read()
    todo = [(i, 0) for i in range(len(prompts)) if (i, 0) not in before.ended]
    if before.begun:
        num_begun = len(before.begun) - len(before.ended)
        print(f"continuing: {len(before.ended)} of {len(prompts)} reference answers are there, {num_begun} begun")
    if todo:
        outputs = generate(
            served,
            [prompts[i] for i, _ in todo],
            max_running=MAX_RUNNING,
            # A continued call must not repeat the draws it has.
            seed=seed + sum(map(len, before.begun.values())),
            description="reference",
            begun=[before.begun.get(key, ()) for key in todo],
            on_snapshot=lambda snapshot: partial.keep(_with(before, todo, snapshot)),
        )
        before = _with(before, todo, Snapshot(dict(enumerate(outputs)), {}))
        partial.keep(before)
    return [list(before.begun[i, 0]) for i in range(len(prompts))]


def _with(before: Collected, todo: Sequence[Key], snapshot: Snapshot) -> Collected:
    """Return what there was and what came; the tokens of ended answers too, which are compared with later ones."""
    new = {todo[k]: list(so_far) for k, so_far in snapshot.begun.items()}
    new |= {todo[k]: output.tokens for k, output in snapshot.ended.items()}
    tokens = {**before.begun, **{key: [*before.begun.get(key, ()), *rest] for key, rest in new.items()}}
    ended = {todo[k]: (len(tokens[todo[k]]), output.is_truncated) for k, output in snapshot.ended.items()}
    return Collected({**before.ended, **ended}, tokens)
