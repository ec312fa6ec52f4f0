"""Records of several served models as a table: a row per distinct request, a column per served model."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.prompts.context import UNKNOWN, RequestContext
from predictor.records.records import Records


@dataclass(frozen=True, slots=True)
class PromptTable:
    """P distinct requests and M served models.

    A request is a prompt and, where the records tell, its context; `places` [P, M] holds the index of the record, -1
    where there is none.
    """

    records: Records
    prompts: tuple[str, ...]
    models: tuple[str, ...]
    places: IntArray
    contexts: tuple[RequestContext, ...] | None = None

    def column(self, model: str) -> tuple[IntArray, Records]:
        """Return the rows that have a record of `model`, and these records."""
        places = self.places[:, self.models.index(model)]
        rows = np.flatnonzero(places >= 0)
        return rows, self.records.select(places[rows])

    def columns(self) -> Iterator[tuple[int, str, IntArray, Records]]:
        """Yield the number, the name, the rows and the records of each served model."""
        for number, model in enumerate(self.models):
            yield number, model, *self.column(model)


def prompt_table(records: Records, models: tuple[str, ...]) -> PromptTable:
    """Return the table of `records` with a column for each of `models`.

    A prompt that one served model has twice, under two identities, takes two rows.
    """
    columns = {model: number for number, model in enumerate(models)}
    seen: Counter[tuple[str, RequestContext, str]] = Counter()
    row_of: dict[tuple[str, RequestContext, int], int] = {}
    cells: list[tuple[int, int]] = []
    contexts = records.contexts or (UNKNOWN,) * len(records)
    for prompt, context, model in zip(records.prompts, contexts, records.models, strict=True):
        row = row_of.setdefault((prompt, context, seen[prompt, context, model]), len(row_of))
        seen[prompt, context, model] += 1
        cells.append((row, columns[model]))
    places = np.full((len(row_of), len(models)), -1, dtype=np.int64)
    for index, cell in enumerate(cells):
        places[cell] = index
    known = None if records.contexts is None else tuple(context for _, context, _ in row_of)
    return PromptTable(records, tuple(prompt for prompt, _, _ in row_of), models, places, known)


def served_models(records: Records) -> tuple[str, ...]:
    """Return the names of the served models in `records`, sorted."""
    return tuple(sorted(set(records.models)))
