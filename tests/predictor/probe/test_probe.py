"""A probe on made-up states that know something of the remaining length."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from predictor.bounds.distribution import quantile
from predictor.errors import InputError
from predictor.probe.calibration import Scores, StageCalibration
from predictor.probe.fit import FittedProbe, ProbeConfig, ProbeData, fit_probe
from predictor.probe.probe import Probe, ProbeInputs
from predictor.probe.states import States, StateSource, read_source, read_states, write_shard, write_source

SOURCE = StateSource("made-up", "r1", "t1", (3, 7), 16)
POSITIONS = (0, 8, 16, 32, 64)
CONFIG = ProbeConfig(epochs=15, lr=3e-3, num_bins=24, width=32, progress=False)


def answers(num_prompts: int, seed: int, cap: int = 400) -> ProbeData:
    """Two answers to each prompt; layer 7 shows the log of the remaining length with noise, layer 3 nothing."""
    rng = np.random.default_rng(seed)
    centre = np.repeat(rng.normal(4.0, 0.8, num_prompts), 2)
    lens = np.maximum(1, np.exp(centre + rng.normal(0, 0.5, 2 * num_prompts)).astype(np.int64))
    truncated, lens = lens > cap, np.minimum(lens, cap)
    rows = [(a, t) for a in range(len(lens)) for t in POSITIONS if t < lens[a]]
    answer, generated = np.array(rows).T
    remaining = lens[answer] - generated
    states = rng.normal(size=(3, len(rows), 2, 16))
    states[:, :, 1, 0] = np.log(remaining) - 4 + rng.normal(0, 0.3, len(rows))
    last, recent, mean = states.astype(np.float16)
    kept = States(answer // 2, answer % 2, generated, last, recent, mean)
    return ProbeData(kept, np.full(len(rows), 20), remaining, truncated[answer])


@pytest.fixture(scope="module")
def fitted() -> FittedProbe:
    """A probe trained once for these tests."""
    splits = {"train": answers(400, 0), "validation": answers(100, 1), "calibration": answers(400, 2)}
    return fit_probe(splits, SOURCE, CONFIG)


def renewed(probe: Probe, data: ProbeData, *, over_answer: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Bounds and whether each held."""
    renewal = probe.renew(data.inputs(1), 0.1, over_answer=over_answer)
    total = data.remaining + data.states.generated
    return renewal.lower_bounds, (total >= renewal.lower_bounds) | data.is_truncated


def test_the_layer_that_knows_is_chosen(fitted: FittedProbe) -> None:
    """Validation finds it, and what is kept reads that layer alone."""
    assert (fitted.place, fitted.probe.layer) == (1, 7)
    assert fitted.losses[7] < 0.8 * fitted.losses[3]


def test_every_stage_covers_as_promised(fitted: FittedProbe) -> None:
    """Of the answers alive at each renewal a share near 0.90 reaches its bound, and the bounds say something."""
    data = answers(1500, 3)
    bounds, held = renewed(fitted.probe, data)
    for generated in POSITIONS:
        alive = data.states.generated == generated
        assert held[alive].mean() == pytest.approx(0.9, abs=0.035)
        assert (bounds[alive] > generated).all()
    first = data.states.generated == 0
    assert bounds[first].mean() > 0.3 * data.remaining[first].mean()


def test_all_bounds_of_an_answer_hold_together(fitted: FittedProbe) -> None:
    """Over the answer, the largest bound that was ever in force holds for 0.90; by stage it would for fewer."""
    data = answers(1500, 4)
    answer = np.unique(np.column_stack([data.states.prompt, data.states.draw]), axis=0, return_inverse=True)[1].ravel()
    shares = {}
    for over_answer in (False, True):
        _, held = renewed(fitted.probe, data, over_answer=over_answer)
        missed = np.bincount(answer, weights=~held) > 0
        shares[over_answer] = 1 - missed.mean()
    assert shares[True] == pytest.approx(0.9, abs=0.03)
    assert shares[False] < shares[True] - 0.03


def test_censored_answers_keep_the_promise() -> None:
    """Cut answers count as longer: coverage of their true lengths is at least as promised."""
    splits = {name: answers(300, k, cap=60) for k, name in enumerate(("train", "validation", "calibration"))}
    probe = fit_probe(splits, SOURCE, CONFIG).probe
    whole = answers(1000, 5)
    within = whole.states.generated < 60
    _, held = renewed(probe, replace(whole))
    assert held[within].mean() > 0.87


def test_a_saved_probe_is_the_same(fitted: FittedProbe, tmp_path: Path) -> None:
    """Survival and levels come back; the files are small."""
    fitted.probe.save(tmp_path)
    again = Probe.load(tmp_path)
    inputs = answers(20, 6).inputs(1)
    np.testing.assert_array_equal(fitted.probe.renew(inputs, 0.1).survival, again.renew(inputs, 0.1).survival)
    assert again.source == fitted.probe.source
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 500_000
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["probe.safetensors"] == modes["probe.json"]


