import numpy as np
import pytest

from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.errors import InputError
from predictor.quality import bounds_by_model, pool
from predictor.records.prompt_table import prompt_table, served_models
from predictor.records.records import Records
from predictor.spec import AVERAGE, PredictorSpec

BINS = LengthBins.log_spaced(64, 12)


def make_records(prompts: list[str], models: list[str], seed: int = 0) -> Records:
    """Records with three draws each."""
    rng = np.random.default_rng(seed)
    size = len(prompts)
    return Records(
        tuple(prompts),
        tuple(rng.integers(1, 60, 3) for _ in range(size)),
        tuple(np.zeros(3, dtype=bool) for _ in range(size)),
        tuple(f"p{i}" for i in range(size)),
        tuple(models),
        ("",) * size,
    )


def make_spec(models: tuple[str, ...], default: str) -> PredictorSpec:
    """A specification without calibration."""
    return PredictorSpec(BINS, 8, 0, models, default, (), {}, {})


def test_a_prompt_stands_once_however_many_served_models_answered() -> None:
    """And twice where one of them answered it under two identities."""
    records = make_records(["x", "x", "y", "x"], ["a", "b", "b", "a"])
    table = prompt_table(records, served_models(records))
    assert table.models == ("a", "b")
    assert table.prompts == ("x", "y", "x")
    assert table.places.tolist() == [[0, 1], [-1, 2], [3, -1]]
    rows, own = table.column("b")
    assert rows.tolist() == [0, 1]
    assert own.prompt_ids == ("p1", "p2")


def test_each_served_model_is_calibrated_and_measured_on_its_own_records() -> None:
    """Two models with the same predictions and different lengths get different levels; both then cover."""
    rng = np.random.default_rng(0)
    prompts = [f"p{i}" for i in range(200)]
    records = make_records([*prompts, *reversed(prompts)], ["short"] * 200 + ["long"] * 200)
    lengths = [rng.integers(1, 20, 3) for _ in prompts] + [rng.integers(20, 60, 3) for _ in prompts]
    records = Records(records.prompts, tuple(lengths), *(getattr(records, n) for n in Records.__slots__[2:]))
    table = prompt_table(records, ("long", "short"))
    speeds = rng.uniform(0.5, 2.0, (200, 2, 1))
    survivals = np.linspace(1, 0, BINS.num_bins + 1) ** speeds
    spec = make_spec(("long", "short"), AVERAGE).recalibrated(survivals, table)
    assert spec.calibration("long").level(0.2) > spec.calibration("short").level(0.2)
    assert spec.choose() == AVERAGE
    parts = bounds_by_model(spec, survivals, table, 0.2)
    qualities = {name: part.quality(0.2, 64) for name, part in parts.items()}
    assert all(0.79 <= quality.coverage <= 0.9 for quality in qualities.values())
    pooled = pool(parts, table).quality(0.2, 64)
    assert pooled.coverage == pytest.approx(np.mean([quality.coverage for quality in qualities.values()]))
    average = spec.predictions(spec.survival_of(survivals), 0.2)
    draws = zip(records.output_lens, np.concatenate([average.lower_bounds, average.lower_bounds[::-1]]), strict=True)
    assert np.mean([np.mean(lengths >= bound) for lengths, bound in draws]) >= 0.79


def test_the_average_covers_a_served_model_that_nobody_knows() -> None:
    """Its calibration asks of each known model what it would be to the others: a new one of their kind is covered."""
    rng = np.random.default_rng(1)
    names, prompts = tuple(f"m{i:02}" for i in range(21)), [f"p{i}" for i in range(60)]
    levels = np.exp(rng.normal(3.0, 0.5, len(names)))
    edges = BINS.as_array()
    survivals = np.exp(-edges / levels[:, None])[None].repeat(len(prompts), axis=0)
    draws = [np.maximum(rng.exponential(level, (len(prompts), 2)).astype(np.int64), 1) for level in levels]
    covered = []
    for new in range(len(names)):
        known = [place for place in range(len(names)) if place != new]
        chosen = tuple(names[place] for place in known)
        records = make_records(prompts * len(known), [name for name in chosen for _ in prompts])
        lengths = tuple(row for place in known for row in draws[place])
        flags = tuple(np.zeros(2, dtype=np.bool_) for _ in lengths)
        records = Records(records.prompts, lengths, flags, *(getattr(records, n) for n in Records.__slots__[3:]))
        spec = make_spec(chosen, AVERAGE).recalibrated(survivals[:, known], prompt_table(records, chosen))
        bounds = spec.predictions(spec.survival_of(survivals[:, known]), 0.2).lower_bounds
        covered.append(np.mean(draws[new] >= bounds[:, None]))
    assert 0.77 <= np.mean(covered) <= 0.86


def test_a_prediction_that_is_not_a_number_becomes_the_marginal_one() -> None:
    """And says so; the other rows stay as they are."""
    records = make_records([f"p{i}" for i in range(20)], ["a"] * 20)
    survivals = np.linspace(1, 0, BINS.num_bins + 1) ** np.linspace(0.5, 2.0, 20)[:, None, None]
    spec = make_spec(("a",), "a").recalibrated(survivals, prompt_table(records, ("a",)))
    survival = survivals[:2, 0].copy()
    survival[0, 3:] = np.nan
    predictions, calibration = spec.predictions(survival, 0.2), spec.calibration()
    assert predictions.is_fallback.tolist() == [True, False]
    assert predictions.lower_bounds[0] == calibration.marginal_bound(0.2)
    assert predictions.medians[0] == calibration.marginal_median()
    assert predictions.lower_bounds[1] == spec.predictions(survivals[1:2, 0], 0.2).lower_bounds[0]
    assert np.isfinite(predictions.survival).all()


def test_a_served_model_that_is_not_known_is_refused_with_those_that_are() -> None:
    """The default stands in for none."""
    survivals = np.random.default_rng(0).random((2, 2, BINS.num_bins + 1))
    spec = make_spec(("a", "b"), "b")
    with pytest.raises(InputError, match="'c' is not known to this predictor; it knows a, b, average"):
        spec.survival_of(survivals, "c")
    np.testing.assert_array_equal(spec.survival_of(survivals), survivals[:, 1])
    np.testing.assert_array_equal(spec.survival_of(survivals, AVERAGE), survivals.mean(axis=1))
    assert make_spec(("a",), "a").choose(AVERAGE) == "a"
    with pytest.raises(InputError, match=r"it knows a, and like:NAME"):
        make_spec(("a",), "a").choose("b")
    assert spec.choose() == "b"


def test_a_specification_survives_json() -> None:
    """With every calibration."""
    calibration = PitCalibration.marginal([np.asarray([3, 5])] * 30)
    spec = PredictorSpec(
        BINS, 8, 0, ("a", "b"), "a", (4, 1 << 40), {"a": calibration, "b": calibration}, {"x": "1"}, 3, 500
    )
    assert PredictorSpec.from_dict(spec.to_dict(), "here") == spec
