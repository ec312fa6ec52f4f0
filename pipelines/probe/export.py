"""Export a probe: what an engine needs of it, and what it is worth."""

from pathlib import Path
from typing import Any

from pipelines.files import atomic_directory
from pipelines.settings.export import ExportSettings
from pipelines.train.resume import METRICS_FILE
from predictor.errors import InputError
from predictor.json_file import read_object
from predictor.probe.probe import SPEC_FILE, WEIGHTS_FILE, Probe

CARD_FILE = "README.md"
CARD = """---
license: {license}
tags: [amin, length-prediction]
---
# {name}

A probe of **{served_model}**: the remaining length of an answer from the states of layer {layer} of the model that
writes it. It works for that model (weights {revision}, chat template {template}) and for no other.

Files: `{weights}` (half precision) and `{spec}`; `predictor.probe.probe.Probe.load` reads them.

Measured on held-out prompts, bounds at tau {tau}, of the answers that go on after t tokens:

| t | answers | coverage | pinball loss | tau-b of the remaining length |
|---|---|---|---|---|
{rows}
"""
MEASURED_AT = 0.1
"""The default of --tau; a probe is measured where it is trained, so another one would have no effect."""


def is_probe(run_folder: Path) -> bool:
    """Return whether a folder is a run or an export of a probe."""
    return (run_folder / SPEC_FILE).is_file()


def export_probe(settings: ExportSettings) -> None:
    """Write the export of a probe, whole or not at all.

    Raises:
        InputError: the folder holds a probe that cannot be read, an option is for predictors of prompts alone, or
            something is in the way.
    """
    for option, given in (
        ("--precision int8", settings.precision != "fp32"),
        ("--max-prompt-tokens", settings.max_prompt_tokens),
        ("--model", settings.model),
        ("--tau", settings.tau != MEASURED_AT),
    ):
        if given:
            raise InputError(f"{option}: is for predictors that read the prompt; {settings.run_folder} holds a probe")
    probe, run = Probe.load(settings.run_folder), settings.run_folder
    there = {file.name for file in settings.out.iterdir()} if settings.out.is_dir() else set()
    if other := there - {SPEC_FILE, WEIGHTS_FILE, CARD_FILE}:
        raise InputError(
            f"--out: {settings.out} holds {min(other)}, which no export of a probe wrote; give a new folder"
        )
    metrics = read_object(run / METRICS_FILE, "train the probe again") if (run / METRICS_FILE).is_file() else {}
    with atomic_directory(settings.out) as aside:
        probe.save(aside)
        (aside / CARD_FILE).write_text(_card(probe, metrics, settings), encoding="utf-8")
    size = sum(file.stat().st_size for file in settings.out.iterdir())
    print(f"{settings.out}: probe of {probe.source.served_model}, layer {probe.layer}, {size / 1e3:.0f} kB")


def _card(probe: Probe, metrics: dict[str, Any], settings: ExportSettings) -> str:
    source = probe.source
    measured = metrics.get("test", {}).get("probe", {}).get("by_generated", {})
    rows = [
        f"| {t} | {row['num_answers']} | {row['coverage']:.3f} | {row['pinball_loss']:.1f} | {row['kendall_tau']:.3f} |"
        for t, row in measured.items()
    ]
    return CARD.format(
        license=settings.license,
        name=settings.out.name,
        served_model=source.served_model,
        layer=probe.layer,
        revision=source.revision,
        template=source.template,
        weights=WEIGHTS_FILE,
        spec=SPEC_FILE,
        tau=metrics.get("tau", "-"),
        rows="\n".join(rows) or "| - | - | - | - | - |",
    )
