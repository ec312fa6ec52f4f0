import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pipelines.cli import main, run_stage
from predictor.errors import InputError
from predictor.prompts.tokens import encode_prompts, load_tokenizer
from predictor.records.records import read_records
from predictor.resolve import resolve_predictor
from predictor.serving import LengthPredictor
from predictor.training.checkpoint import load_predictor
from predictor.training.checkpointing import BestEpoch
from predictor.training.lightning_module import LengthModule
from predictor.training.network import TorchLengthPredictor

BUNDLED_PROMPTS = Path(__file__).resolve().parents[2] / "checkpoints" / "prompts.jsonl"
SHORT = ("--epochs", "2", "--batch-size", "16", "--max-prompt-tokens", "16", "--max-length", "256", "--num-bins", "16")
QUICK = (*SHORT, "--no-progress", "--accelerator", "cpu", "--head-lr", "0.01")


def amin(stage: str, *argv: Any) -> None:
    """Run a stage as the command line does, without its exit codes."""
    run_stage(stage, [str(value) for value in argv])


def prompts(records_file: Path) -> list[str]:
    """The prompts of the records, with a very short and a very long one."""
    return [*read_records(records_file).prompts[:40], "a", "river night " * 400]


def weights(run: Path) -> dict[str, Any]:
    """The saved weights of a run."""
    from safetensors.numpy import load_file

    return load_file(run / "predictor" / "model.safetensors")


