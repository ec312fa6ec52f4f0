"""What a predictor knows of a new served model after a few prompts: with the heads of another, or with new ones.

START is a run of `amin train` on other served models. Each new model gets so many prompts: 55 % to train on, 15 % for
validation, 30 % for calibration, each from its published split; it is measured on its published test prompts. `--init`
is what `amin train --init START` does, new heads what `amin train --encoder START` does. Heads alone train on states
that START's encoder computes once, and new ones read START's terms; with `--epochs` the whole network trains on text.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from pipelines.studies.predictor.study import records_of_all
from pipelines.studies.predictor.tables import FORMATS, TITLES, markdown, spread
from pipelines.train.data import without_constant_contexts
from pipelines.train.fit import calibrate, fit_predictor, length_bins, new_predictor
from pipelines.train.reduce import fit_heads
from pipelines.train.stage import quiet_libraries
from predictor.bounds.metrics import CLIPPED_AT, BoundQuality
from predictor.errors import InputError
from predictor.quality import bounds_by_model
from predictor.records.chat_turns import ChatOptions
from predictor.records.prompt_table import prompt_table, served_models
from predictor.records.records import Records
from predictor.training.checkpoint import load_for_models, load_predictor
from predictor.training.config import TrainConfig
from predictor.training.network import TorchLengthPredictor
from predictor.training.reduced import HeadsOnStates, States, heads_on_states, states_of

TAU = 0.1
SHARES = {"train": 0.55, "validation": 0.15, "calibration": 0.3}
INIT, NEW = "of START (`--init`)", "new"

Cell = tuple[int, int, str, str, int]
"""Number of prompts, epochs of the heads alone, kind of heads, served model, seed."""


def main() -> None:
    """Parse, train and measure each cell, print the table."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.predictor.new_model", description=__doc__)
    parser.add_argument("start", type=Path, metavar="START", help="run that knows none of the models")
    parser.add_argument("--data", type=Path, required=True, help="castillo_records.parquet")
    parser.add_argument("--models", nargs="+", required=True, help="served models that are new")
    parser.add_argument("--datasets", nargs="*", default=[], help="data sets that they are asked (default: all)")
    parser.add_argument("--prompts", nargs="+", type=int, default=[100, 300, 1000, 3000], help="prompts of a new model")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the choice and of the training")
    parser.add_argument("--head-epochs", nargs="+", type=int, default=[8], help="of the heads alone, each tried")
    parser.add_argument("--epochs", type=int, default=0, help="of the whole network (default: 0, the heads alone)")
    args = parser.parse_args()
    quiet_libraries()
    config = TrainConfig(epochs=args.epochs, tau=TAU, progress=False, accelerator="cpu")
    records = chosen(args.data, args.models, args.datasets)
    parts = {cell: few(records, *cell) for cell in product(args.models, args.prompts, args.seeds)}
    start = Start.read(args.start, list(parts.values()), config)
    measured: dict[Cell, BoundQuality] = {}
    for (model, number, seed), epochs, heads in product(parts, args.head_epochs, (INIT, NEW)):
        found = start.measured(parts[model, number, seed], epochs, seed, heads)
        measured[number, epochs, heads, model, seed] = found
        print(f"{model}, {number} prompts, seed {seed}, heads {heads}, {epochs} epochs: {found}", flush=True)
    print(table(measured))


def chosen(data: Path, models: Sequence[str], datasets: Sequence[str]) -> Records:
    """Return the records of the served models and data sets; InputError where one of the models has none."""
    records = records_of_all(data)
    kept = np.isin(records.models, models)
    if datasets:
        kept &= np.isin(records.datasets, datasets)
    found = records.select(np.flatnonzero(kept))
    if missing := sorted(set(models) - set(found.models)):
        raise InputError(f"{data}: model: no row of {missing[0]} in the chosen data sets")
    return without_constant_contexts(found)


def few(records: Records, model: str, number: int, seed: int) -> dict[str, Records]:
    """Return `number` prompts of one served model in their splits, and its whole test split; InputError if too few."""
    rng = np.random.default_rng(seed)  # so that the fewer prompts are among the more
    models, splits = np.asarray(records.models), np.asarray(records.splits)
    rows = {"test": np.flatnonzero((models == model) & (splits == "test"))}
    for split, share in SHARES.items():
        of_split, wanted = np.flatnonzero((models == model) & (splits == split)), round(share * number)
        if len(of_split) < wanted:
            raise InputError(
                f"{model}: split {split} has {len(of_split)} prompts, {number} need {wanted}; ask for fewer"
            )
        rows[split] = rng.permutation(of_split)[:wanted]
    return {split: records.select(found) for split, found in rows.items()}


