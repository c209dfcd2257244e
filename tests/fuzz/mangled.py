"""Malformed files, drawn from a seed: whole ones cut, overwritten, with parts lost and doubled, and other contents.

OPENBLIP_FUZZ=20 pytest tests/fuzz      # twenty times as many files, other ones
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

TIMES = int(os.environ.get("OPENBLIP_FUZZ", "1"))
"""how many times the usual number of files"""
SECONDS = 10
"""that a file may take"""


class Hung(BaseException):
    """A file took too long; no `except Exception` of ours may swallow it."""


@contextmanager
def time_limit(what: object, seconds: float = SECONDS) -> Iterator[None]:
    """Raise `Hung` after so many seconds; an alarm that was set (pytest's) continues afterwards."""

    def ring(signum: int, frame: object) -> None:
        raise Hung(f"{what} took more than {seconds} seconds")

    handler = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, handler)


def mangled(data: bytes, count: int, *, seed: str, head: int | None = None) -> list[bytes]:
    """`count` malformed copies of a file (times `TIMES`), always the same ones.

    Args:
        head: how far from the beginning changes reach, besides cuts; None is the whole file.
    """
    draw = random.Random(f"{seed} {len(data)}")
    reach = min(head or len(data), len(data))
    found = []
    for number in range(count * TIMES):
        place, length = draw.randrange(reach), draw.randrange(1, 40)
        if number % 8 == 0:
            found.append(data[: draw.randrange(len(data))])
        elif number % 8 == 1:
            found.append(data[:place])
        elif number % 8 == 2:  # a single bit
            found.append(data[:place] + bytes((data[place] ^ 1 << draw.randrange(8),)) + data[place + 1 :])
        elif number % 8 == 3:
            found.append(data[:place] + draw.randbytes(length) + data[place + length :])
        elif number % 8 == 4:
            found.append(data[:place] + data[place + length :])
        elif number % 8 == 5:
            found.append(data[: place + length] + data[place:])
        elif number % 8 == 6:
            fill = draw.choice((b"\0", b"\xff", b'"', b"{", b"\n", b"9", b"-"))
            found.append(data[:place] + fill * length + data[place + length :])
        else:  # two bytes far apart
            changed = bytearray(data)
            for _ in range(2):
                changed[draw.randrange(reach)] = draw.randrange(256)
            found.append(bytes(changed))
    return found


def _packed(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a.txt", "text")
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    else:
        Image.new("RGB", (3, 2)).save(buffer, kind)
    return buffer.getvalue()


OTHERS: dict[str, bytes] = {
    "nothing": b"",
    "a byte": b"\x80",
    "zeros": b"\0" * 700,
    "bytes": random.Random(0).randbytes(600),
    "text": b"just a line of text\n",
    "latin-1": "caf\xe9\n".encode("latin-1"),
    "utf-16": "{}".encode("utf-16"),
    "json list": b"[1, null, {}, [[]], -1e999]",
    "json object": json.dumps({"a": {"b": [None, 1, "\ud800"]}, "model": None, "format": 3}).encode(),
    "json null": b"null",
    "json number": b"17",
    "json text": b'"text"',
    "deep json": b"[" * 5000,
    "deeper json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "long number": b'{"a": ' + b"9" * 5000 + b"}",
    "nan": b'{"a": NaN, "b": Infinity}',
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "png": _packed("PNG"),
    "jpeg": _packed("JPEG"),
    "gif": _packed("GIF"),
    "zip": _packed("zip"),
    "tar": _packed("tar"),
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
    "pickle": b"\x80\x04N.",
    "old pickle": b"cos\nsystem\n(S'true'\ntR.",
    "parquet": b"PAR1" + b"\0" * 40 + b"\x28\0\0\0PAR1",
    "safetensors": (2).to_bytes(8, "little") + b"{}",
    "long safetensors": (1 << 40).to_bytes(8, "little") + b"{}",
}
"""Other contents under a file's name."""
