"""Rows of tables in CSV, with commas, semicolons, tabs or bars between the cells."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from predictor.errors import InputError
from predictor.records.text_files import opened_text

_DELIMITERS = ",;\t|"


def table_items(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, cells by column) of each row below the header; blank lines and comments before it are skipped.

    Raises:
        InputError: a row has more or fewer cells than the header; names the line.
    """
    with opened_text(file) as lines:
        number, header_line = _header_line(lines)
        reader = csv.reader(
            chain([header_line], lines), delimiter=max(_DELIMITERS, key=header_line.count), skipinitialspace=True
        )
        try:
            header = [name.strip() for name in next(reader, [])]
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    line = number - 1 + reader.line_num
                    yield line, _row_of(file, line, header, cells)
        except csv.Error as error:
            raise InputError(f"{file}: line {number - 1 + reader.line_num}: not readable as CSV ({error})") from None


def _header_line(lines: Iterable[str]) -> tuple[int, str]:
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            return number, line
    return 0, ""


def _row_of(file: Path, number: int, header: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    """Return the cells by column; a column may appear twice if its values agree."""
    values = [cell.strip() or None for cell in cells]
    while len(values) > len(header) and not values[-1]:  # a comma at the end of the line
        values.pop()
    if len(values) != len(header):
        raise InputError(f"{file}: line {number}: {len(values)} columns, must be {len(header)} as in the header")
    row = dict(zip(header, values, strict=True))
    for name, value in zip(header, values, strict=True):
        if row[name] != value:
            raise InputError(f"{file}: line {number}: column {name!r} appears twice with different values; remove one")
    return row