@pytest.mark.parametrize("damage", ["truncate", "field", "format"])
def test_a_damaged_probe_is_one_line(fitted: FittedProbe, tmp_path: Path, damage: str) -> None:
    """Whatever is wrong with the folder, InputError names it."""
    fitted.probe.save(tmp_path)
    spec, weights = tmp_path / "probe.json", tmp_path / "probe.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "field":
        spec.write_text(spec.read_text().replace('"bins"', '"bims"'))
    else:
        spec.write_text(spec.read_text().replace('"format":1', '"format":9'))
    with pytest.raises(InputError, match=r"train (it|the probe) again") as error:
        Probe.load(tmp_path)
    assert "\n" not in str(error.value)


def test_another_model_layer_or_template_is_refused(fitted: FittedProbe, tmp_path: Path) -> None:
    """The message names what differs."""
    for change in ({"revision": "r2"}, {"template": "t2"}, {"layers": (3,)}, {"served_model": "other"}):
        with pytest.raises(InputError, match=next(iter(change))):
            fitted.probe.source.require(replace(fitted.probe.source, **change), tmp_path)


def test_a_state_that_is_no_number_is_said(fitted: FittedProbe) -> None:
    """Its row is marked; the others are as without it."""
    inputs = answers(10, 7).inputs(1)
    states = inputs.states.copy()
    states[3, 0, 2] = np.nan
    renewal = fitted.probe.renew(ProbeInputs(states, inputs.generated, inputs.num_prompt_tokens), 0.1)
    assert renewal.failed.tolist() == [k == 3 for k in range(len(inputs))]
    others = np.arange(len(inputs)) != 3
    np.testing.assert_allclose(renewal.survival[others], fitted.probe.renew(inputs, 0.1).survival[others], atol=1e-6)
    assert renewal.lower_bounds[3] == inputs.generated[3] + 1


def test_states_come_back_from_disk(tmp_path: Path) -> None:
    """Shards in order, the source next to them; a shard of another width is refused by name."""
    states = answers(12, 8).states
    write_source(tmp_path, SOURCE, "abc")
    for k, part in enumerate((states.select(np.arange(10)), states.select(np.arange(10, len(states))))):
        write_shard(tmp_path / f"{k:05d}.safetensors", part)
    source, digest = read_source(tmp_path)
    assert (source, digest) == (SOURCE, "abc")
    again = States.concatenate(list(read_states(tmp_path, source)))
    for name in ("prompt", "draw", "generated", "last", "recent", "prompt_mean"):
        np.testing.assert_array_equal(getattr(again, name), getattr(states, name))
    with pytest.raises(InputError, match=r"00000\.safetensors: last: shape"):
        list(read_states(tmp_path, replace(source, hidden_size=17)))


def test_a_stage_with_few_alive_joins_the_one_before() -> None:
    """A level for any token count, also beyond the last stage."""
    rng = np.random.default_rng(0)
    prompt = np.concatenate([np.arange(200), np.arange(60), np.arange(5)])
    generated = np.repeat([0, 16, 64], [200, 60, 5])
    scores, ends = rng.random(len(prompt)), np.ones_like(prompt)
    calibration = StageCalibration.fit(Scores(prompt, 0 * ends, generated, scores, ends, ends < 0))
    assert calibration.starts == (0, 16)
    assert calibration.level(0.1, 15) == calibration.level(0.1, 0)
    assert calibration.level(0.1, 900) == calibration.level(0.1, 16)
    assert StageCalibration.from_dict(calibration.to_dict()) == calibration


def test_a_probe_without_calibration_data_is_refused() -> None:
    """One line says which split is missing."""
    empty = answers(3, 0)
    none = ProbeData(empty.states.select(np.arange(0)), *(np.arange(0),) * 3)
    with pytest.raises(InputError, match="none of the calibration split"):
        fit_probe({"train": empty, "validation": empty, "calibration": none}, SOURCE, CONFIG)


def test_quantiles_of_the_remaining_are_monotone(fitted: FittedProbe) -> None:
    """A higher level never gives a shorter remaining length."""
    renewal = fitted.probe.renew(answers(30, 9).inputs(1), 0.1)
    values = quantile(fitted.probe.bins, renewal.survival, np.linspace(0.05, 0.95, 10)[:, None])
    assert (np.diff(values, axis=0) >= 0).all()


def test_training_warns_of_nothing() -> None:
    """A user sees no warning of a library."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_probe({name: answers(60, 1) for name in ("train", "validation", "calibration")}, SOURCE, CONFIG)
