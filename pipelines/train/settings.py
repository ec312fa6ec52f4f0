"""The command line of `amin train` and the settings it resolves to."""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictor.errors import InputError

if TYPE_CHECKING:
    from predictor.records.chat_turns import ChatOptions
    from predictor.training.config import TrainConfig

# What a resumed run may change, since the result does not depend on it.
FREE_ON_RESUME = {"progress", "baselines", "accelerator"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting of `predictor.training.config.TrainConfig`."""
    from predictor.training.config import TrainConfig, field_descriptions, field_type

    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--config", type=Path, help="YAML file of settings; options given here override it")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole epoch in --out")
    defaults = TrainConfig()
    for name, description in field_descriptions().items():
        kind, _ = field_type(name)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = kind
            options["metavar"] = {int: "N", float: "X"}.get(kind, "TEXT")
        default = getattr(defaults, name)
        shown = description.rstrip(".") + ("" if default in (None, "") else f" (default: {default})")
        parser.add_argument(f"--{name.replace('_', '-')}", help=shown.replace("%", "%%"), **options)
    add_chat_arguments(parser)


def is_launched() -> bool:
    """Return whether Lightning launched this process to share in the training of another, which writes all files."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of `predictor.records.chat_turns.ChatOptions`."""
    chats = parser.add_argument_group("conversation data")
    chats.add_argument(
        "--turn", choices=["first", "last"], default=argparse.SUPPRESS,
        help="the prompt: the opening user message, or the last that was answered (default: first)",
    )  # fmt: skip
    chats.add_argument(
        "--context-turns", type=int, metavar="N", default=argparse.SUPPRESS,
        help="earlier messages put before the prompt, at most (default: 0)",
    )  # fmt: skip
    chats.add_argument(
        "--context-characters", type=int, metavar="N", default=argparse.SUPPRESS,
        help="characters of these messages, at most; the latest stay (default: 2000)",
    )  # fmt: skip
    chats.add_argument(
        "--language", metavar="TEXT", default=argparse.SUPPRESS,
        help="language of the conversations kept, as the data names it, e.g. English (default: all)",
    )  # fmt: skip


def resolve_config(args: argparse.Namespace, out: Path) -> "TrainConfig":
    """Return the settings: defaults, then the file, then options; with `--resume` those of the run must agree.

    With `--init` the settings that shape the network are those of the predictor it starts from.
    """
    from predictor.training.config import TrainConfig, check, override, read_config

    given = {name: vars(args)[name] for name in TrainConfig.__dataclass_fields__ if name in vars(args)}
    stored = out / "config.yaml"
    if stored.is_file() and not args.resume and not is_launched():
        raise InputError(f"{out}: already holds a run; continue it with --resume or choose another --out")
    config = TrainConfig()
    if stored.is_file():
        values = {name: value for name, value in read_config(stored).items() if name != "versions"}
        config = override(config, values, str(stored))
    from_file = read_config(args.config) if args.config else {}
    wanted = override(override(config, from_file, str(args.config)), given, "option")
    if stored.is_file():
        _require_same(out, config, wanted)
    elif wanted.init is not None:
        wanted = _shaped_by(wanted, {**from_file, **given})
    check(wanted)
    return wanted


def _require_same(out: Path, before: "TrainConfig", now: "TrainConfig") -> None:
    for name in before.__dataclass_fields__:
        old, new = getattr(before, name), getattr(now, name)
        if old != new and name not in FREE_ON_RESUME:
            raise InputError(f"{out}: {name}: the run has {old!r}, not {new!r}; leave it out or choose another --out")


def require_same_data(out: Path, data: str, splits_sha256: str) -> None:
    """Raise InputError where the run in `out` has begun with other splits: what it tests on it may have learnt from."""
    stored = out / "data.json"
    if stored.is_file() and json.loads(stored.read_text()).get("splits_sha256") != splits_sha256:
        raise InputError(f"{out}: data: {data} has changed since the run began; choose another --out")


def _shaped_by(config: "TrainConfig", given: Mapping[str, Any]) -> "TrainConfig":
    from predictor.training.checkpoint import load_spec

    spec, shape = load_spec(str(config.init))
    fixed: dict[str, Any] = {
        "encoder": None,
        "max_length": spec.bins.max_length,
        "num_bins": spec.bins.num_bins,
        "num_terms": shape.num_terms,
        "num_components": shape.num_components,
        "hidden_size": shape.hidden_size,
        "heads": ",".join(shape.heads),
    }
    for name, value in fixed.items():
        if given.get(name, value) != value:
            raise InputError(f"{config.init}: {name}: this predictor has {value!r}, not {given[name]!r}; leave it out")
    return replace(config, max_prompt_tokens=given.get("max_prompt_tokens", spec.max_prompt_tokens), **fixed)


def resolve_chat_options(args: argparse.Namespace, out: Path) -> "ChatOptions":
    """Return how conversations are read, as `args` say; a resumed run keeps its own.

    Raises:
        InputError: a value out of range, or another than the run has.
    """
    from predictor.records.chat_turns import ChatOptions

    stored = out / "data.json"
    before = json.loads(stored.read_text())["conversations"] if stored.is_file() else {}
    given = {name: vars(args)[name] for name in ChatOptions.__dataclass_fields__ if name in vars(args)}
    for name, value in given.items():
        if before and before[name] != value:
            raise InputError(
                f"{out}: {name}: the run has {before[name]!r}, not {value!r}; leave it out or choose another --out"
            )
    return ChatOptions(**{**before, **given})
