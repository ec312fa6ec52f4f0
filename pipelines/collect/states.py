"""The states of the collected answers: shards next to the records, made when the answers are there."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from pipelines.collect.draws import Key
from pipelines.files import atomic_file
from pipelines.served_model.answer_states import Answer, answer_states
from pipelines.served_model.loading import ServedModel
from predictor.probe.states import StateSource, write_shard

ANSWERS_IN_SHARD = 256


def write_states(
    served: ServedModel,
    source: StateSource,
    prompts: Sequence[Sequence[int]],
    tokens: Mapping[Key, Sequence[int]],
    folder: Path,
) -> float:
    """Write the shards that are missing: what is in one depends on the answers alone. Return the seconds it took.

    Args:
        served: The model that gave the answers.
        source: What its states are called, and which layers are kept.
        prompts: Token ids by prompt.
        tokens: Token ids of every answer.
        folder: Of the shards.
    """
    started = time.perf_counter()
    folder.mkdir(exist_ok=True)
    answers = [Answer(i, d, prompts[i], tokens[i, d]) for i, d in sorted(tokens)]
    with tqdm(total=len(answers), desc="states", unit="answer") as bar:
        for number, first in enumerate(range(0, len(answers), ANSWERS_IN_SHARD)):
            part, file = answers[first : first + ANSWERS_IN_SHARD], folder / f"{number:05d}.safetensors"
            if not file.exists():
                with atomic_file(file) as aside:
                    write_shard(aside, answer_states(served, source, part))
            bar.update(len(part))
    return time.perf_counter() - started
