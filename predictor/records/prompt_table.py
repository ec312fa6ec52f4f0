"""Records of several served models as a table: a row per distinct prompt, a column per served model."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.records.records import Records


@dataclass(frozen=True, slots=True)
class PromptTable:
    """P distinct prompts and M served models; `places` [P, M] holds the index of the record, -1 where there is none."""

    records: Records
    prompts: tuple[str, ...]
    models: tuple[str, ...]
    places: IntArray

    def column(self, model: str) -> tuple[IntArray, Records]:
        """Return the rows that have a record of `model`, and these records."""
        places = self.places[:, self.models.index(model)]
        rows = np.flatnonzero(places >= 0)
        return rows, self.records.select(places[rows])

    def columns(self) -> Iterator[tuple[int, str, IntArray, Records]]:
        """Yield the number, the name, the rows and the records of each served model."""
        for number, model in enumerate(self.models):
            yield number, model, *self.column(model)

    def pooled_draws(self) -> list[IntArray]:
        """Return for each prompt the draws of all served models together."""
        lengths = self.records.output_lens
        return [np.concatenate([lengths[place] for place in places[places >= 0]]) for places in self.places]


def prompt_table(records: Records, models: tuple[str, ...]) -> PromptTable:
    """Return the table of `records` with a column for each of `models`.

    A prompt that one served model has twice, under two identities, takes two rows.
    """
    columns = {model: number for number, model in enumerate(models)}
    seen: Counter[tuple[str, str]] = Counter()
    row_of: dict[tuple[str, int], int] = {}
    cells: list[tuple[int, int]] = []
    for prompt, model in zip(records.prompts, records.models, strict=True):
        row = row_of.setdefault((prompt, seen[prompt, model]), len(row_of))
        seen[prompt, model] += 1
        cells.append((row, columns[model]))
    places = np.full((len(row_of), len(models)), -1, dtype=np.int64)
    for index, cell in enumerate(cells):
        places[cell] = index
    return PromptTable(records, tuple(prompt for prompt, _ in row_of), models, places)


def served_models(records: Records) -> tuple[str, ...]:
    """Return the names of the served models in `records`, sorted."""
    return tuple(sorted(set(records.models)))
