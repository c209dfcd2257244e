"""Images and small data sets made on the spot."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from make_data import encoded, make_image

MakeTar = Callable[..., Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Ten images 0.png ... 9.png under images/."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.png").write_bytes(encoded(make_image(number)))
    return folder


@pytest.fixture
def write_tar(tmp_path: Path) -> MakeTar:
    """Write a tar as img2dataset does: write_tar("00000.tar", first=0, count=5, bad={3: b"..."})."""

    def write(name: str, first: int, count: int, bad: dict[int, bytes] | None = None, **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", **options) as tar:
            for number in range(first, first + count):
                key = f"{number:09d}"
                image = (bad or {}).get(number, encoded(make_image(number)))
                fields = {"key": key, "caption": f"json {number}", "url": f"u{number}", "status": "success"}
                for ending, content in (
                    ("png", image),
                    ("json", json.dumps(fields).encode()),
                    ("txt", f"image number {number}".encode()),
                ):
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size, info.mtime = len(content), 1234.5  # a fraction makes a pax header
                    tar.addfile(info, io.BytesIO(content))
        return path

    return write
