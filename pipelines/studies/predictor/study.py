"""The experiments of docs/results/predictor.md: `amin train` on CASTILLO, over and over.

Each run is one `amin train` in its own process, with its command in `command.txt`; a call goes on from the runs that
are whole, and `--only` lets several calls share the work.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.files import atomic_file
from pipelines.studies.predictor import tables as tables
from predictor.errors import InputError
from predictor.records.records import Records, records_from_rows, write_records
from predictor.records.rows import read_rows

MODELS = ("Llama-3.1-8B-Instruct", "Qwen2.5-7B-Instruct-1M", "gemma-3-4b-it")
SEEDS = (0, 1, 2)
OBJECTIVES = ("ordinal", "pinball", "ranking")
EXPERIMENTS = ("seeds", "resplits", "objectives", "unseen-data")


def main() -> None:
    """Parse, train what is missing, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.predictor.study", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="castillo_records.parquet")
    parser.add_argument("--encoder", required=True, help="text encoder: a folder or a hub name")
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help="experiments, separated by commas")
    parser.add_argument("--options", default="", help="further options of every amin train, in one string")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and tables")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(EXPERIMENTS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: not one of {', '.join(EXPERIMENTS)}")
    try:
        study = Study(args.data, args.encoder, shlex.split(args.options), args.out)
        for name in wanted:
            study.run(name)
    except InputError as error:
        print(f"study: {error}", file=sys.stderr)
        raise SystemExit(2) from None


class Study:
    """The runs of the experiments, in folders of `out`."""

    def __init__(self, data: Path, encoder: str, options: Sequence[str], out: Path) -> None:
        """Read the records."""
        self.out, self._data = out, data
        self._encoder, self._options = encoder, list(options)
        self._records = records_of_all(data)

    def run(self, experiment: str) -> None:
        """Train what is missing for `experiment` and print and write its table."""
        match experiment:
            case "seeds" | "resplits":
                runs = [self._train(f"seed{seed}", ["--seed", str(seed)]) for seed in SEEDS]
                table = (tables.seeds if experiment == "seeds" else tables.resplits)(runs, self._records, MODELS)
            case "objectives":
                runs = [self._train("seed0", ["--seed", "0"])]
                runs += [self._train_for(name, runs[0]) for name in OBJECTIVES]
                table = tables.objectives(runs, ("likelihood", *OBJECTIVES), MODELS)
            case _:
                names = sorted(set(self._records.datasets))
                runs = [self._without_dataset(name) for name in names]
                full = self._train("seed0", ["--seed", "0"])
                table = tables.unseen_data(runs, names, full, self._records, MODELS)
        with atomic_file(self.out / f"{experiment}.md") as aside:
            aside.write_text(table)
        print(f"{experiment}\n\n{table}", flush=True)

    def _without_dataset(self, dataset: str) -> Path:
        kept = np.flatnonzero(np.asarray(self._records.datasets) != dataset)
        file = self._write(f"without-{dataset}", self._records.select(kept))
        return self._train(f"without-{dataset}", [], file)

    def _write(self, name: str, records: Records) -> Path:
        file = self.out / "data" / f"{name}.parquet"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as aside:
                write_records(records, aside)
        return file

    def _train(self, name: str, options: Sequence[str], data: Path | None = None) -> Path:
        """Return the run folder; its training is done."""
        folder = self.out / name
        if (folder / "metrics.json").is_file():
            return folder
        command = ["amin", "train", "--data", str(data or self._data), "--encoder", self._encoder]
        command += ["--no-baselines", "--no-progress"]
        command += [*options, *self._options, "--out", str(folder)]
        if (folder / "config.yaml").is_file():
            command.append("--resume")
        return run_in(folder, command, [sys.executable, "-m", "pipelines.cli", *command[1:]])

    def _train_for(self, objective: str, like: Path) -> Path:
        """Return the run folder of another objective with the settings of the run `like`; its training is done."""
        folder = self.out / f"objective-{objective}"
        if (folder / "metrics.json").is_file():
            return folder
        command = ["-m", "pipelines.studies.predictor.objectives", objective, "--like", str(like), "--out", str(folder)]
        return run_in(folder, ["python", *command], [sys.executable, *command])


def run_in(folder: Path, shown: Sequence[str], command: Sequence[str]) -> Path:
    """Return `folder` once `command`, which is `shown` to people, has run with its output there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "command.txt").write_text(shlex.join(shown) + "\n")
    print(shlex.join(shown), flush=True)
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=log)
    if done.returncode:
        raise InputError(f"{folder / 'log.txt'}: the command in command.txt ended with exit code {done.returncode}")
    return folder


def records_of_all(data: Path) -> Records:
    """Return the records of all served models in `data`; InputError unless they bring their splits."""
    records = records_from_rows(read_rows(data, one_model=False))
    if records.splits is None:
        raise InputError(f"{data}: split: missing; this study compares on the published splits")
    return records


if __name__ == "__main__":
    main()
