"""Text is read here and nowhere else: the encoding, where a line ends, and what is reported of text that is none.

A byte-order mark is dropped. A line ends at "\\n" alone, and a "\\r" before it is dropped. `str.splitlines` also
cuts at U+2028, form feeds and other characters, which stand inside captions, answers and entries of vocabularies.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from openblip.core.errors import UserError, first_line
from openblip.core.kinds import HEAD, LFS, instead_of_text

__all__ = [
    "counted",
    "decode",
    "encoding_of",
    "escaped",
    "json_bytes",
    "lines_of",
    "open_text",
    "read_json",
    "read_lines",
    "read_list",
    "read_text",
    "refuse_broken",
    "rounded",
    "text_bytes",
    "without_halves",
]

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""UTF-32's little-endian mark begins with UTF-16's"""


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def encoding_of(head: bytes) -> str:
    """The encoding of a table or of JSON that begins with the bytes `head`.

    UTF-16 is recognised without a mark too: the first characters are ASCII's there, so every second byte is 0.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if len(head) >= 4 and head[0] and not head[1] and head[2] and not head[3]:
        return "utf-16-le"
    if len(head) >= 4 and not head[0] and head[1] and not head[2] and head[3]:
        return "utf-16-be"
    return "utf-8-sig"


def open_text(path: Path | str, encoding: str, *, errors: str = "strict", newline: str = "\n") -> TextIO:
    """A text to be read piece by piece, for files that may be larger than memory.

    Args:
        encoding: as `encoding_of` its first bytes.
        newline: "" leaves the ends of lines to the reader, as the csv module asks.
    """
    return open(path, encoding=encoding, errors=errors, newline=newline)


def decode(data: bytes, name: Path | str, *, paths: bool = False) -> str:
    """UTF-8 text with or without a byte-order mark, or UTF-16 and UTF-32 with one.

    Args:
        name: of the file, for messages.
        paths: bytes that are not UTF-8 are kept as the operating system keeps them in the names of files.

    Raises:
        UserError: it is not such text, says at which byte; or it is a git-lfs pointer.
    """
    if data.startswith(LFS):  # else its first line would be a caption or an answer
        raise UserError(f"{name} is no text: it {instead_of_text(data[:HEAD])}")
    begin = 0
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    if data.startswith(codecs.BOM_UTF8):
        begin = len(codecs.BOM_UTF8)
    try:
        return data[begin:].decode(encoding, "surrogateescape" if paths and encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        found = instead_of_text(data[:HEAD])
        if found:
            raise UserError(f"{name} is no text: it {found}") from error
        place = begin + error.start
        raise UserError(
            f"{name} is not {encoding.upper()} text: byte {place} (0x{data[place]:02x}) cannot be read; "
            "save it as UTF-8"
        ) from error


def lines_of(text: str) -> list[str]:
    """The lines of `text`, which end at "\\n" or "\\r\\n" and at no other character."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_text(path: Path | str, *, paths: bool = False) -> str:
    """The text of a file, as `decode`.

    Raises:
        UserError: it is not text.
        OSError: it cannot be read.
    """
    return decode(Path(path).read_bytes(), path, paths=paths)


def read_lines(path: Path | str, *, paths: bool = False) -> list[str]:
    """The lines of a text file, as `lines_of`; raises as `read_text`."""
    return lines_of(read_text(path, paths=paths))


def read_list(path: Path | str) -> list[str]:
    """The entries of a list, one on each line or a JSON list (as BLIP's answer_list.json), stripped, none empty.

    Raises:
        UserError: it is no such list; says what it is instead.
        OSError: it cannot be read.
    """
    text = read_text(path)
    if found := instead_of_text(text[:HEAD].encode()):
        raise UserError(f"{path} is no list: it {found}")
    entries: list[Any] = lines_of(text)
    if text.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # lines that begin so
            value = entries
        if not isinstance(value, list) or not all(isinstance(entry, str | int | float) for entry in value):
            raise UserError(f"{path} holds JSON that is no list of texts; write one text on each line")
        entries = value
    return [entry for entry in (str(entry).strip() for entry in entries) if entry]


def read_json(path: Path | str, *, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value in a JSON file.

    Args:
        object_hook: what becomes of each object as soon as it is read, as of `json.loads`.

    Raises:
        UserError: it is not JSON; says what it is instead, or where it is wrong.
        OSError: it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        return json.loads(decode(data, path), object_hook=object_hook)
    except json.JSONDecodeError as error:
        found = instead_of_text(data[:HEAD])
        message = f"it {found}" if found else f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise UserError(f"{path} cannot be read as JSON: {message}") from error
    except RecursionError as error:
        raise UserError(f"{path} is JSON that is nested too deep to be read") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as JSON: {first_line(error)}") from error  # numbers too long


def text_bytes(text: str) -> bytes:
    """UTF-8; the names of files that are not UTF-8 come out as the bytes that they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # halves of characters, as JSON may hold them
        return text.encode("utf-8", "backslashreplace")


def without_halves(text: str) -> str:
    """Text with "?" for each half of a character, as JSON and names of files may hold: no encoder takes one."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def escaped(text: str) -> str:
    """Text that any encoder takes: names of files that are not UTF-8 come out as "caf\\udce9.jpg"."""
    return text.encode("utf-8", "backslashreplace").decode()


def refuse_broken(texts: Iterable[str]) -> None:
    """Refuse texts that hold bytes which are not UTF-8, or halves of characters, as JSON may hold them.

    Raises:
        UserError: names the first.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f'the text "{escaped(text)}" is not UTF-8 at character {error.start + 1}; write it anew'
            ) from error


def rounded(value: Any) -> Any:
    """Numbers as they are shown: floats to six decimal places, also in lists, tuples, dicts and dataclasses."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [rounded(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # a named tuple, or not
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{own.name: rounded(getattr(value, own.name)) for own in fields(value)})
    return value


def json_bytes(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> bytes:
    """A JSON value in UTF-8; where it holds names of files that are not UTF-8, they are escaped and read back.

    Args:
        default: what to write of a value that JSON has no form for, as of `json.dumps`.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, default=default).encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, default=default).encode()
