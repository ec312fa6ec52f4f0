"""The command `amin`: one sub-command per stage, each imported only when it is called."""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.files import FULL
from pipelines.output.claim import claimed, is_launched
from pipelines.output.terminal import keep_streams
from predictor.errors import InputError as PredictorInputError
from predictor.records.without_text import refuse_reduced
from scheduler.errors import InputError as SchedulerInputError


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command, by name: nothing is imported before it is called."""

    help: str
    """What it does, in a line."""
    module: str
    """Has `run(settings)`, which does the work."""
    settings: str
    """Module and name of the dataclass that `run` takes."""
    extra: str = "train"
    """Extra of the distribution that has what it imports."""
    writes_file: bool = False
    """Whether --out is a file; otherwise it is a folder."""


COMMANDS: Mapping[str, Command] = {
    "demo": Command(
        "run the whole chain on the bundled model and prompts (about ten minutes on two cores, no network)",
        "pipelines.demo", "pipelines.settings.demo.DemoSettings",
    ),
    "collect": Command(
        "generate answers with the served model, or ask a server, and record their lengths",
        "pipelines.collect.stage", "pipelines.settings.collect.CollectSettings", writes_file=True,
    ),
    "reduce": Command(
        "reduce a log to what training needs, before it leaves a machine: lengths, states and features, no text",
        "pipelines.train.reduce", "pipelines.settings.reduce.ReduceSettings",
    ),
    "train": Command(
        "train and calibrate a predictor of lower bounds on response length, or a probe of a model's states",
        "pipelines.train.stage", "pipelines.settings.train.TrainSettings",
    ),
    "predict": Command(
        "predict lower bounds and medians of response length for the prompts of a file",
        "pipelines.predict", "pipelines.settings.predict.PredictSettings", writes_file=True,
    ),
    "export": Command(
        "export a predictor to ONNX, calibrated and measured on the exported graph, or a probe",
        "pipelines.export", "pipelines.settings.export.ExportSettings",
    ),
    "serve": Command(
        "serve an export over HTTP: bounds at arrival, corrected online by what becomes of the requests",
        "pipelines.serve", "pipelines.settings.serve.ServeSettings", extra="serve",
    ),
    "proxy": Command(
        "pass requests on to an engine with a hint of their length, and learn from the answers",
        "pipelines.proxy", "pipelines.settings.proxy.ProxySettings", extra="serve",
    ),
    "simulate": Command(
        "simulate a workload under several policies (no torch)",
        "pipelines.simulate.stage", "pipelines.settings.simulate.SimulateSettings",
    ),
    "map": Command(
        "gain of a policy over fcfs, by load and by quality of the predictions",
        "pipelines.simulate.gain_map", "pipelines.settings.simulate.MapSettings",
    ),
    "tune": Command(
        "choose tau and the levels of amin-survival by simulated latency on your records",
        "pipelines.simulate.tune", "pipelines.settings.tune.TuneSettings",
    ),
    "evaluate": Command(
        "generate with a real model under several policies, or measure one or two running servers",
        "pipelines.evaluate.command", "pipelines.settings.evaluate.EvaluateSettings",
    ),
    "assess": Command(
        "would it pay for my own requests? one page from a log (no torch)",
        "pipelines.assess.stage", "pipelines.settings.assess.AssessSettings",
    ),
    "deployment": Command(
        "fit clock and memory of a deployment: from measured kernels, or from a server's own log",
        "pipelines.deployment.stage", "pipelines.settings.deployment.DeploymentSettings", writes_file=True,
    ),
    "paper": Command(
        "reproduce the experiments of the paper behind Amin, claim by claim (no torch)",
        "pipelines.studies.paper", "pipelines.settings.paper.PaperSettings",
    ),
}  # fmt: skip
DESCRIPTION = (
    "Length-aware scheduling for LLM serving: train a predictor of lower bounds on response length, export it, and "
    "evaluate it with the Amin policy and every other."
)
EXIT_CODES = (
    "Exit codes: 0 done, 2 bad usage or bad input (one line says where), 130 and 143 interrupted, 1 anything else."
)


def run_stage(name: str, argv: Sequence[str]) -> None:
    """Run a sub-command with the words that follow its name; raises what the stage raises.

    Raises:
        InputError: an option, a file or a row that the user can fix.
        SystemExit: after `--help` and `--print_config`.
    """
    from pipelines.settings.parser import parse

    command = COMMANDS[name]
    module, _, kind = command.settings.rpartition(".")
    settings = parse(getattr(import_module(module), kind), argv, f"amin {name}", command.help)
    for option in ("data", "prompts"):
        if (given := getattr(settings, option, None)) is not None:
            refuse_reduced(given, f"--{option}")
    with _output(command, settings):
        import_module(command.module).run(settings)


def _output(command: Command, settings: Any) -> AbstractContextManager[None]:
    """Return what keeps `--out` for this process while the stage runs; nothing for a stage without."""
    if getattr(settings, "out", None) is None or is_launched():
        return nullcontext()
    owners = [settings, getattr(settings, "training", None), getattr(settings, "probe", None)]
    names = ("prompts", "data", "path", "run_folder", "predictor", "init", "encoder", "states", "prompt_predictor")
    named = [getattr(owner, name, None) for owner in owners for name in names]
    return claimed(
        settings.out,
        is_folder=not command.writes_file,
        inputs=[Path(name) for name in named if isinstance(name, str | Path)],
        force=getattr(settings, "force", True),  # the demo has none: it goes on, and its stages keep the rule
        resume=getattr(settings, "resume", None),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    keep_streams()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # a log is not a screen: a line of progress now and then
    name, *rest = (sys.argv[1:] if argv is None else [*argv]) or [""]
    if name not in COMMANDS:
        _overview().parse_args([name, *rest] if name else [])
        return 0
    try:
        run_stage(name, rest)
    except (PredictorInputError, SchedulerInputError) as error:
        return _fail(name, 2, f"error: {error}")
    except ModuleNotFoundError as error:
        if error.name in ("predictor", "scheduler", "pipelines"):
            raise
        return _fail(name, 2, f"error: {error.name} is not installed: pip install -e '.[{COMMANDS[name].extra}]'")
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(name, 2, f"error: {error.filename}: {error.strerror}{_disk(error)}")
    except KeyboardInterrupt:
        return _fail(name, 128 + signal.SIGINT, "interrupted; finished work is kept")
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        return _fail(name, 128 + signal.SIGTERM, "terminated; finished work is kept")
    return 0


def _disk(error: OSError) -> str:
    """Return where the disk is mounted that is full, "" for another error."""
    if error.errno not in FULL:
        return ""
    place = next(parent for parent in Path(os.fsdecode(error.filename)).absolute().parents if parent.is_mount())
    return f" (the disk at {place})"


def _fail(name: str, code: int, line: str) -> int:
    print(f"amin {name}: {line}", file=sys.stderr)
    return code


def _overview() -> argparse.ArgumentParser:
    """Return the parser of what comes before a command: `--help`, or a name that there is not."""
    parser = argparse.ArgumentParser(prog="amin", description=DESCRIPTION, epilog=EXIT_CODES)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
