"""What `amin train` measures on the test split, by served model and pooled, and the table it prints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.output.terminal import on_one_line
from pipelines.predict import survivals_with_progress
from predictor.bounds.distribution import FloatArray
from predictor.progress import tracked
from predictor.quality import MeasuredBounds, bounds_by_model, pool
from predictor.records.prompt_table import PromptTable, prompt_table
from predictor.records.records import Records
from predictor.training.baselines import measure_baselines
from predictor.training.config import TrainConfig
from predictor.training.network import TorchLengthPredictor
from predictor.training.reduced import HeadsOnStates

TABLE = (
    ("coverage", "coverage", "{:.3f}"),
    ("worst group", "worst_group_coverage", "{:.3f}"),
    ("pinball", "pinball_loss", "{:.2f}"),
    ("tightness", "tightness", "{:.3f}"),
    ("error", "mean_absolute_error", "{:.1f}"),
    ("within 100", "within_100", "{:.3f}"),
    ("kendall tau", "kendall_tau", "{:.3f}"),
    ("ceiling", "kendall_tau_ceiling", "{:.3f}"),
)


@dataclass(frozen=True, slots=True)
class TestResults:
    """The test split with its survivals [P, M, K+1], the bounds of the predictor and of each baseline by model."""

    table: PromptTable
    survivals: FloatArray
    predictor: dict[str, MeasuredBounds]
    baselines: dict[str, dict[str, MeasuredBounds]]

    def metrics(self, tau: float, max_length: int) -> dict[str, Any]:
        """Return what `metrics.json` holds: `test` and `baselines`, all served models pooled, and `models`, each."""
        by_model = {
            model: {
                "test": bounds.quality(tau, max_length).to_dict(),
                "baselines": {
                    name: parts[model].quality(tau, max_length).to_dict() for name, parts in self.baselines.items()
                },
            }
            for model, bounds in self.predictor.items()
        }
        if len(by_model) == 1:
            return {**next(iter(by_model.values())), "models": by_model}
        return {
            "test": self._pooled(self.predictor).quality(tau, max_length).to_dict(),
            "baselines": {
                name: self._pooled(parts).quality(tau, max_length).to_dict() for name, parts in self.baselines.items()
            },
            "models": by_model,
        }

    def groups(self, tau: float, max_length: int) -> dict[str, dict[str, Any]]:
        """Return the measures of each group of the test split: a data set, a language, a day."""
        bounds = self._pooled(self.predictor)
        labels = bounds.records.datasets
        return {
            name: bounds.select([i for i, label in enumerate(labels) if label == name])
            .quality(tau, max_length)
            .to_dict()
            for name in sorted(set(labels))
        }

    def _pooled(self, parts: Mapping[str, MeasuredBounds]) -> MeasuredBounds:
        return pool(parts, self.table)


def results_on_test(
    config: TrainConfig, splits: dict[str, Records], length_predictor: TorchLengthPredictor | HeadsOnStates
) -> TestResults:
    """Return the predictor and, where there is text for them, the baselines on the test split."""
    spec = length_predictor.spec
    table = prompt_table(splits["test"], spec.models)
    survivals = survivals_with_progress(
        length_predictor, table.prompts, "measure", table.contexts, shown=config.progress
    )
    has_baselines = config.baselines and isinstance(length_predictor, TorchLengthPredictor)
    baselines = measure_all_baselines(config, splits, spec.models, spec.bins.max_length) if has_baselines else {}
    return TestResults(table, survivals, bounds_by_model(spec, survivals, table, config.tau), baselines)


def measure_all_baselines(
    config: TrainConfig, splits: dict[str, Records], models: tuple[str, ...], max_length: int
) -> dict[str, dict[str, MeasuredBounds]]:
    """Return the bounds of each baseline, by name and then by served model; each sees the records of its model."""
    tables = {name: prompt_table(records, models) for name, records in splits.items()}
    found: dict[str, dict[str, MeasuredBounds]] = {}
    for model in tracked(models, "baselines", "model", len(models), shown=config.progress):
        train, calibration, test = (tables[name].column(model)[1] for name in ("train", "calibration", "test"))
        measured = measure_baselines(train, calibration, test, config.tau, max_length, config.seed)
        for name, bounds in measured.items():
            found.setdefault(name, {})[model] = bounds
    return found


def print_groups(groups: dict[str, dict[str, Any]]) -> None:
    """Print the measures of each group of the test split, a line each."""
    shown = {on_one_line(name) or "(none)": row for name, row in groups.items()}
    width = max(22, *(len(name) + 2 for name in shown))
    print(f"\n{'test split, by group':{width}}" + "".join(f"{title:>13}" for title, _, _ in TABLE))
    for name, row in shown.items():
        cells = ("-" if row[key] is None else shape.format(row[key]) for _, key, shape in TABLE)
        print(f"{name:{width}}" + "".join(f"{cell:>13}" for cell in cells))


def print_table(metrics: dict[str, Any], tau: float) -> None:
    """Print the predictor next to the baselines, for each served model; pinball in tokens."""
    print(f"\ntest split, tau {tau} (target coverage {1 - tau:.2f}); pinball in tokens;")
    print("ceiling: kendall tau of one draw against the mean of the prompt's others")
    width = max(22, *(len(model) + 2 for model in metrics["models"]))
    print(f"{'':{width}}" + "".join(f"{title:>13}" for title, _, _ in TABLE))
    parts = dict(metrics["models"])
    if len(parts) > 1:
        parts["all together"] = {"test": metrics["test"], "baselines": metrics["baselines"]}
    for model, part in parts.items():
        if len(parts) > 1:
            print(on_one_line(model))
        for name, row in {"predictor": part["test"], **part["baselines"]}.items():
            cells = ("-" if row[key] is None else shape.format(row[key]) for _, key, shape in TABLE)
            print(f"{'  ' * (len(parts) > 1) + name:{width}}" + "".join(f"{cell:>13}" for cell in cells))
