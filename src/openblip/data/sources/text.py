"""What a file of data is by its first bytes, and its text: UTF-8 or UTF-16, marked or not; LF ends lines."""

from __future__ import annotations

import codecs
from pathlib import Path

from openblip.core.errors import UserError

__all__ = ["decode_text", "encoding_of", "first_bytes", "found_kind", "lines_of", "refuse_other_kinds"]

_HEAD = 1024
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_KINDS = (
    (b"\x1f\x8b", "gzip", "a gzip-compressed file; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd", "a zstd-compressed file; unpack it first"),
    (b"BZh", "bzip2", "a bzip2-compressed file; unpack it first"),
    (b"\xfd7zXZ", "xz", "an xz-compressed file; unpack it first"),
    (b"PK\x03\x04", "zip", "a zip archive; unpack it first"),
    (b"PAR1", "parquet", "a parquet file"),
    (b"version https://git-lfs", "lfs", 'a git-lfs pointer and not the file itself; run "git lfs pull"'),
)


def first_bytes(path: Path) -> bytes:
    """The beginning of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def found_kind(head: bytes) -> tuple[str, str]:
    """What the first bytes say that a file is, as a word and in words; ("", "") where they say nothing."""
    for start, kind, words in _KINDS:
        if head.startswith(start):
            return kind, words
    if head[257:262] == b"ustar":
        return "tar", "a tar"
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "html", "a web page (HTML) and not the file itself; download it again"
    return "", ""


def refuse_other_kinds(path: Path, head: bytes, wanted: str) -> None:
    """Refuse a file whose first bytes say that it is something else.

    Raises:
        UserError: names what was found.
    """
    _, words = found_kind(head)
    if words:
        raise UserError(f"{path} is not {wanted}: it is {words}")


def encoding_of(head: bytes) -> str:
    """The encoding of a text whose first bytes are `head`."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if len(head) >= 4 and head[0] and not head[1] and head[2] and not head[3]:
        return "utf-16-le"  # without a mark, but for ASCII letters every second byte is 0
    if len(head) >= 4 and not head[0] and head[1] and not head[2] and head[3]:
        return "utf-16-be"
    return "utf-8-sig"


def decode_text(data: bytes) -> str:
    """The text of a small file.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16 with a mark.
    """
    return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")


def lines_of(data: bytes) -> tuple[str, ...]:
    """The lines of a small file that hold something, blanks around them removed; only LF ends a line.

    Raises:
        UnicodeDecodeError: as `decode_text`.
    """
    return tuple(line for part in decode_text(data).split("\n") if (line := part.strip()))
