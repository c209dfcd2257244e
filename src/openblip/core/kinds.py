"""What a file is, from its first bytes: endings are names, and names are wrong."""

from __future__ import annotations

import re
from pathlib import Path

from openblip.core.errors import UserError

__all__ = ["HEAD", "LFS", "instead_of_model", "instead_of_text", "looks_like", "read_head", "refuse_other_kinds"]

HEAD = 1024
"""bytes that tell what a file is"""

LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|script)\b", re.I | re.S
)
_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml\b")
_BINARY = (
    *((bytes((0x80, protocol)), "is a Python pickle") for protocol in range(2, 6)),
    (b"PK\x03\x04", "is a zip archive: unpack it first"),
    (b"PK\x05\x06", "is an empty zip archive"),
    (b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (b"BZh", "is compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ\x00", "is compressed by xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"PAR1", "is a parquet file"),
    (b"GGUF", "is a GGUF file"),
    (b"\x89HDF", "is an HDF5 file"),
    (b"\x89PNG", "is a PNG image"),
    (b"\xff\xd8\xff", "is a JPEG image"),
    (b"%PDF", "is a PDF document"),
    (b"SQLite format 3", "is an SQLite database"),
    (b"ARROW1", "is an Arrow file"),
    (b"\x93NUMPY", "is a numpy array"),
)


def read_head(path: Path | str) -> bytes:
    """The first bytes of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def refuse_other_kinds(path: Path | str, head: bytes, wanted: str) -> None:
    """Refuse a file whose first bytes say that it is not what is wanted; an empty one is left to its reader.

    Raises:
        UserError: says what was found.
    """
    if head and (found := looks_like(head)):
        raise UserError(f"{path} is not {wanted}: it {found}")


def looks_like(head: bytes) -> str | None:
    """What a file with these first bytes is, as the end of a sentence ("is a git-lfs pointer: ..."), if that shows.

    None for text, JSON among it, and for what is not known.
    """
    return _placeholder(head) or _known_binary(head)


def instead_of_text(head: bytes) -> str | None:
    """Why a file that should be text (JSON, a vocabulary, a list) with these first bytes is none."""
    if found := looks_like(head):
        return found
    return (
        "is binary" if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) else None
    )


def instead_of_model(head: bytes) -> str | None:
    """Why a file that should hold the tensors of a model has none, where its first bytes say that.

    None for zip archives and pickles, which torch writes, for safetensors, and for what is not known.
    """
    if found := _placeholder(head):
        return found
    if head.startswith((b"PK\x03\x04", b"\x80")) or is_safetensors(head):
        return None
    if found := _known_binary(head):
        if head.startswith(b"GGUF"):
            return f"{found}, which holds a language model for llama.cpp; give the model in transformers' format"
        return found
    begin = head.lstrip()
    if begin[:1] in (b"{", b"[") and b"\0" not in head:
        return "is JSON text without tensors"
    return "is text" if _is_text(head) else None


def is_safetensors(head: bytes) -> bool:
    """Whether it begins as a safetensors file: the length of a JSON object, and the object."""
    return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 32


def _placeholder(head: bytes) -> str | None:
    """What stands in the place of a file that was not fetched whole."""
    if not head:
        return "is empty: fetch it again"
    if head.startswith(LFS):
        return "is a git-lfs pointer: run `git lfs pull` where it was cloned"
    if _HTML.match(head):
        return "is an HTML page, such as a site's error message: fetch the file itself"
    if _XML.match(head):
        return "is an XML document, such as a server's error message: fetch the file itself"
    if not head.strip(b"\0"):
        return "begins with zeros alone, as a download that was cut off: fetch it again"
    return None


def _known_binary(head: bytes) -> str | None:
    if is_safetensors(head):
        return "is a safetensors file"
    if head[257:262] == b"ustar":
        return "is a tar archive"
    # A pickle's first byte alone could begin other files; its second is the protocol.
    return next(
        (what for mark, what in _BINARY if head.startswith(mark) and (mark != b"\x80" or head[1:2] <= b"\x05")),
        None,
    )


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(letter.isprintable() or letter.isspace() for letter in text)
