"""From words on the command line, and YAML files, to the settings of a stage: a frozen dataclass."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from itertools import pairwise
from typing import Any, TypeVar

from jsonargparse import ActionYesNo, ArgumentParser
from yaml import YAMLError

from pipelines.settings.option import Option, Positional, made_of, options_of
from predictor.errors import InputError

Settings = TypeVar("Settings")

CONFIG_HELP = "YAML file of settings, spelled with _ for - and without dashes; options that come after it win"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows examples as they are written, and leaves the long options room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def parse(kind: type[Settings], argv: Sequence[str], prog: str, description: str) -> Settings:
    """Return the settings that the words on a command line give.

    A settings class may have a method `defaults(self) -> Mapping[str, Any]`: what stands where no option is given and
    depends on others, such as the settings of the run that `--resume` goes on with. It is asked once; then the words
    are read again.

    Args:
        kind: A frozen dataclass. The string under a field is its help; a field that is a dataclass itself gives its
            own fields as options. `predictor.ranges` states ranges, `pipelines.settings.option` the spelling.
        argv: The words after the command's name.
        prog: What the user typed before them.
        description: First line of the help; what follows the first line of the docstring of `kind` ends it.

    Raises:
        InputError: a value that cannot be read or lies out of range, or an option that is unknown or missing.
        SystemExit: with 0, after `--help` or `--print_config`.
    """
    options = list(options_of(kind))
    parser = build_parser(kind, options, prog, description)
    settings: Settings = made_of(kind, _values(parser, options, argv))
    defaults: Mapping[str, Any] = settings.defaults() if hasattr(settings, "defaults") else {}
    if defaults:
        parser.set_defaults(dict(defaults))
        settings = made_of(kind, _values(parser, options, argv))
    return settings


def build_parser(kind: type[Any], options: Sequence[Option], prog: str, description: str) -> ArgumentParser:
    """Return the parser of `options`, which are those of `kind`."""
    _, _, epilog = (kind.__doc__ or "").partition("\n")
    parser = ArgumentParser(
        prog=prog,
        description=description,
        epilog="\n".join(line.removeprefix("    ") for line in epilog.splitlines()).strip() or None,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {"": parser}
    for option in options:
        if option.title not in groups:
            groups[option.title] = parser.add_argument_group(option.title)
        _add(groups[option.title], option)
    parser.add_argument("--config", action="config", metavar="FILE.yaml", help=CONFIG_HELP)
    return parser


def _add(place: Any, option: Option) -> None:
    name, default = option.field.name, option.default
    if option.marker(Positional) is not None:
        place.add_argument(name, type=option.bare, metavar=option.spelled, help=option.help)
    elif option.bare is bool:
        place.add_argument(option.spelled, action=ActionYesNo(no_prefix="no-"), default=default, help=option.help)
    else:
        needed = {"required": True} if default is MISSING else {"default": default}
        place.add_argument(option.spelled, type=option.bare, metavar=option.metavar, help=option.help, **needed)


def _values(parser: ArgumentParser, options: Sequence[Option], argv: Sequence[str]) -> Mapping[str, Any]:
    try:
        values = dict(parser.parse_args(list(argv)).as_dict())
    except argparse.ArgumentError as error:
        line = _in_one_line(str(error), {option.field.name: option for option in options})
        raise InputError(line.replace("--config:", f"--config {_configs(argv)}:", 1)) from None
    except (RecursionError, UnicodeDecodeError, YAMLError) as error:
        raise InputError(f"--config {_configs(argv)}: not YAML: {' '.join(str(error).split())}") from None
    for option in options:
        value = values[option.field.name]
        if value is None and not option.may_be_none:  # jsonargparse takes null for any type
            raise InputError(f"{option.spelled}: must be {option.wanted}, not null")
        if isinstance(value, str) and not value.strip() and option.default != "":
            raise InputError(f"{option.spelled}: must not be empty")
    _refuse_empty_words(options, argv)
    return values


def _refuse_empty_words(options: Sequence[Option], argv: Sequence[str]) -> None:
    """Raise InputError for a path that is given as nothing, as an unset variable of a shell is: it would be `.`."""
    names = {option.spelled for option in options if option.default != ""}
    for before, word in pairwise(["", *argv]):
        named = word.removesuffix("=") if word.endswith("=") else before if not word.strip() else None
        if named in names:
            raise InputError(f"{named}: must not be empty")
        if not word.strip() and not before.startswith("--"):
            raise InputError(f"{' or '.join(o.spelled for o in options if o.marker(Positional))}: must not be empty")


def _configs(argv: Sequence[str]) -> str:
    """Return the files that --config names on a command line."""
    joined = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    return ", ".join([*joined, *(following for word, following in pairwise(argv) if word == "--config")])


def _in_one_line(message: str, options: Mapping[str, Option]) -> str:
    """Return what jsonargparse says of a wrong value, in the words of the command line."""
    if missing := re.fullmatch(r"the following arguments are required: (\w+(?:, \w+)*)", message):
        names = [options[name].spelled for name in missing[1].split(", ")]
        return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    if unknown := re.fullmatch(r"Option '(.*)' is not accepted", message):
        return f"--config: {unknown[1]}: unknown; the settings are {', '.join(options)}"
    key, value = re.match(r'Parser key "(\w+)"', message), re.search(r"(?:Got|Given) value: (.*)", message)
    if key is not None and value is not None and key[1] in options:
        option = options[key[1]]
        return f"{option.spelled}: must be {option.wanted}, not {value[1]!r}"
    if key is not None and key[1] in options:
        return f"{options[key[1]].spelled}: {' '.join(message[key.end() + 1 :].split())}"
    if boolean := re.fullmatch(r"Value not boolean: (.*)\.", message):
        return f"--config: {boolean[1]!r} where true or false is wanted"
    if loop := re.fullmatch(r"Config file loop detected: (.*)", message):
        return f"--config: reads itself ({loop[1]}); take the line `config:` out of it"
    if (text := re.fullmatch(r"Unexpected config:(.*)", message, re.DOTALL)) is not None:
        lines = [line.strip() for line in text[1].splitlines() if line.strip() and not line.strip().startswith("#")]
        found = f"{' '.join(lines)[:80]!r} is no mapping of settings" if lines else "empty"
        return f"--config: {found}; write them as `seed: 3`, one a line"
    line = " ".join(message.split())
    return line.replace("Problems parsing config:", "--config: not YAML:").replace('Parser key "config":', "--config:")
