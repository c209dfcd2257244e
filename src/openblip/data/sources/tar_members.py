"""The files in a tar and where their bytes lie, from its headers alone (a few microseconds for each file in it)."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from openblip.data.sample import BrokenSample

__all__ = ["Member", "read_members"]

_BLOCK = 512
_READ_AHEAD = 1 << 13
_LONGEST_HEADER = 1 << 20
_LONGEST_CHAIN = 8
"""links to links that are followed"""
_OCTAL, _DECIMAL = re.compile(rb"[0-7]*"), re.compile(r"[0-9]{1,20}")
_LENGTH = re.compile(rb"0*[1-9][0-9]{0,9}")
_HARD_LINK, _SYMBOLIC_LINK = b"1", b"2"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    offset: int
    """Of its first byte."""
    size: int


def read_members(path: Path) -> Iterator[Member]:
    """Yield the files of a tar by reading headers only (ustar, GNU and pax), links to files in it last.

    Archivers write a file that has two names as a file and a link. A link that leads out of the tar is a file
    without a byte, so that its sample is counted as broken.

    Raises:
        BrokenSample: "truncated" or "unreadable" where the tar stops making sense; what came before is good.
    """
    links: dict[str, str] = {}
    wrong: BrokenSample | None = None
    try:
        yield from _regular(path, links)
    except BrokenSample as broken:
        wrong = broken
    if links:
        files: dict[str, Member] = {}
        with suppress(BrokenSample):  # reported below
            files.update((posixpath.normpath(member.name), member) for member in _regular(path, {}))
        for name in links:
            target = posixpath.normpath(name)
            for _ in range(_LONGEST_CHAIN):
                target = links.get(target, target)
            found = files.get(target)
            yield Member(name, found.offset if found else 0, found.size if found else 0)
    if wrong:
        raise wrong


def _regular(path: Path, links: dict[str, str]) -> Iterator[Member]:
    """Yield the regular files, and note in `links` where each link leads, both as normalised names."""
    total = os.path.getsize(path)
    with open(path, "rb", buffering=_READ_AHEAD) as file:
        position, long_name, long_link, long_size = 0, "", "", -1
        while position + _BLOCK <= total:
            file.seek(position)
            header = file.read(_BLOCK)
            if not header.strip(b"\0"):
                return
            if not _checksum_holds(header):
                raise BrokenSample("unreadable", path.name, f"no tar header at byte {position}")
            kind, size = header[156:157], _number(header[124:136])
            if size is None:
                raise BrokenSample("unreadable", path.name, f"{header[124:136]!r} is no size, at byte {position}")
            start = position + _BLOCK
            if kind in b"xLK" and kind:
                if size > _LONGEST_HEADER:
                    raise BrokenSample("unreadable", path.name, f"a header of {size} bytes at byte {position}")
                content = file.read(size)
                if kind == b"L":
                    long_name = content.rstrip(b"\0").decode("utf-8", "backslashreplace")
                elif kind == b"K":
                    long_link = content.rstrip(b"\0").decode("utf-8", "backslashreplace")
                else:
                    fields = _pax_fields(content)
                    long_name = fields.get("path", long_name)
                    long_link = fields.get("linkpath", long_link)
                    if (told := fields.get("size")) is not None:
                        if not _DECIMAL.fullmatch(told):
                            raise BrokenSample(
                                "unreadable", path.name, f"{told[:40]!r} is no size, at byte {position}"
                            )
                        long_size = int(told)
            elif kind in (b"0", b"\0", b"7"):
                size = long_size if long_size >= 0 else size
                if start + size > total:
                    raise BrokenSample("truncated", path.name, f"the tar is cut inside {_name(header)}")
                yield Member(long_name or _name(header), start, size)
                long_name, long_link, long_size = "", "", -1
            else:
                if kind in (_HARD_LINK, _SYMBOLIC_LINK):
                    name = posixpath.normpath(long_name or _name(header))
                    target = long_link or header[157:257].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
                    folder = posixpath.dirname(name) if kind == _SYMBOLIC_LINK else ""
                    links[name] = posixpath.normpath(posixpath.join(folder, target))
                    size = 0  # some archivers give that of the file, which does not follow
                long_name, long_link, long_size = "", "", -1  # a folder or a global header: nothing to read
            position = start + -(-size // _BLOCK) * _BLOCK
        raise BrokenSample("truncated", path.name, "the tar has no end mark: it was cut, or never finished")


def _number(field: bytes) -> int | None:
    """The number in a field of a header, None where it holds none: `int` would also take "-1" and "1_0"."""
    if field[0] == 0x80:  # base 256, for sizes of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    return int(digits or b"0", 8) if _OCTAL.fullmatch(digits) else None


def _checksum_holds(header: bytes) -> bool:
    return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" and header[263:265] == b"00" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "backslashreplace")


def _pax_fields(content: bytes) -> dict[str, str]:
    fields, place = {}, 0
    while place < len(content):
        length, _, _ = content[place:].partition(b" ")
        if not _LENGTH.fullmatch(length):
            break
        name, _, value = content[place + len(length) + 1 : place + int(length) - 1].partition(b"=")
        fields[name.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        place += int(length)
    return fields