def test_a_run_holds_what_the_contract_names(run_folder: Path) -> None:
    """No pickle in the predictor, and metrics with the agreed keys."""
    keys = {
        "tau", "coverage", "worst_group_coverage", "pinball_loss", "tightness", "kendall_tau", "kendall_tau_ceiling",
        "mean_absolute_error", "within_100",
    }  # fmt: skip
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert set(metrics) == {"test", "baselines", "models"}
    assert metrics["models"] == {"made-up": {"test": metrics["test"], "baselines": metrics["baselines"]}}
    names = {"constant", "class-edge", "tfidf-gbm", "tfidf-gbm-conformal", "point-conformal"}
    assert set(metrics["baselines"]) == names
    for row in (metrics["test"], *metrics["baselines"].values()):
        assert set(row) == keys
    names = {path.name for path in (run_folder / "predictor").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "predictor.json"}
    assert "# torch " in (run_folder / "config.yaml").read_text()
    assert len(read_records(run_folder / "calibration.parquet")) == 40
    for name in ("calibration", "coverage_by_group", "coverage_by_length", "predicted_against_true"):
        assert (run_folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_predict_writes_a_line_per_row_in_order(
    run_folder: Path, records_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the place in the file as index, and the measures where lengths are known."""
    out = tmp_path / "bounds.jsonl"
    amin("predict", run_folder, "--data", records_file, "--split", "test", "--out", out, "--no-progress")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    splits = read_records(records_file).splits
    assert splits is not None
    assert [line["index"] for line in lines] == [i for i, name in enumerate(splits) if name == "test"]
    assert all(set(line) == {"index", "output_len_lower_bound", "output_len_median"} for line in lines)
    assert all(line["output_len_lower_bound"] >= 1 for line in lines)
    assert "coverage" in capsys.readouterr().out


def test_predict_takes_prompts_without_lengths_and_respects_limits(run_folder: Path, tmp_path: Path) -> None:
    """A request's max_new_tokens caps both numbers."""
    data, out = tmp_path / "prompts.jsonl", tmp_path / "bounds.jsonl"
    data.write_text('{"prompt": "Write a story", "max_new_tokens": 2}\n{"prompt": "Write a poem"}\n')
    amin("predict", run_folder / "predictor", "--data", data, "--out", out, "--no-progress")
    first = json.loads(out.read_text().splitlines()[0])
    assert first["output_len_lower_bound"] <= 2
    assert first["output_len_median"] <= 2


@pytest.mark.parametrize("stage", ["heads", ""])
def test_an_interrupted_run_resumes_to_the_same_result(
    stage: str,
    run_folder: Path,
    tiny_encoder: Path,
    records_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights equal to the last bit, and nothing half-made in between, whichever stage was interrupted."""

    def fail_in_second_epoch(self: LengthModule) -> None:
        if self.stage.folder == stage and self.current_epoch == 1:
            raise RuntimeError("power cut")

    out = tmp_path / "run"
    arguments = ("--data", records_file, "--out", out, "--encoder", tiny_encoder, "--no-baselines", *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(LengthModule, "on_train_epoch_start", fail_in_second_epoch)
        with pytest.raises(RuntimeError, match="power cut"):
            amin("train", *arguments)
    assert not (out / "predictor").exists()
    assert not (out / "metrics.json").exists()
    with pytest.raises(InputError, match="--resume"):
        amin("train", *arguments)
    with pytest.raises(InputError, match="epochs: the run has 2, not 5"):
        amin("train", "--out", out, "--resume", "--epochs", "5")
    other = tmp_path / "other.jsonl"
    other.write_text("".join(records_file.read_text().splitlines(keepends=True)[:-1]))
    stored = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(stored.replace(str(records_file), str(other)))
    with pytest.raises(InputError, match="the splits have changed since the run began"):
        amin("train", "--out", out, "--resume")
    (out / "config.yaml").write_text(stored)
    kept = records_file.read_bytes()
    records_file.write_bytes(kept + b"\n")
    with pytest.raises(InputError, match=f"data {records_file} has changed since the run began"):
        amin("train", "--out", out, "--resume")
    records_file.write_bytes(kept)
    last = out / "checkpoints" / stage / "last.ckpt"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not whole; remove it"):
        amin("train", "--out", out, "--resume")
    last.write_bytes(whole)
    amin("train", "--out", out, "--resume")
    expected, resumed = weights(run_folder), weights(out)
    assert all(np.array_equal(resumed[name], value) for name, value in expected.items())


def test_a_finished_run_is_left_alone(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not a file of it is written again, and the last line says so."""
    out = tmp_path / "moved"
    shutil.copytree(run_folder, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    amin("train", "--out", out, "--resume")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(InputError, match="is there already; go on with --resume, replace it with --force"):
        amin("train", "--out", out, "--data", "x")


def test_an_unmeasured_run_that_has_moved_gives_the_same_predictor_again(run_folder: Path, tmp_path: Path) -> None:
    """And what `amin tune` chose stays."""
    out = tmp_path / "moved"
    shutil.copytree(run_folder, out)
    (out / "metrics.json").unlink()
    (out / "predictor" / "scheduling.json").write_text("{}\n")
    amin("train", "--out", out, "--resume")
    expected, again = weights(run_folder), weights(out)
    assert all(np.array_equal(again[name], value) for name, value in expected.items())
    assert (out / "predictor" / "scheduling.json").read_text() == "{}\n"


def test_the_best_epoch_is_known_where_a_run_has_moved(tmp_path: Path) -> None:
    """Its score too, so that no later, worse epoch takes its place."""
    before, after = (BestEpoch(tmp_path / name, "best", monitor="loss", save_last=True) for name in ("a", "b"))
    before.best_model_path = before.kth_best_model_path = str(tmp_path / "a" / "best.ckpt")
    before.best_model_score = before.kth_value = torch.tensor(3.0)
    before.best_k_models = {before.best_model_path: torch.tensor(3.0)}
    after.load_state_dict(before.state_dict())
    assert after.best_model_path == after.kth_best_model_path == str(tmp_path / "b" / "best.ckpt")
    assert after.best_model_score == after.best_k_models[after.best_model_path] == 3.0


@pytest.mark.parametrize(("raised", "code"), [(SIGTERMException(), 143), (KeyboardInterrupt(), 130)])
def test_an_ended_training_is_not_taken_for_a_finished_one(
    raised: BaseException,
    code: int,
    tiny_encoder: Path,
    records_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, and a code of its own, where Lightning would leave with 0 or 1."""

    def end(self: LengthModule) -> None:
        raise raised

    monkeypatch.setattr(LengthModule, "on_train_epoch_start", end)
    argv = ["train", "--data", records_file, "--out", tmp_path / "run", "--encoder", tiny_encoder, *QUICK]
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        assert main([str(value) for value in argv]) == code
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    assert capsys.readouterr().err.splitlines()[-1].endswith("ed; finished work is kept")
    assert not (tmp_path / "run" / "predictor").exists()


def test_the_exported_graph_agrees_with_torch(run_folder: Path, exports: dict[str, Path], records_file: Path) -> None:
    """Survival within 1e-5, on bundled prompts in many languages too, most of which are cut."""
    bundled = [json.loads(line)["prompt"] for line in BUNDLED_PROMPTS.read_text().splitlines()[::12]]
    texts = [*prompts(records_file), *bundled]
    torch_predictor, exported = load_predictor(run_folder), LengthPredictor(exports["fp32"])
    np.testing.assert_allclose(exported.survivals(texts), torch_predictor.survivals(texts), atol=1e-5)
    one_by_one = np.concatenate([exported.survival([text]) for text in texts])
    np.testing.assert_allclose(one_by_one, exported.survival(texts), atol=1e-5)


def test_an_export_that_reads_less_is_calibrated_for_it(run_folder: Path, tmp_path: Path) -> None:
    """It says how much it reads, and covers its calibration split; more than in training it cannot read."""
    amin("export", run_folder, "--out", tmp_path / "x", "--max-prompt-tokens", "6", "--no-progress")
    exported, records = LengthPredictor(tmp_path / "x"), read_records(run_folder / "calibration.parquet")
    assert exported.spec.max_prompt_tokens == 6
    bounds = exported.predict(records.prompts, tau=0.2).lower_bounds
    covered = [np.mean(draws >= bound) for bound, draws in zip(bounds, records.output_lens, strict=True)]
    assert np.mean(covered) >= 0.8 - 1 / len(records)
    with pytest.raises(InputError, match="must lie between 4 and 16, not 17"):
        amin("export", run_folder, "--out", tmp_path / "y", "--max-prompt-tokens", "17", "--no-progress")


def test_an_export_measures_up_to_where_the_lengths_of_its_run_end(
    run_folder: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    """`--length-cap` of the training: what is predicted beyond it is no error."""
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**settings, "length_cap": 10}))
    amin("export", run, "--out", tmp_path / "x", "--no-progress")
    capped, free = (
        json.loads((folder / "manifest.json").read_text())["measured"] for folder in (tmp_path / "x", exports["fp32"])
    )
    assert capped["mean_absolute_error"] <= 10 < free["mean_absolute_error"]
    (run / "config.yaml").write_text("length_cap: 10\n")
    with pytest.raises(InputError, match=r"config\.yaml: not the settings of a run"):
        amin("export", run, "--out", tmp_path / "y", "--no-progress")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_export_cuts_the_middle_of_a_prompt(precision: str, exports: dict[str, Path]) -> None:
    """Words of which the text features know nothing change the prediction at either end, and not in between."""
    exported, middle = LengthPredictor(exports[precision]), ["river"] * 60
    other = [*middle[:30], "night", *middle[31:]]
    texts = [" ".join(words) for words in (middle, other, ["night", *middle[1:]], [*middle[:-1], "night"])]
    assert exported.spec.max_prompt_tokens == 16
    read = encode_prompts(load_tokenizer(exports[precision] / "tokenizer.json"), texts, 16, ())
    assert read.token_ids[0] == read.token_ids[1]
    assert len({tuple(ids) for ids in read.token_ids}) == 3
    np.testing.assert_allclose(read.features[1], read.features[2])
    _, cut, head, tail = exported.survival(texts)
    assert np.abs(head - cut).max() > 1e-6
    assert np.abs(tail - cut).max() > 1e-6


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_export_is_calibrated_on_its_own_graph(precision: str, exports: dict[str, Path], run_folder: Path) -> None:
    """Its bounds cover its calibration split as the rule promises, and the manifest states what was measured."""
    exported = LengthPredictor(exports[precision])
    records = read_records(run_folder / "calibration.parquet")
    bounds = exported.predict(records.prompts, tau=0.2).lower_bounds
    covered = [np.mean(draws >= bound) for bound, draws in zip(bounds, records.output_lens, strict=True)]
    assert np.mean(covered) >= 0.8 - 1 / len(records)
    manifest = json.loads((exports[precision] / "manifest.json").read_text())
    assert manifest["precision"] == precision
    assert 0 <= manifest["measured"]["coverage"] <= 1
    assert set(manifest["sha256"]) == {"model.onnx", "tokenizer.json", "README.md"}
    card = (exports[precision] / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert f"| made-up | {manifest['measured']['coverage']:.3f} |" in card
    files = {path.name for path in exports[precision].iterdir()}
    assert files == {"model.onnx", "tokenizer.json", "manifest.json", "README.md"}


def test_serving_needs_no_torch(exports: dict[str, Path]) -> None:
    """In a fresh process: neither the module nor the general loader brings in a training library."""
    code = (
        "import sys; from predictor.resolve import resolve_predictor;"
        f"p = resolve_predictor({str(exports['int8'])!r}); print(p.predict(['Hi'], max_new_tokens=3).lower_bounds[0]);"
        "print([m for m in ('torch', 'transformers', 'lightning', 'datasets', 'sklearn', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bound, heavy = done.stdout.splitlines()
    assert 1 <= int(bound) <= 3
    assert heavy == "[]"


def test_threads_share_an_exported_predictor(exports: dict[str, Path], records_file: Path) -> None:
    """Each gets what it would have got alone."""
    from concurrent.futures import ThreadPoolExecutor

    exported, texts = LengthPredictor(exports["fp32"]), prompts(records_file)
    alone = [exported.survival([text]) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: exported.survival([text]), texts))
    np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), atol=1e-6)


def test_a_predictor_serves_as_encoder_and_half_precision_is_calibrated_as_saved(
    run_folder: Path, records_file: Path, tmp_path: Path
) -> None:
    """A head of another shape is no obstacle; reloaded float16 weights predict what was measured."""
    out = tmp_path / "run"
    amin(
        "train", "--data", records_file, "--out", out, "--encoder", run_folder / "predictor", "--no-baselines",
        *QUICK, "--num-bins", "8", "--epochs", "1", "--half", "--unfrozen-layers", "1", "--max-prompts", "32",
    )  # fmt: skip
    test = read_records(out / "test.parquet")
    bounds = resolve_predictor(out).predict(test.prompts).lower_bounds
    coverage = np.mean([np.mean(draws >= bound) for bound, draws in zip(bounds, test.output_lens, strict=True)])
    assert coverage == pytest.approx(json.loads((out / "metrics.json").read_text())["test"]["coverage"])
    frozen = "encoder.embeddings.word_embeddings.weight"
    half = weights(run_folder)[frozen].astype(np.float16)
    assert np.array_equal(weights(out)[frozen], half)


def test_a_bare_predictor_exports_as_it_is_but_not_in_int8(run_folder: Path, tmp_path: Path) -> None:
    """Quantisation shifts the quantiles, so it needs a calibration split."""
    import shutil

    shutil.copytree(run_folder / "predictor", tmp_path / "bare")
    for changed in (("--precision", "int8"), ("--max-prompt-tokens", "8")):
        with pytest.raises(InputError, match="calibrated again"):
            amin("export", tmp_path / "bare", "--out", tmp_path / "x", *changed, "--no-progress")
    assert not (tmp_path / "x").exists()
    amin("export", tmp_path / "bare", "--out", tmp_path / "y", "--no-progress")
    assert LengthPredictor(tmp_path / "y").spec.calibrations == load_predictor(run_folder).spec.calibrations


def test_bad_input_is_refused_in_one_line(
    run_folder: Path, exports: dict[str, Path], records_file: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    """Each says what is wrong and leaves no output behind."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(records_file.read_text().splitlines(keepends=True)[:80]))
    odd = tmp_path / "odd.yaml"
    odd.write_text("epoch: 3\n")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("epochs: many\n")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"epochs: \xff\n")
    out = tmp_path / "out"
    base = ("--data", records_file, "--out", out, "--encoder", tiny_encoder, *QUICK)
    cases: list[tuple[str, tuple[Any, ...]]] = [
        ("epoch: unknown", ("train", *base, "--config", odd)),
        ("--epochs: must be a whole number, not 'many'", ("train", *base, "--config", wrong)),
        ("--tau: must be above 0 and below 1, not 1.5", ("train", *base, "--tau", "1.5")),
        ("calibration has 0 prompts|at least", ("train", *base, "--data", few)),
        ("calibration has 40 prompts, at least 99", ("train", *base, "--tau", "0.01")),
        ("neither an encoder folder", ("train", *base, "--encoder", tmp_path / "nothing")),
        ("no predictor there", ("predict", tmp_path, "--data", records_file, "--out", out)),
        ("at least 999 calibration", ("predict", run_folder, "--data", records_file, "--tau", "0.001", "--out", out)),
        ("no such file", ("predict", run_folder, "--data", tmp_path / "none.jsonl", "--out", out)),
        ("no predictor there", ("export", tmp_path, "--out", out)),
        ("'other' is not known .* knows made-up", ("predict", run_folder, "--data", records_file, "--model", "other")),
        ("--heads: 'tree' is not one of", ("train", *base, "--heads", "tree")),
        ("num_bins: this predictor has 16, not 8", ("train", *base[:4], "--init", run_folder, "--num-bins", "8")),
        ("'other' is not known", ("train", *base, "--default-model", "other")),
        ("num_layers: the encoder has 2, not 3", ("train", *base, "--num-layers", "3")),
        ("--teacher-share: must be at least 0 and at most 1, not 1.5", ("train", *base, "--teacher-share", "1.5")),
        ("--seed: must be at least 0 and at most 4294967295, not -1", ("train", *base, "--seed", "-1")),
        ("--head-lr: must be a number, not 'nan'", ("train", *base, "--head-lr", "nan")),
        ("--dropout: must be at least 0 and at most 0.9999, not 1.5", ("train", *base, "--dropout", "1.5")),
        ("--patience: must be at least 0, not -1", ("train", *base, "--patience", "-1")),
        ("--max-length: must be at most 2147483647, not 9999", ("train", *base, "--max-length", "9" * 20)),
        ("accelerator abacus, devices 1", ("train", *base, "--accelerator", "abacus")),
        ("strategy hope", ("train", *base, "--strategy", "hope")),
        ("devices 9999.*: that many processes", ("train", *base, "--accelerator", "cpu", "--devices", "9999")),
        ("not YAML", ("train", *base, "--config", binary)),
    ]
    for message, arguments in cases:
        with pytest.raises(InputError, match=message) as caught:
            amin(*arguments, *(() if "--out" in arguments else ("--out", out)))
        assert "\n" not in str(caught.value)
        assert not out.exists()


def test_a_student_keeps_some_layers_and_learns_from_a_teacher(
    run_folder: Path, exports: dict[str, Path], records_file: Path, tmp_path: Path
) -> None:
    """With the teacher's share 1 it ends nearer to the teacher than with 0, and what is saved has its shape."""
    from predictor.training.checkpoint import load_spec

    texts = prompts(records_file)
    expected = LengthPredictor(exports["fp32"]).survival(texts)
    teachers = f"{run_folder},{exports['fp32']}"
    distances = []
    for share in ("0", "1"):
        out = tmp_path / share
        amin(
            "train", "--data", records_file, "--out", out, "--encoder", run_folder / "predictor", "--teacher", teachers,
            "--teacher-share", share, "--num-layers", "1", "--max-prompt-tokens", "8", "--no-baselines",
            "--max-length", "256", "--num-bins", "16", *QUICK[len(SHORT):], "--epochs", "0", "--head-epochs", "60",
            "--dropout", "0", "--weight-decay", "0",
        )  # fmt: skip
        assert load_spec(out)[0].max_prompt_tokens == 8
        assert not any(".layer.1." in name for name in weights(out))
        distances.append(float(np.abs(resolve_predictor(out).survival(texts) - expected).mean()))
    assert distances[1] < distances[0]
    amin("export", tmp_path / "1", "--out", tmp_path / "serving", "--precision", "int8", "--no-progress")
    assert LengthPredictor(tmp_path / "serving").spec.max_prompt_tokens == 8


def test_a_teacher_must_know_the_bins_and_the_served_models_and_predict_numbers(
    run_folder: Path, records_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained."""
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in records_file.read_text().splitlines()]
    other.write_text("".join(json.dumps({**row, "model": "other"}) + "\n" for row in rows))
    base = ("--init", run_folder, "--teacher", run_folder, "--no-baselines", "--no-progress", "--accelerator", "cpu")
    with pytest.raises(InputError, match=r"teacher: .* does not know 'other'; it knows made-up"):
        amin("train", "--data", other, "--out", tmp_path / "a", *base)
    encoder = ("--encoder", run_folder / "predictor", "--num-bins", "8")
    with pytest.raises(InputError, match=r"teacher: .* has other length bins"):
        amin("train", "--data", records_file, "--out", tmp_path / "b", *encoder, *base[2:])
    predict = TorchLengthPredictor.survivals
    monkeypatch.setattr(TorchLengthPredictor, "survivals", lambda self, asked: predict(self, asked) * np.nan)
    with pytest.raises(InputError, match=r"teacher: .*: no number for \d+ of \d+ prompts"):
        amin("train", "--data", records_file, "--out", tmp_path / "c", *base)


def test_another_format_version_is_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    """Rather than misread."""
    import shutil

    shutil.copytree(exports["fp32"], tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    (tmp_path / "old" / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(InputError, match="format_version: 99 is not 2"):
        LengthPredictor(tmp_path / "old")


@pytest.fixture(scope="module")
def two_models(records_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records twice: as a second served model, `terse`, answers have a third of the length."""
    path = tmp_path_factory.mktemp("two") / "records.jsonl"
    rows = [json.loads(line) for line in records_file.read_text().splitlines()]
    terse = [{**row, "model": "terse", "output_lens": [n // 3 + 1 for n in row["output_lens"]]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *terse)))
    return path


@pytest.fixture(scope="module")
def two_models_run(two_models: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network for both."""
    out = tmp_path_factory.mktemp("two") / "run"
    amin("train", "--data", two_models, "--out", out, "--encoder", tiny_encoder, "--heads", "hazard,mixture", *QUICK)
    return out


def test_one_network_answers_for_several_served_models(two_models_run: Path, two_models: Path, tmp_path: Path) -> None:
    """Each is measured by itself, and by name one may be asked for; where none is named, for their average."""
    metrics = json.loads((two_models_run / "metrics.json").read_text())
    assert set(metrics["models"]) == {"made-up", "terse"}
    covered = [part["test"]["coverage"] for part in metrics["models"].values()]
    assert metrics["test"]["coverage"] == pytest.approx(np.mean(covered))
    length_predictor, texts = resolve_predictor(two_models_run), ["Write a story about rivers", "Write an essay"]
    medians = {name: length_predictor.predict(texts, model=name).medians for name in ("made-up", "terse", "average")}
    assert (medians["terse"] <= medians["average"]).all()
    assert (medians["average"] <= medians["made-up"]).all()
    assert medians["terse"].sum() < medians["average"].sum() < medians["made-up"].sum()
    assert (length_predictor.predict(texts).medians == medians["average"]).all()
    amin("predict", two_models_run, "--data", two_models, "--out", tmp_path / "each.jsonl", "--no-progress")
    lines = [json.loads(line)["output_len_median"] for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert np.mean(lines[160:]) < np.mean(lines[:160])
    amin("predict", two_models_run, "--data", two_models, "--model", "terse", "--out", tmp_path / "a", "--no-progress")
    terse = [json.loads(line)["output_len_median"] for line in (tmp_path / "a").read_text().splitlines()]
    assert terse == lines[160:]


def test_a_network_for_several_models_exports_whole(two_models_run: Path, tmp_path: Path) -> None:
    """Both heads and all served models, calibrated each on the exported graph."""
    amin("export", two_models_run, "--out", tmp_path / "x", "--no-progress")
    exported, trained = LengthPredictor(tmp_path / "x"), load_predictor(two_models_run)
    texts = ["Write a story about rivers", "Write an essay " * 20]
    np.testing.assert_allclose(exported.survivals(texts), trained.survivals(texts), atol=1e-5)
    assert set(exported.spec.calibrations) == {"made-up", "terse", "average", "like:"}
    for name in exported.spec.choices:
        np.testing.assert_array_equal(
            exported.predict(texts, model=name).lower_bounds, trained.predict(texts, model=name).lower_bounds
        )
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert set(manifest["measured"]["models"]) == {"made-up", "terse"}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_export_of_one_served_model_leaves_the_others_out(
    precision: str, two_models_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It predicts for that one as the whole does, measured on its records; one that is not known is named."""
    options = ("--precision", precision, "--no-progress")
    amin("export", two_models_run, "--out", tmp_path / "one", "--model", "terse", *options)
    exported, trained = LengthPredictor(tmp_path / "one"), load_predictor(two_models_run)
    texts = ["Write a story about rivers", "Write an essay " * 20]
    assert exported.spec.choices == ("terse",)
    assert set(exported.spec.calibrations) == {"terse"}
    own = trained.predict(texts, model="terse")
    np.testing.assert_allclose(
        exported.survivals(texts)[:, 0], own.survival, atol=1e-5 if precision == "fp32" else 0.05
    )
    assert set(json.loads((tmp_path / "one" / "manifest.json").read_text())["measured"]["models"]) == {"terse"}
    assert main(["export", str(two_models_run), "--out", str(tmp_path / "x"), "--model", "other"]) == 2
    assert "--model: 'other' is not known" in capsys.readouterr().err


def test_a_predictor_starts_another_one_and_is_never_made_worse(
    run_folder: Path, two_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no steps at all a known served model keeps its predictions and a new one has those of the average."""
    arguments = ("--data", two_models, "--init", run_folder, "--no-baselines", "--no-progress", "--accelerator", "cpu")
    amin("train", *arguments, "--out", tmp_path / "none", "--epochs", "0", "--head-epochs", "0")
    texts = ["Write a story about rivers", "Write an essay"]
    started, before = load_predictor(tmp_path / "none"), load_predictor(run_folder)
    for name in ("made-up", "terse"):
        np.testing.assert_allclose(started.survival(texts, name), before.survival(texts), atol=1e-5)
    amin("train", *arguments, "--out", tmp_path / "some", "--epochs", "1", "--head-epochs", "3")
    losses = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines() if "pinball loss" in line]
    assert losses[0] >= losses[1]


def test_rows_without_a_served_model_beside_others_are_refused(two_models: Path, tmp_path: Path) -> None:
    """And so is one of them with too few rows."""
    lines = two_models.read_text().splitlines(keepends=True)
    nameless, few = tmp_path / "nameless.jsonl", tmp_path / "few.jsonl"
    with pytest.raises(InputError, match=r"train has \d prompts of [a-z-]+, .*; raise --max-prompts"):
        amin("train", "--data", two_models, "--out", tmp_path / "out", *QUICK, "--max-prompts", "4")
    nameless.write_text("".join([*lines, '{"prompt": "x", "output_len": 3, "split": "test"}\n']))
    few.write_text("".join(lines[:170]))
    for data, message in ((nameless, "model: missing, while other"), (few, "validation has 0 prompts of terse")):
        with pytest.raises(InputError, match=message):
            amin("train", "--data", data, "--out", tmp_path / "out", *QUICK)


def test_two_processes_share_the_training(tiny_encoder: Path, records_file: Path, tmp_path: Path) -> None:
    """Lightning launches the second, which leaves all files but its logs to the first."""
    out = tmp_path / "run"
    argv = ["train", "--data", records_file, "--out", out, "--encoder", tiny_encoder, "--no-baselines", *QUICK]
    command = [sys.executable, "-m", "pipelines.cli", *map(str, argv), "--devices", "2", "--strategy", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert done.stdout.count("test split, tau") == 1
    assert resolve_predictor(out).predict(["Write a poem"]).lower_bounds[0] >= 1
