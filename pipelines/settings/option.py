"""A field of a settings dataclass as an option of the command line: its spelling, its help, what it takes."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from predictor.ranges import range_of

METAVARS: Mapping[Any, str] = {int: "N", float: "X", Path: "PATH"}
WANTED: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Positional:
    """Marks a field that has no dashes on the command line: `path: Annotated[Path, Positional("RUN")]`."""

    metavar: str


@dataclass(frozen=True, slots=True)
class Metavar:
    """Marks what a value is called in `--help`: `load: Annotated[str, Metavar("X|at-once")]`."""

    text: str


@dataclass(frozen=True, slots=True)
class Option:
    """A field of a settings dataclass."""

    field: Field[Any]
    hint: Any
    """The type hint, with its markers."""
    bare: Any
    """The type hint without them."""
    title: str
    """Heading of its group in the help; "" for the options of the stage itself."""
    text: str
    """The string under the field."""

    @property
    def default(self) -> Any:
        """The value where none is given; MISSING where one must be."""
        made = self.field.default_factory
        return self.field.default if made is MISSING else made()

    def marker(self, kind: type[Any]) -> Any:
        """Return what marks the field, of this kind; None without."""
        parts = (self.hint, *get_args(self.hint))
        markers = (marker for part in parts for marker in getattr(part, "__metadata__", ()))
        return next((marker for marker in markers if isinstance(marker, kind)), None)

    @property
    def spelled(self) -> str:
        """What the user types, or the metavar of a positional."""
        positional = self.marker(Positional)
        return f"--{self.field.name.replace('_', '-')}" if positional is None else positional.metavar

    @property
    def choices(self) -> list[str]:
        """The values of a Literal."""
        literals = [part for part in (self.bare, *get_args(self.bare)) if get_origin(part) is Literal]
        return [str(choice) for part in literals for choice in get_args(part)]

    @property
    def may_be_none(self) -> bool:
        """Whether None is a value."""
        return NoneType in get_args(self.bare)

    @property
    def metavar(self) -> str:
        """What `--help` calls the value."""
        marker = self.marker(Metavar)
        if marker is None:
            return "{" + ",".join(self.choices) + "}" if self.choices else METAVARS.get(self._type, "TEXT")
        return str(marker.text)

    @property
    def wanted(self) -> str:
        """What a value must be, in words."""
        return f"one of {', '.join(self.choices)}" if self.choices else WANTED.get(self._type, "a text")

    @property
    def help(self) -> str:
        """The string under the field, the default and the range."""
        notes = [] if self.default in (MISSING, None, "", False) else [f"default: {self.default}"]
        if (allowed := range_of(self.hint)) is not None:
            notes.append(str(allowed))
        line = " ".join(self.text.split()).removesuffix(".")
        return (f"{line} ({'; '.join(notes)})" if notes else line).replace("%", "%%")

    @property
    def _type(self) -> Any:
        return next(part for part in (*get_args(self.bare), self.bare) if part is not NoneType)


def options_of(kind: type[Any], title: str = "") -> Iterator[Option]:
    """Yield the options of a settings class; a field that is a dataclass itself gives its own, under its string."""
    from docstring_parser import parse_from_object

    hints, bare = get_type_hints(kind, include_extras=True), get_type_hints(kind)
    texts = {param.arg_name: param.description or "" for param in parse_from_object(kind).params}
    for field in fields(kind):
        name = field.name
        if is_dataclass(bare[name]):
            yield from options_of(bare[name], " ".join(texts.get(name, name).split()).removesuffix("."))
        else:
            yield Option(field, hints[name], bare[name], title, texts[name])


def made_of(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Return the settings of class `kind` with flat `values`, one for each option."""
    hints = get_type_hints(kind)
    return kind(
        **{
            field.name: made_of(hints[field.name], values) if is_dataclass(hints[field.name]) else values[field.name]
            for field in fields(kind)
        }
    )
