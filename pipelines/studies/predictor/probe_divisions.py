"""How a probe does over many divisions of its held-out prompts: coverage on one split is luck of a few hundredths.

The prompts of calibration and test are divided anew, in the same sizes; levels are fitted on one part and measured on
the other. Order (tau-b) needs no levels and is measured on all held-out answers, with a bootstrap over prompts.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipelines.probe.data import SplitStates, load_states, read_matching_source
from pipelines.probe.prompt_predictor import PromptPredictor
from pipelines.settings.train import CONFIG_FILE
from pipelines.studies.predictor.tables import markdown
from pipelines.train.data import load_splits
from predictor.bounds.bins import IntArray
from predictor.bounds.distribution import FloatArray, lower_bound
from predictor.probe.calibration import StageCalibration
from predictor.probe.fit import ProbeData
from predictor.probe.probe import Probe, remaining_survival
from predictor.probe.quality import Forecasts, by_generated, mean_kendall_tau, over_answers
from predictor.records.chat_turns import ChatOptions
from predictor.training.config import TrainConfig

NUM_RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The answers that no training saw, and what each source says of their remaining length, [S, K+1]."""

    probe: Probe
    data: ProbeData
    survivals: Mapping[str, FloatArray]
    num_calibration: int
    """Prompts of the calibration split."""

    def select(self, rows: IntArray) -> "HeldOut":
        """Return the states at `rows`."""
        survivals = {name: survival[rows] for name, survival in self.survivals.items()}
        return HeldOut(self.probe, self.data.select(rows), survivals, self.num_calibration)


def main() -> None:
    """Parse, divide, print; write the figures with `--out`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.predictor.probe_divisions", description=__doc__)
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run of amin train --states --prompt-predictor")
    parser.add_argument("--divisions", type=int, default=40, help="default: 40")
    parser.add_argument("--cap", type=int, default=400, help="lengths are cut there for the second mean tau-b")
    parser.add_argument("--seed", type=int, default=0, help="of divisions and bootstrap")
    parser.add_argument("--out", type=Path, help="JSON of the figures")
    args = parser.parse_args()
    config = yaml.safe_load((args.run_folder / CONFIG_FILE).read_text(encoding="utf-8"))
    held_out, tau = read_held_out(args.run_folder, config), float(config["tau"])
    rng = np.random.default_rng(args.seed)
    found = {
        "order": order(held_out, tau, args.cap, rng),
        "divisions": divisions(held_out, tau, args.divisions, rng),
    }
    print_tables(found, tau)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def read_held_out(run_folder: Path, config: Mapping[str, Any]) -> HeldOut:
    """Return calibration and test together, of the data that a run was trained on."""
    probe, folder = Probe.load(run_folder), Path(config["states"])
    source = read_matching_source(folder, config["data"])
    settings = {name: config[name] for name in TrainConfig.__dataclass_fields__}
    splits, _ = load_splits(TrainConfig(**settings), ChatOptions())
    states = load_states(folder, source, config["data"], {name: splits[name] for name in ("calibration", "test")})
    place = source.layers.index(probe.layer)
    prompt = PromptPredictor.load(Path(config["prompt_predictor"]), source.served_model)
    parts = [_survivals(probe, split, place, prompt) for split in states.values()]
    survivals = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    data = ProbeData.concatenate([split.data for split in states.values()])
    return HeldOut(probe, data, survivals, len(splits["calibration"]))


def _survivals(probe: Probe, split: SplitStates, place: int, prompt: PromptPredictor) -> dict[str, FloatArray]:
    ours = remaining_survival(probe.network, split.data.inputs(place))
    theirs = prompt.conditioned(split, probe.bins, shown=True)
    assert probe.mixture is not None
    return {"probe": ours, "conditioned": theirs, "both": probe.mixture.survival(ours, theirs)}


def measures(
    held_out: HeldOut, tau: float, levels: Mapping[str, FloatArray] | None = None, cap: int | None = None
) -> dict[str, Any]:
    """Return the measures by tokens out of each source, its bounds read at its `levels` [S], or at tau."""
    bins, data = held_out.probe.bins, held_out.data
    found = {}
    for name, survival in held_out.survivals.items():
        bounds = lower_bound(bins, survival, tau if levels is None else levels[name])
        found[name] = by_generated(data, Forecasts.read(bins, survival, bounds), tau, cap)
    return found


def order(held_out: HeldOut, tau: float, cap: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return tau-b by tokens out, its mean over t = 16 to 192 without and with the cap, and bootstrap intervals."""
    whole = measures(held_out, tau)
    means = {
        str(most or "none"): {name: mean_kendall_tau(part) for name, part in measures(held_out, tau, cap=most).items()}
        for most in (None, cap)
    }
    draws = [
        {name: mean_kendall_tau(part) for name, part in measures(_resampled(held_out, rng), tau).items()}
        for _ in range(NUM_RESAMPLES)
    ]
    gain = [float(draw["probe"] or 0) - float(draw["conditioned"] or 0) for draw in draws]
    return {
        "by_generated": {
            name: {t: (row["num_answers"], row["kendall_tau"]) for t, row in part.items()}
            for name, part in whole.items()
        },
        "mean_16_to_192_by_cap": means,
        "gain_of_probe_over_conditioned_95": np.quantile(gain, [0.025, 0.975]).tolist(),
    }