@dataclass(frozen=True, slots=True)
class Start:
    """The predictor to start from and, for heads alone, what its encoder says of each prompt."""

    folder: Path
    source: TorchLengthPredictor
    states: States | None
    config: TrainConfig

    @classmethod
    def read(cls, folder: Path, parts: Sequence[Mapping[str, Records]], config: TrainConfig) -> "Start":
        """Load the predictor in `folder` and read all prompts; InputError where it knows one of the served models."""
        source = load_predictor(folder)
        tables = [prompt_table(records, served_models(records)) for splits in parts for records in splits.values()]
        if known := sorted(set(source.spec.models) & {model for part in tables for model in part.models}):
            raise InputError(f"{folder}: knows {known[0]} already; train it without")
        if config.epochs:
            return cls(folder, source, None, config)
        names = tuple(dict.fromkeys(prompt for part in tables for prompt in part.prompts))
        # A prompt is its own name here; the heads' predictor looks states up by the text it is asked about.
        return cls(folder, source, states_of(names, None, names, source, shown=True), config)

    def measured(self, splits: dict[str, Records], epochs: int, seed: int, heads: str) -> BoundQuality:
        """Return what a predictor of a new served model reaches on its test prompts."""
        folder = str(self.folder)
        config = replace(self.config, seed=seed, head_epochs=epochs, init=folder if heads == INIT else None)
        config = config if config.init else replace(config, encoder=folder)
        with tempfile.TemporaryDirectory() as out:
            trained = self._trained(config, splits, Path(out))
        calibrate(trained, splits["calibration"], shown=False)
        (model,) = trained.spec.models
        test = prompt_table(splits["test"], (model,))
        survivals = trained.survivals(test.prompts, test.contexts)
        return bounds_by_model(trained.spec, survivals, test, TAU)[model].quality(TAU, CLIPPED_AT)

    def _trained(
        self, config: TrainConfig, splits: dict[str, Records], out: Path
    ) -> TorchLengthPredictor | HeadsOnStates:
        if self.states is None:
            whole = new_predictor(config, ChatOptions(), splits["train"])
            fit_predictor(config, splits, whole, out, resume=False)
            return whole
        models, bins = served_models(splits["train"]), length_bins(config, splits["train"])
        if config.init is None:
            trained = heads_on_states(self.source, self.states, bins, models, models[0], config, ChatOptions())
        else:
            trained = HeadsOnStates(load_for_models(config.init, models, config.dropout), self.states)
        parts = [trained.pooled(splits[name]) for name in ("train", "validation")]
        if config.init is None:
            trained.start(parts[0], config)
        fit_heads(config, parts, trained, out, resume=False)
        return trained


def table(measured: Mapping[Cell, BoundQuality]) -> str:
    """Return a row for each number of prompts, epochs and kind of heads: mean over models, spread over seeds."""
    rows = []
    for number, epochs, heads in dict.fromkeys(cell[:3] for cell in measured):
        own = {cell[3:]: quality for cell, quality in measured.items() if cell[:3] == (number, epochs, heads)}
        other = {cell: measured[number, epochs, NEW if heads == INIT else INIT, *cell] for cell in own}
        row = [f"{number:,}", heads, str(epochs)]
        for name in FORMATS:
            of_seed = [
                [getattr(own[cell], name) for cell in own if cell[1] == seed] for seed in sorted({s for _, s in own})
            ]
            known = all(value is not None for values in of_seed for value in values)
            row.append(spread([float(np.mean(values)) for values in of_seed], name) if known else "-")
        for name, sign in (("pinball_loss", -1), ("kendall_tau", 1)):
            wins = sum(sign * getattr(own[cell], name) > sign * getattr(other[cell], name) for cell in own)
            row.append(f"{wins} of {len(own)}")
        rows.append(row)
    return markdown(["prompts", "heads", "epochs", *TITLES, "better pinball", "better tau-b"], rows)


if __name__ == "__main__":
    main()
