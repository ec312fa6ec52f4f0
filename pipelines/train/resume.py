"""Whether a run may go on: its settings, and what its inputs hold, are what it began with."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from pipelines.files import atomic_file, content_sha256
from pipelines.scheduling import FILE_NAME
from pipelines.settings.train import CONFIG_FILE, TrainSettings, shape_of
from predictor.errors import InputError
from predictor.json_file import read_object
from predictor.training.checkpoint import DEFAULT_ENCODER, versions
from predictor.training.config import TrainConfig

# What a resumed run may change, since the result does not depend on it.
FREE_ON_RESUME = {"progress", "baselines", "accelerator"}
# What may change with --init, though the predictor has its own.
FREE_WITH_INIT = {"max_prompt_tokens"}
DATA_FILE, METRICS_FILE = "data.json", "metrics.json"


def check_settings(settings: TrainSettings) -> None:
    """Raise InputError for a setting that is not that of the run that goes on, or of the predictor of `--init`.

    Also where `--force` would replace a run together with the levels that `amin tune` chose for it.
    """
    tuned = settings.out / "predictor" / FILE_NAME
    if settings.force and not settings.resume and tuned.is_file():
        raise InputError(
            f"--out: {tuned} was tuned for the run that is there; use another --out, or remove it and tune again"
        )
    now, stored = flat_settings(settings), settings.stored()
    if settings.resume and stored is not None:
        _require_same(f"{settings.out}: ", "the run", stored, now, FREE_ON_RESUME)
    elif settings.training.init is not None:
        init = settings.training.init
        _require_same(f"{init}: ", "this predictor", shape_of(init), now, FREE_WITH_INIT)


def _require_same(place: str, what: str, before: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> None:
    for name, old in before.items():
        if name not in free and now[name] != old:
            raise InputError(f"{place}{name}: {what} has {old!r}, not {now[name]!r}; leave the option out")


def flat_settings(settings: TrainSettings) -> dict[str, Any]:
    """Return one value for each option of `amin train` but those of `--out`."""
    return {**asdict(settings.training), **asdict(settings.conversations), **asdict(settings.probe)}


def write_config(settings: TrainSettings) -> None:
    """Write the settings to `config.yaml`, which `--config` takes, and above them the versions."""
    lines = [f"# {name} {version}\n" for name, version in versions().items()]
    with atomic_file(settings.out / CONFIG_FILE) as new:
        text = yaml.safe_dump(flat_settings(settings), sort_keys=False, allow_unicode=True)
        new.write_text("".join(lines) + text, encoding="utf-8")


def is_done(settings: TrainSettings, inputs: Mapping[str, str]) -> bool:
    """Return whether the run that goes on is finished, and say so; InputError where its inputs were others."""
    if not settings.resume:
        return False
    require_same_inputs(settings.out, inputs)
    if (settings.out / METRICS_FILE).is_file():  # its measures are written last
        print(f"{settings.out}: this run is finished; it is left as it is (--force trains it again)")
        return True
    return False


def input_digests(config: TrainConfig) -> dict[str, str]:
    """Return the SHA-256 of what each input on this disk holds, by its option and path; hub names are left out."""
    paths = [("data", config.data), ("init", config.init), ("tokenizer", config.tokenizer)]
    paths += [("teacher", path) for path in (config.teacher or "").split(",")]
    paths += [("encoder", config.encoder or (str(DEFAULT_ENCODER) if config.init is None else None))]
    return {
        f"{name} {path}": content_sha256(Path(path), without={FILE_NAME})
        for name, path in paths
        if path and Path(path).exists()
    }


def require_same_inputs(out: Path, now: Mapping[str, str], splits_sha256: str | None = None) -> None:
    """Raise InputError where an input, or a split, does not hold what it did when the run in `out` began."""
    file = out / DATA_FILE
    stored = read_object(file, "choose another --out") if file.is_file() else {}
    before = stored.get("inputs", {})
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            raise InputError(f"{out}: {name} has changed since the run began; choose another --out")
    if splits_sha256 is not None and stored.get("splits_sha256", splits_sha256) != splits_sha256:
        raise InputError(f"{out}: data: the splits have changed since the run began; choose another --out")