def _resampled(held_out: HeldOut, rng: np.random.Generator) -> HeldOut:
    """Return the states of prompts drawn with replacement."""
    prompts, of = np.unique(held_out.data.states.prompt, return_inverse=True)
    rows_of = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of))[:-1])
    drawn = rng.integers(len(prompts), size=len(prompts))
    return held_out.select(np.concatenate([rows_of[k] for k in drawn]))


def divisions(held_out: HeldOut, tau: float, count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return, by source and tokens out, coverage and pinball loss over random divisions of the held-out prompts."""
    prompts, found = np.unique(held_out.data.states.prompt), dict[str, dict[str, list[tuple[float, float]]]]()
    together: dict[str, list[float]] = {}
    for _ in range(count):
        fresh = rng.permutation(prompts)[: held_out.num_calibration]
        is_fresh = np.isin(held_out.data.states.prompt, fresh)
        parts = [held_out.select(np.flatnonzero(mask)) for mask in (is_fresh, ~is_fresh)]
        tables = {
            name: StageCalibration.fit(parts[0].data.scores(held_out.probe.bins, survival))
            for name, survival in parts[0].survivals.items()
        }
        generated = parts[1].data.states.generated
        levels = {name: table.levels(tau, generated) for name, table in tables.items()}
        for name, rows in measures(parts[1], tau, levels).items():
            for t, row in rows.items():
                found.setdefault(name, {}).setdefault(t, []).append((row["coverage"], row["pinball_loss"]))
            all_levels = tables[name].levels(tau, generated, over_answer=True)
            bounds = lower_bound(held_out.probe.bins, parts[1].survivals[name], all_levels)
            together.setdefault(name, []).append(over_answers(parts[1].data, bounds))
    return {
        "by_generated": {
            name: {
                t: {
                    "coverage": float(np.mean(values, axis=0)[0]),
                    "coverage_sd": float(np.std(values, axis=0)[0]),
                    "pinball_loss": float(np.mean(values, axis=0)[1]),
                }
                for t, values in rows.items()
                if len(values) == count
            }
            for name, rows in found.items()
        },
        "all_bounds_of_an_answer_held": {name: float(np.mean(shares)) for name, shares in together.items()},
    }


def print_tables(found: Mapping[str, Any], tau: float) -> None:
    """Print a line for each number of tokens out, and the means."""
    orders, parts = found["order"]["by_generated"], found["divisions"]["by_generated"]
    names = list(parts)
    titles = ["t", "answers", *(f"{name}: {what}" for name in names for what in ("tau-b", "pinball", "coverage"))]
    rows = []
    for t in parts[names[0]]:
        cells = [
            cell
            for name in names
            for cell in (
                f"{orders[name][t][1]:.3f}",
                f"{parts[name][t]['pinball_loss']:.1f}",
                f"{parts[name][t]['coverage']:.3f} ± {parts[name][t]['coverage_sd']:.3f}",
            )
        ]
        rows.append([t, str(orders[names[0]][t][0]), *cells])
    print(markdown(titles, rows))
    print(f"mean tau-b over t = 16 to 192, by cap: {found['order']['mean_16_to_192_by_cap']}")
    print(f"probe less conditioned, 95 %: {found['order']['gain_of_probe_over_conditioned_95']}")
    print(f"all bounds of an answer held (target {1 - tau:.2f}): {found['divisions']['all_bounds_of_an_answer_held']}")


if __name__ == "__main__":
    main()
