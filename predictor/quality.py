"""What was predicted for records of known length, by served model and pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from predictor.bounds.bins import IntArray
from predictor.bounds.distribution import FloatArray
from predictor.bounds.metrics import BoundQuality, bound_quality
from predictor.records.prompt_table import PromptTable
from predictor.records.records import Records
from predictor.spec import PredictorSpec


@dataclass(frozen=True, slots=True)
class MeasuredBounds:
    """Lower bounds and medians [N] in tokens of N records, whose lengths are known."""

    records: Records
    lower_bounds: FloatArray | IntArray
    medians: FloatArray | IntArray

    def select(self, indices: Sequence[int]) -> "MeasuredBounds":
        """Return what was predicted for the records at `indices`."""
        rows = np.asarray(indices, dtype=np.int64)
        return MeasuredBounds(self.records.select(rows), self.lower_bounds[rows], self.medians[rows])

    def quality(self, tau: float, max_length: int) -> BoundQuality:
        """Return all measures; lengths are clipped at `max_length` tokens."""
        records = self.records
        return bound_quality(
            self.lower_bounds,
            self.medians,
            records.output_lens,
            records.datasets,
            tau,
            max_length,
            records.is_truncated,
        )


def bounds_by_model(
    spec: PredictorSpec, survivals: FloatArray, table: PromptTable, tau: float
) -> dict[str, MeasuredBounds]:
    """Return the bounds at `tau` for the records of each served model, from the survivals [P, M, K+1] of `table`."""
    measured: dict[str, MeasuredBounds] = {}
    for number, model, rows, records in table.columns():
        predictions = spec.predictions(survivals[rows, number], tau, model=model)
        measured[model] = MeasuredBounds(records, predictions.lower_bounds, predictions.medians)
    return measured


def pool(parts: Mapping[str, MeasuredBounds], table: PromptTable) -> MeasuredBounds:
    """Return the bounds of all served models of `table` together."""
    columns = [table.places[:, number] for number in range(len(table.models))]
    places = np.concatenate([column[column >= 0] for column in columns])
    bounds, medians = (
        np.concatenate([getattr(parts[model], name) for model in table.models]) for name in ("lower_bounds", "medians")
    )
    return MeasuredBounds(table.records.select(places), bounds, medians)
