"""Readers of captions files as rows of plain values: JSON lines, lists and objects, CSV and its neighbours.

Each reader yields (label, row): the label says where in the file ("captions.jsonl line 7"), the row is a
dict, or a `BrokenSample` where the row cannot be read. What a JSON file holds is recognized by its first bytes, not
by its ending. Nothing is held in memory but the row at hand (objects as COCO's excepted, which are small).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from openblip.core.errors import UserError
from openblip.core.kinds import read_head, refuse_other_kinds
from openblip.core.text import encoding_of, open_text
from openblip.data.sample import BrokenSample
from openblip.data.source_config import SourceConfig
from openblip.data.sources.answers import ANSWER_COLUMNS, QUESTION_COLUMNS
from openblip.data.sources.base import URL_COLUMNS
from openblip.data.sources.cells import ID_COLUMNS, IMAGE_COLUMNS, TEXT_COLUMNS, is_too_deep
from openblip.data.sources.delimited import has_header, read_delimited
from openblip.data.sources.labels import LABEL_COLUMNS, STATEMENT_COLUMNS
from openblip.data.sources.layouts import rows_of_object

__all__ = ["DELIMITED", "RECORDS", "Row", "first_rows", "read_records"]

Row = tuple[str, dict[str, Any] | BrokenSample]

_JSON_START = re.compile(r'\{\s*"|\[\s*\{')
_LINES = (".jsonl", ".ndjson")
DELIMITED = (".csv", ".tsv", ".txt", ".token")
RECORDS = (*_LINES, ".json", *DELIMITED)
"""Endings of captions files that are text."""

_LOOK_AHEAD = 100
_CHUNK = 1 << 20
_PEEK = 64
_LARGEST_ELEMENT = 1 << 26
_USUAL_COLUMNS = {*IMAGE_COLUMNS, *TEXT_COLUMNS, *ID_COLUMNS, *URL_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS}


def read_records(path: Path, config: SourceConfig) -> Iterator[Row]:
    """Yield the rows of a captions file.

    Raises:
        UserError: no rows can be read at all (not text, not JSON, no header).
    """
    return _without_deep(_rows(path, config))


def first_rows(rows: Iterator[Row], path: Path) -> list[Row]:
    """The rows from which columns are known, with those before and among them that cannot be read.

    Of JSON as many as it takes: annotations of images that are not there may come first. In other files a line that
    cannot be read may cost a look at all that follow.
    """
    patient, found, read = path.suffix.lower() == ".json", list[Row](), 0
    for label, row in rows:
        found.append((label, row))
        read += isinstance(row, dict) or not patient
        if read == _LOOK_AHEAD:
            break
    return found


def _without_deep(rows: Iterable[Row]) -> Iterator[Row]:
    for label, row in rows:
        deep = isinstance(row, dict) and is_too_deep(row)
        yield label, BrokenSample("bad-row", label, "nested too deep") if deep else row


def _rows(path: Path, config: SourceConfig) -> Iterator[Row]:
    suffix = path.suffix.lower()
    head = read_head(path)
    refuse_other_kinds(path, head, "a captions file")
    if suffix not in RECORDS:
        raise UserError(f"{path} is no captions file that can be read: give {', '.join(RECORDS)} or .parquet")
    encoding = encoding_of(head)
    named = (*config.image_column.split(","), config.text_column, config.id_column, config.answer_column)
    known = _USUAL_COLUMNS | {"split", *(name.lower() for name in named if name)}
    if config.statements:
        known |= {*STATEMENT_COLUMNS, *LABEL_COLUMNS}
    start = head.decode(encoding, "ignore").lstrip()
    if suffix in DELIMITED and not _JSON_START.match(start):
        return read_delimited(path, head, known)
    if suffix not in DELIMITED and has_header(start.partition("\n")[0], known):
        return read_delimited(path, head, known)
    try:
        layout = _json_layout(path, encoding)
    except UnicodeError as error:
        if suffix not in _LINES:
            raise UserError(f"{path} is not {_spoken(encoding)} text") from error
        layout = "lines"  # in which one line may be wrong
    if layout == "lines":
        return _read_lines(path, encoding)
    return _read_json(path, encoding, layout, config)


def _spoken(encoding: str) -> str:
    return "UTF-8" if encoding == "utf-8-sig" else encoding.upper()


def _json_layout(path: Path, encoding: str) -> str:
    """Whether the JSON in a file is "lines", a "list" or an "object"; by its ending only where both could be."""
    by_ending = "object" if path.suffix.lower() == ".json" else "lines"
    with open_text(path, encoding) as file:
        start = _first_characters(file)
        if start.startswith("["):  # which may be gigabytes in one line
            return "list" if by_ending == "object" or start[1:] in ("{", "]") else "lines"
        if not start.startswith("{"):
            return by_ending
        file.seek(0)
        lines = (line for line in file if line.strip())
        first = next(lines, "").strip()
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            value = None
        second = next(lines, "").strip()
        if value is not None:
            if second:
                return "lines" if second.startswith("{") else by_ending
            return "object" if isinstance(value.get("annotations"), list) else by_ending
        # an object over several lines continues with a name or ends; the next of JSON's lines starts an object
        return "object" if second.startswith(('"', "}")) else by_ending


def _first_characters(file: TextIO) -> str:
    """The first two characters that are not blank, or as many as there are."""
    found = ""
    while len(found) < 2 and (piece := file.read(_PEEK)):
        found += "".join(piece.split())
    return found[:2]


def _read_lines(path: Path, encoding: str) -> Iterator[Row]:
    if encoding == "utf-8-sig":
        with open(path, "rb") as file:
            yield from _lines(path, file)
        return
    try:
        with open_text(path, encoding) as text:
            yield from _lines(path, (line.removeprefix("\ufeff").encode() for line in text))
    except UnicodeError as error:
        raise UserError(f"{path} is not {_spoken(encoding)} text") from error


def _lines(path: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label = f"{path.name} line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            yield label, BrokenSample("bad-row", label, "not UTF-8 text")
        except json.JSONDecodeError as error:
            yield label, BrokenSample("bad-row", label, f"not JSON: {error.msg} at column {error.colno}")
        except RecursionError:
            yield label, BrokenSample("bad-row", label, "nested too deep")
        except ValueError as error:  # an integer of thousands of digits
            yield label, BrokenSample("bad-row", label, f"not JSON: {error}")
        else:
            if isinstance(row, dict):
                yield label, row
            else:
                yield label, BrokenSample("bad-row", label, f"not a JSON object: {line[:40]!r}")


def _read_json(path: Path, encoding: str, layout: str, config: SourceConfig) -> Iterator[Row]:
    try:
        with open_text(path, encoding) as file:
            if layout == "list":
                while file.read(1) != "[":
                    pass
                yield from _label(path, _iterate(file, path))
                return
            text = file.read()
        if not text.lstrip().startswith("{"):
            raise UserError(f"{path} is neither a JSON list nor a JSON object")
        start = len(text) - len(text.lstrip())
        content, end = json.JSONDecoder().raw_decode(text, start)
        rest = text[end:].strip()
        if rest.startswith("{"):  # objects one after the other, each over several lines
            rows: Iterable[Any] = (value for value in _values(text[start:], path))
        elif rest:
            raise UserError(f"{path} is not JSON: something follows its end, {rest[:40]!r}")
        else:
            rows = rows_of_object(content, path, config)
    except UnicodeError as error:
        raise UserError(f"{path} is not {_spoken(encoding)} text") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg} at line {error.lineno}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deep to be read") from error
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"{path} is not JSON: {error}") from error
    yield from _label(path, rows)


def _label(path: Path, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        label = f"{path.name}[{number}]"
        if isinstance(row, dict | BrokenSample):
            yield label, row
        elif isinstance(row, list) and is_too_deep(row):  # which `str` does not take either
            yield label, BrokenSample("bad-row", label, "nested too deep")
        else:
            yield label, BrokenSample("bad-row", label, f"not a JSON object: {str(row)[:40]!r}")


def _values(text: str, path: Path) -> Iterator[Any]:
    """Yield JSON values that stand one after the other."""
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except ValueError as error:
            raise UserError(f"{path} is not JSON near {text[position : position + 60]!r}: {error}") from error
        yield value
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1


def _iterate(file: TextIO, path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON list whose "[" has been read, a piece of the file at a time."""
    decoder = json.JSONDecoder()
    buffer, position, wanted, done = "", 0, _CHUNK, False
    while True:
        while position < len(buffer) and buffer[position] in " \t\r\n,":
            position += 1
        if position < len(buffer):
            if buffer[position] == "]":
                rest = (buffer[position + 1 :] + file.read()).strip()
                if rest:
                    raise UserError(f"{path} is not JSON: something follows the end of its list, {rest[:40]!r}")
                return
            try:
                element, position = decoder.raw_decode(buffer, position)
                yield element
                wanted = _CHUNK
                continue
            except json.JSONDecodeError as error:
                if done or len(buffer) - position > _LARGEST_ELEMENT:
                    raise UserError(
                        f"{path} is not JSON: {error.msg} near {buffer[position : position + 60]!r}"
                    ) from error
        elif done:
            raise UserError(f"{path} is cut: its list is never closed")
        piece = file.read(wanted)
        done = not piece
        wanted *= 2  # an element longer than the buffer is parsed again: keep that rare
        buffer, position = buffer[position:] + piece, 0
