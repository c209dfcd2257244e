"""Readers of captions files as rows of plain values: JSONL, CSV, TSV, and the JSON layouts of BLIP and COCO.

Each reader yields (label, row): the label says where in the file ("captions.jsonl line 7"), the row is a
dict, or a `BrokenSample` where the row cannot be read. Nothing is held in memory but the row at hand (COCO's
own layouts excepted, which are small).
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample

__all__ = ["Row", "read_records"]

Row = tuple[str, dict[str, Any] | BrokenSample]

_CHUNK = 1 << 20
_LARGEST_ELEMENT = 1 << 26


def read_records(path: Path) -> Iterator[Row]:
    """Yield the rows of a captions file, by its ending.

    Raises:
        UserError: no rows can be read at all (not text, not JSON, no header).
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, "," if suffix == ".csv" else "\t")
    if suffix == ".json":
        return _read_json(path)
    raise UserError(f"{path} is no captions file that can be read: give .jsonl, .csv, .tsv, .parquet or .json")


def _read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
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
            else:
                if isinstance(row, dict):
                    yield label, row
                else:
                    yield label, BrokenSample("bad-row", label, f"not a JSON object: {line[:40]!r}")


def _read_csv(path: Path, delimiter: str) -> Iterator[Row]:
    """Read with a header line. Quotes mean nothing in a TSV, but one pair around a whole value is removed."""
    plain = delimiter == "\t"
    # surrogateescape: a line in another encoding is one bad row, not the end of the file
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = _CsvRows(file, delimiter, csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
        _, header = next(rows, (0, []))
        if isinstance(header, str):
            raise UserError(f"{path} line 1: {header}")
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
                if plain:
                    values = [_unquote(value) for value in values]
                yield label, dict(zip(header, values, strict=True))


class _CsvRows:
    """Rows of a CSV as (number of the first line, values, or what is wrong with it); blank lines are left out.

    A quote that is never closed costs its own line, not all the lines that it swallows: reading goes on in the
    line after it.
    """

    def __init__(self, lines: Iterable[str], delimiter: str, quoting: int) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self._settings = (delimiter, quoting)
        self._number = 1
        self._row: list[str] = []
        self._start()

    def _start(self) -> None:
        delimiter, quoting = self._settings
        self._ended = False
        # strict: else two stray quotes, thousands of lines apart, would make one value of all between them
        self._reader = csv.reader(self._feed(), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]

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
            if wrong and self._ended:  # the reader asked for more within a value
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


def _read_json(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        try:
            first = next((letter for letter in iter(lambda: file.read(1), "") if not letter.isspace()), "")
            if first == "[":
                yield from _label(path, _iterate_array(file, path))
                return
            if first != "{":
                raise UserError(f"{path} is neither a JSON list nor a JSON object")
            content = json.loads(first + file.read())
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is not JSON: {error.msg} at line {error.lineno}") from error
    yield from _label(path, _unfold(content, path))


def _label(path: Path, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        label = f"{path.name}[{number}]"
        if isinstance(row, dict):
            yield label, row
        else:
            yield label, BrokenSample("bad-row", label, f"not a JSON object: {str(row)[:40]!r}")


def _iterate_array(file: TextIO, path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON list whose "[" has been read, a piece of the file at a time."""
    decoder = json.JSONDecoder()
    buffer, position, wanted, done = "", 0, _CHUNK, False
    while True:
        while position < len(buffer) and buffer[position] in " \t\r\n,":
            position += 1
        if position < len(buffer):
            if buffer[position] == "]":
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


def _unfold(content: dict[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """Rows of COCO's caption annotations, of a Karpathy split, or of {"annotations": [{image, caption}]}."""
    images, annotations = content.get("images"), content.get("annotations")
    if isinstance(images, list) and isinstance(annotations, list):
        names = {image["id"]: image.get("file_name") for image in images if "id" in image}
        for row in annotations:
            yield {"image": names.get(row.get("image_id")), **row}
    elif isinstance(images, list):
        for image in images:
            folder, name = image.get("filepath", ""), image.get("filename")
            yield {
                **image,
                "image": f"{folder}/{name}" if folder and name else name,
                "caption": image.get("sentences"),
                "image_id": image.get("cocoid", image.get("imgid")),
            }
    elif isinstance(annotations, list):
        yield from annotations
    else:
        raise UserError(
            f"{path} is an object of {', '.join(map(repr, list(content)[:8]))}; a captions file is a list of "
            '{"image", "caption"}, or has "images" with "sentences" (Karpathy) or "annotations" (COCO)'
        )
