"""Small data of which some cannot be used, and the same data without it, for the tests of measuring."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = ("a red bus on a road", "two dogs", "a cat on a red chair", "a dog beside a bus", "a long chair")
BROKEN = {1: "truncated", 3: "not-an-image"}
"""of five images, by number"""
GOOD = [number for number in range(5) if number not in BROKEN]


def image(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder: Path, *, questions: bool = False) -> tuple[Path, Path]:
    """Two tables over a folder of five images: one of all, two of which are broken, and one of the good three."""
    folder.mkdir(parents=True)
    for number in range(5):
        data = image(number)
        broken = {"truncated": data[: len(data) // 2], "not-an-image": b"<html>not found</html>"}
        (folder / f"{number}.jpg").write_bytes(broken[BROKEN[number]] if number in BROKEN else data)
    texts = {"question": "what is it?", "answer": ["bus", "bus", "dog"]} if questions else {}
    rows = [{"image": f"{n}.jpg", **(texts or {"caption": CAPTIONS[n]})} for n in range(5)]
    for name, kept in (("all", range(5)), ("good", GOOD)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(rows[n]) + "\n" for n in kept))
    return folder / "all.jsonl", folder / "good.jsonl"
