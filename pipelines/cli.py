"""The command `amin`: one sub-command per stage, each imported only when it is called."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from pipelines.files import check_output
from predictor.errors import InputError as PredictorInputError
from scheduler.errors import InputError as SchedulerInputError

STAGES = {
    "demo": "pipelines.demo",
    "collect": "pipelines.collect",
    "train": "pipelines.train.stage",
    "predict": "pipelines.predict",
    "export": "pipelines.export",
    "serve": "pipelines.serve",
    "simulate": "pipelines.simulate.stage",
    "map": "pipelines.simulate.gain_map",
    "tune": "pipelines.simulate.tune",
    "evaluate": "pipelines.evaluate.stage",
    "paper": "pipelines.studies.paper",
}
"""The module of each command, imported only when the command is called."""
FILE_STAGES = ("collect", "predict")
"""Those whose --out is a file; that of the others is a folder."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults of the options that have one, and examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def build_parser(stages: Iterable[str]) -> argparse.ArgumentParser:
    """Return the parser with the sub-commands named in `stages`."""
    parser = argparse.ArgumentParser(
        prog="amin",
        description="Length-aware scheduling for LLM serving: train a predictor of lower bounds on response length, "
        "export it, and evaluate it with the Amin policy beside every other.",
        epilog="Exit codes: 0 done, 2 bad usage or bad input (one line says where), 130 and 143 interrupted, "
        "1 anything else.",
    )
    commands = parser.add_subparsers(dest="stage", metavar="COMMAND", required=True)
    for name in stages:
        stage = import_module(STAGES[name])
        command = commands.add_parser(name, help=stage.HELP, description=stage.HELP, formatter_class=HelpFormatter)
        stage.add_arguments(command)
        command.set_defaults(run=stage.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # a log is not a screen: a line of progress now and then
    arguments = sys.argv[1:] if argv is None else list(argv)
    named = arguments[0] if arguments else ""
    args = build_parser([named] if named in STAGES else STAGES).parse_args(arguments)
    try:
        if getattr(args, "out", None) is not None:
            inputs = [vars(args)[name] for name in ("prompts", "data") if isinstance(vars(args).get(name), Path)]
            check_output(args.out, "--out", is_folder=args.stage not in FILE_STAGES, inputs=inputs)
        args.run(args)
    except (PredictorInputError, SchedulerInputError) as error:
        print(f"amin {args.stage}: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name in ("predictor", "scheduler", "pipelines"):
            raise
        print(f"amin {args.stage}: error: {error.name} is not installed: pip install -e '.[train]'", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read the output has gone
        return 1
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        place = "the output" if error.filename is None else error.filename
        print(f"amin {args.stage}: error: {place}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"amin {args.stage}: interrupted; finished work is kept", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        print(f"amin {args.stage}: terminated; finished work is kept", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0


if __name__ == "__main__":
    sys.exit(main())
