"""What predictors reach on records, one line a predictor: all served models together, each by its own calibration.

`--as-average` takes each for a model that nobody knows, `--as-new` for one of which the name alone is known. Where the
records have more than the predictors were to be tested on, `--datasets`, `--without` and `--split` choose.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.predict import survivals_with_progress
from pipelines.studies.predictor.tables import TITLES, cells, markdown
from predictor.bounds.metrics import CLIPPED_AT
from predictor.errors import InputError
from predictor.quality import MeasuredBounds
from predictor.records.prompt_table import prompt_table
from predictor.records.records import Records, records_from_rows
from predictor.records.rows import read_rows
from predictor.resolve import resolve_predictor
from predictor.spec import AVERAGE, LIKE, LengthPredictorLike

TAU = 0.1


def main() -> None:
    """Parse, predict, print."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.predictor.check", description=__doc__)
    parser.add_argument("predictors", nargs="+", help="runs, predictor folders or exports")
    parser.add_argument("--data", type=Path, required=True, help="records of several served models")
    parser.add_argument("--split", default="test", help="test, or all for every row (default: test)")
    parser.add_argument("--datasets", nargs="*", default=[], help="data sets that count (default: all)")
    parser.add_argument("--without", nargs="*", default=[], help="data sets left out")
    parser.add_argument("--as-average", action="store_true", help="predict as for a served model that nobody knows")
    parser.add_argument("--as-new", action="store_true", help="predict from the other served models that are like it")
    parser.add_argument("--by-model", action="store_true", help="a line for each served model as well")
    args = parser.parse_args()
    records = chosen(args.data, args.split, args.datasets, args.without)
    rows = []
    for path in args.predictors:
        bounds = measured(resolve_predictor(path), records, as_average=args.as_average, as_new=args.as_new)
        parts = {Path(path).name: bounds}
        for model in sorted(set(bounds.records.models)) if args.by_model else ():
            parts[model] = bounds.select(np.flatnonzero(np.asarray(bounds.records.models) == model).tolist())
        for name, part in parts.items():
            rows.append([name, f"{len(part.records):,}", *cells(part.quality(TAU, CLIPPED_AT).to_dict())])
    print(markdown(("predictor", "records", *TITLES), rows))


def chosen(data: Path, split: str, datasets: Sequence[str], without: Sequence[str]) -> Records:
    """Return the records that count; InputError where there are none."""
    records = records_from_rows(read_rows(data, one_model=False))
    kept = ~np.isin(records.datasets, without)
    if split != "all":
        kept &= np.asarray(records.splits or [""] * len(records)) == split
    if datasets:
        kept &= np.isin(records.datasets, datasets)
    if not kept.any():
        raise InputError(f"{data}: no row of split {split!r} and data sets {', '.join(datasets) or 'of any name'}")
    return records.select(np.flatnonzero(kept))


def measured(
    length_predictor: LengthPredictorLike, records: Records, *, as_average: bool = False, as_new: bool = False
) -> MeasuredBounds:
    """Return the bounds of the records whose served model is known, or of all as the average or as a new one."""
    spec = length_predictor.spec
    if not (as_average or as_new):
        records = records.select(np.flatnonzero(np.isin(records.models, spec.models)))
    table = prompt_table(records, tuple(sorted(set(records.models))))
    survivals = survivals_with_progress(length_predictor, table.prompts, "predict", table.contexts, shown=True)
    bounds, medians = np.zeros(len(records)), np.zeros(len(records))
    for number, model, rows, _ in table.columns():
        name = AVERAGE if as_average else LIKE + model if as_new else model
        predictions = spec.predictions(spec.survival_of(survivals[rows], name), TAU, model=name)
        places = table.places[rows, number]
        bounds[places], medians[places] = predictions.lower_bounds, predictions.medians
    return MeasuredBounds(records, bounds, medians)


if __name__ == "__main__":
    main()
