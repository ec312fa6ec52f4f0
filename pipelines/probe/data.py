"""The data of `amin train --states`: states of each split with what became of their answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.files import content_sha256
from predictor.bounds.bins import IntArray
from predictor.errors import InputError
from predictor.probe.fit import ProbeData
from predictor.probe.states import States, StateSource, read_source, read_states
from predictor.records.records import Records, read_records


@dataclass(frozen=True, slots=True)
class SplitStates:
    """One split: its records, the record of each state, [S], and the states with what became of their answers."""

    records: Records
    record_of: IntArray
    data: ProbeData


def read_matching_source(folder: Path, data: str) -> StateSource:
    """Return what the states in `folder` are of.

    Raises:
        InputError: They are not of the answers in the records `data`, which is one file.
    """
    source, digest = read_source(folder)
    if not Path(data).is_file():
        raise InputError(f"--data: {data}: with --states it must be the file of records that amin collect wrote")
    if content_sha256(Path(data)) != digest:
        raise InputError(
            f"--states: {folder} has states of other records than {data}; give the records that were collected with "
            "them, or collect both again"
        )
    return source


def load_states(folder: Path, source: StateSource, data: str, splits: Mapping[str, Records]) -> dict[str, SplitStates]:
    """Return the states of each split; InputError where they do not fit their records."""
    row_of = {prompt_id: row for row, prompt_id in enumerate(read_records(data).prompt_ids)}
    parts: dict[str, list[States]] = {name: [] for name in splits}
    rows = {name: np.array([row_of[each] for each in records.prompt_ids]) for name, records in splits.items()}
    for shard in read_states(folder, source):
        for name in splits:
            parts[name].append(shard.select(np.isin(shard.prompt, rows[name])))
    return {
        name: _with_lengths(folder, States.concatenate(parts[name]), rows[name], records)
        for name, records in splits.items()
    }


def _with_lengths(folder: Path, states: States, rows: IntArray, records: Records) -> SplitStates:
    order = np.argsort(rows)
    record_of = order[np.searchsorted(rows[order], states.prompt)]
    if records.num_prompt_tokens is None or None in records.num_prompt_tokens:
        raise InputError("num_prompt_tokens: missing in the records; collect them again")
    sizes = np.array(records.num_prompt_tokens, dtype=np.int64)
    lengths, flags = np.zeros(len(states), dtype=np.int64), np.zeros(len(states), dtype=np.bool_)
    for row, (record, draw) in enumerate(zip(record_of, states.draw, strict=True)):
        drawn = records.output_lens[record]
        if draw >= len(drawn) or states.generated[row] >= drawn[draw]:
            raise InputError(
                f"{folder}: a state after {states.generated[row]} tokens of draw {draw} of prompt_id "
                f"{records.prompt_ids[record]!r}, which the records do not have; collect both again"
            )
        lengths[row], flags[row] = drawn[draw], records.is_truncated[record][draw]
    return SplitStates(records, record_of, ProbeData(states, sizes[record_of], lengths - states.generated, flags))
