"""Tables in text files: CSV, TSV and their neighbours, by what stands in their first line.

The delimiter is the one that makes known column names of the first line. A first line without a known name is a row
like the others where it holds the path of an image (Flickr8k's token file); CC3M's list of captions and web
addresses is recognized from both.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from openblip.core.errors import UserError
from openblip.core.text import encoding_of, open_text
from openblip.data.formats import IMAGE_SUFFIXES
from openblip.data.sample import BrokenSample

__all__ = ["has_header", "read_delimited"]

_DELIMITERS = ("\t", ";", "|", ",")
_PLAIN = ("\t", "|")
"""Where quotes mean nothing, but one pair around a whole value is removed."""
_SEPARATOR = re.compile(r'^"?sep=(.)"?\s*$', re.IGNORECASE)
"""Excel's line before the names, which says what the delimiter is."""
_NUMBERED = re.compile(r"^(.*\.\w+)#\d+$")
"""Flickr8k and Flickr30k write the number of the caption behind the image's name."""


def read_delimited(path: Path, head: bytes, known: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield (label, {column: value} or `BrokenSample`) of each row.

    Args:
        head: the file's first bytes.
        known: names of columns, in lower case, that tell a header from rows.

    Raises:
        UserError: the first line cannot be read, or holds web addresses in place of columns' names.
    """
    encoding = encoding_of(head)
    # surrogateescape: a line in another encoding is one bad row, not the end of the file
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    try:
        with open_text(path, encoding, errors=errors, newline="") as file:
            yield from _rows(file, path, known)
    except UnicodeError as error:
        raise UserError(f"{path} is not {encoding.upper()} text: {error}") from error


def has_header(line: str, known: Collection[str]) -> bool:
    """Whether a line holds several known names of columns and a delimiter between them, as no JSON does."""
    delimiter = _delimiter_of(line, ",", known)
    return sum(name.strip().strip('"').lower() in known for name in line.strip().split(delimiter)) > 1


def _rows(file: TextIO, path: Path, known: Collection[str]) -> Iterator[tuple[str, Any]]:
    usual = "," if path.suffix.lower() == ".csv" else "\t"
    number_of_first, first = 1, file.readline()
    while first and (not first.strip() or _SEPARATOR.match(first)):
        usual = named[1] if (named := _SEPARATOR.match(first)) else usual
        number_of_first, first = number_of_first + 1, file.readline()
    delimiter = _delimiter_of(first, usual, known)
    plain = delimiter in _PLAIN
    padded = re.search(re.escape(delimiter) + " ", first) is not None  # image_name| comment_number| comment
    rows = _CsvRows(chain([first], file), delimiter, number_of_first, plain=plain, padded=padded)
    number, names = next(rows, (0, []))
    if isinstance(names, str):
        raise UserError(f"{path} line {number}: {names}")
    header = [name.strip() for name in names]
    if plain:
        header = [_unquote(name) for name in header]
    columns = _columns_without_header(header, known, path)
    if columns:
        header = columns
        rows = chain([(number, names)], rows)  # type: ignore[assignment]
    else:
        _check_twice(header, known, path)
    for number, values in rows:
        label = f"{path.name} line {number}"
        if isinstance(values, str):
            yield label, BrokenSample("bad-row", label, values)
        elif len(values) != len(header):
            detail = f"{len(values)} values where the header has {len(header)} columns"
            yield label, BrokenSample("bad-row", label, detail)
        elif not all(_is_utf8(value) for value in values):
            yield label, BrokenSample("bad-row", label, "not UTF-8 text")
        else:
            if padded:
                values = [value.strip() for value in values]
            if plain:
                values = [_unquote(value) for value in values]
            row = dict(zip(header, values, strict=True))
            if columns and (numbered := _NUMBERED.match(row["image"].strip())):
                row["image"] = numbered[1]
            yield label, row


def _check_twice(header: list[str], known: Collection[str], path: Path) -> None:
    """Refuse a known name that stands twice, as one column would hide the other."""
    twice = next((name for name in header if header.count(name) > 1 and name.lower() in known), None)
    if twice is not None:
        raise UserError(
            f'{path} has {header.count(twice)} columns called "{twice}"; give each a name of its own in the first '
            "line, or write each row's values on lines of their own"
        )


def _delimiter_of(line: str, usual: str, known: Collection[str]) -> str:
    """The delimiter that makes the most known names of the first line; the `usual` one where none does."""

    def split(delimiter: str) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            return []

    def worth(delimiter: str) -> tuple[int, bool]:
        names = {name.strip().strip('"').lower() for name in split(delimiter)}
        return len(names & set(known)), delimiter == usual

    best = max(_DELIMITERS, key=worth)
    if worth(best)[0]:
        return best
    if len(split(usual)) < 2:  # no name is known: at least a line of several values
        return next((other for other in ("\t", "|", ";", ",") if len(split(other)) > 1), usual)
    return usual


def _columns_without_header(cells: list[str], known: Collection[str], path: Path) -> list[str]:
    """Names for the columns of a file that has no header, judged by its first line; empty where it has one.

    Raises:
        UserError: the line holds a web address and no image.
    """
    if any(cell.lower() in known for cell in cells):
        return []
    images = [number for number, cell in enumerate(cells) if _is_image(cell)]
    if any("://" in cell and not cell.startswith("file://") for cell in cells):
        raise UserError(
            f"{path} holds web addresses and no images (and no line of column names, as CC3M's lists have none); "
            "download them first, for example with img2dataset, and give its tars"
        )
    if len(images) != 1 or len(cells) < 2:
        return []
    others = [number for number in range(len(cells)) if number != images[0]]
    names = [f"column {number + 1}" for number in range(len(cells))]
    names[images[0]] = "image"
    if len(others) == 1:
        names[others[0]] = "caption"
    return names


def _is_image(cell: str) -> bool:
    numbered = _NUMBERED.match(cell)
    return Path(numbered[1] if numbered else cell).suffix.lower() in IMAGE_SUFFIXES and "://" not in cell


class _CsvRows:
    """Rows of a CSV as (number of the first line, values, or what is wrong with it); blank lines are left out.

    A quote that is never closed costs its own line, not all the lines that it swallows: reading continues in the
    line after it.
    """

    def __init__(self, lines: Iterable[str], delimiter: str, number: int, *, plain: bool, padded: bool) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self._settings: dict[str, Any] = {
            "delimiter": delimiter,
            "quoting": csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
            "skipinitialspace": padded,  # else a quote behind the blank would be a letter
            # strict: else two stray quotes, thousands of lines apart, would make one value of all between them
            "strict": True,
        }
        self._number = number
        self._row: list[str] = []
        self._start()

    def _start(self) -> None:
        self._ended = False
        self._reader = csv.reader(self._feed(), **self._settings)

    def _feed(self) -> Iterator[str]:
        while (line := self._again.popleft() if self._again else next(self._lines, None)) is not None:
            self._row.append(line)
            yield line
        self._ended = True

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        return self

    def __next__(self) -> tuple[int, list[str] | str]:
        while True:
            self._row.clear()
            wrong = ""
            try:
                values = next(self._reader)
            except csv.Error as error:
                wrong = str(error)
            if wrong and self._ended:  # the reader requested more within a value
                wrong = "a quote is opened here and never closed"
            number = self._number
            self._number += 1 if wrong else len(self._row)
            if wrong:
                self._again.extendleft(reversed(self._row[1:]))
                self._start()
                return number, wrong
            if values:
                return number, values


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)


def _unquote(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1].replace('""', '"')
    return value
