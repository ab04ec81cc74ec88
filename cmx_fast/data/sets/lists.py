"""Reads and writes the lists of data sets, as text or as a table: whole, or with an error that names the line.

A list may begin with a byte-order mark, end its lines as Windows does, have blank lines, and spaces around what it
holds. It is UTF-8, or with its mark UTF-16. Bytes that are no UTF-8 stay what they are: file names may be any bytes
(``os.fsdecode`` gives such names the same way).
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_BLANKS = " \t"
#: The separators of tables, the usual one first.
_SEPARATORS = ",\t;"


class Row(dict[str, str]):
    """The values of a row by column, with ``where``, its file and line."""

    def __init__(self, values: dict[str, str], where: str):
        super().__init__(values)
        self.where = where

    def whole(self, column: str) -> int:
        """The whole number, 0 or more, in a column."""
        if not (self[column].isascii() and self[column].isdigit()):
            raise ValueError(f"{self.where}: {column} is {self[column]!r}, expected a whole number")
        return int(self[column])

    def real(self, column: str) -> float:
        """The number in a column."""
        try:
            return float(self[column])
        except ValueError as error:
            raise ValueError(f"{self.where}: {column} is {self[column]!r}, expected a number") from error

    def one_of(self, column: str, choices: Sequence[str]) -> str:
        """The value of a column that has to be one of these."""
        if self[column] not in choices:
            expected = " or ".join(choices)
            raise ValueError(f"{self.where}: {column} is {self[column]!r}, expected {expected}")
        return self[column]


def read_text(path: Path) -> str:
    """The content of a text file, lines ended by ``\\n`` alone.

    Raises:
        ValueError: there is no such file, or it is not text.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}")
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text = content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} begins as UTF-16, but is not: {error}; store it as UTF-8") from error
    else:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path}, line {line}: holds a zero byte; store the list as text in UTF-8")
    return text


def read_list(path: Path) -> list[str]:
    """The lines of a list file that are not blank.

    Raises:
        ValueError: see :func:`read_text`.
    """
    return [stripped for line in read_text(path).split("\n") if (stripped := line.strip(_BLANKS))]


def read_table(path: Path, columns: Sequence[str], *, header: bool = True) -> list[Row]:
    """The rows of a table whose first line names its columns, ``columns`` among them.

    Values are separated by commas, tabs or semicolons, and stand in quotes where they hold one.

    Args:
        header: False: the file has just these columns, in this order, and no line that names them.

    Raises:
        ValueError: see :func:`read_text`; a missing column; a row that is too short or too long, or whose
            quotes are not closed on its line, by its number.
    """
    text = read_text(path)
    first = next((line for line in text.split("\n") if line.strip(_BLANKS)), "")
    separator = max(_SEPARATORS, key=lambda s: (_has(first, s, columns, header), -_SEPARATORS.index(s)))
    names, rows = None if header else list(columns), []
    for line, values in _lines(path, text, separator):
        if names is None:
            names = values
            if missing := sorted(set(columns) - set(names)):
                raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(names)}")
            continue
        while len(values) > len(names) and not values[-1]:
            values.pop()
        if len(values) != len(names):
            raise ValueError(
                f"{path}, line {line}: has {len(values)} values for the columns {', '.join(names)}; put what holds "
                f"a {separator!r} in quotes"
            )
        rows.append(Row(dict(zip(names, values, strict=True)), f"{path}, line {line}"))
    if names is None:
        raise ValueError(f"{path} is empty; it should name the columns {', '.join(columns)}")
    return rows


def write_table(file: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, object]]) -> None:
    """Write one of a set's tables; names of files may be any bytes."""
    with open(file, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def printable(name: str) -> str:
    """A name with its bytes that are no UTF-8 written as ``\\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _has(line: str, separator: str, columns: Sequence[str], header: bool) -> bool:
    values = [value.strip(_BLANKS + '"') for value in line.split(separator)]
    return set(columns) <= set(values) if header else len(values) >= len(columns)


def _lines(path: Path, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The number and the values of each line that is not blank."""
    reader = csv.reader(
        (line + "\n" for line in text.split("\n")), delimiter=separator, skipinitialspace=True, strict=True
    )
    rows = []
    try:
        for values in reader:
            if any("\n" in value for value in values):
                raise csv.Error("a value in quotes goes on in the next line; is a quote missing?")
            stripped = [value.strip(_BLANKS) for value in values]
            if any(stripped):
                rows.append((reader.line_num, stripped))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return rows
