"""Images that are cut, damaged or none: each gives an image or a broken sample that says why, soon."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mangled import OTHERS, SECONDS, mangled, time_limit
from PIL import Image, features

from openblip.data.image_inputs import decoded, find_image_inputs
from openblip.data.images import decode_image
from openblip.data.sample import BrokenSample, Sample
from openblip.data.sources import open_source
from openblip.data.transforms import evaluation_transform

CAUSES = {"empty", "truncated", "not-an-image", "too-large", "unreadable"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": (
        "JPEG",
        {"quality": 90, "exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
    ),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "gif": ("GIF", {"save_all": True}),
    "bmp": ("BMP", {}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
    **({"avif": ("AVIF", {})} if features.check("avif") else {}),
    **({"jp2": ("JPEG2000", {})} if features.check("jpg_2000") else {}),
}


def whole(kind: str) -> bytes:
    name, options = KINDS[kind]
    images = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 24, 3), dtype=np.uint8)) for i in (0, 1)
    ]
    buffer = io.BytesIO()
    more = {"append_images": images[1:]} if options.get("save_all") else {}
    images[0].save(buffer, name, **options, **more)
    return buffer.getvalue()


def read(sample: Sample, min_side: int | None) -> Image.Image | BrokenSample:
    try:
        return decode_image(sample, min_side=min_side)
    except BrokenSample as broken:
        return broken


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(KINDS))
def test_images(kind: str, tmp_path: Path) -> None:
    contents = [whole(kind), *mangled(whole(kind), 240, seed=kind), *OTHERS.values()]
    for number, content in enumerate(contents):
        (tmp_path / f"{number:05d}.{kind}").write_bytes(content)
    source = open_source(str(tmp_path))
    assert len(source) == len(contents)
    good, causes = 0, dict[str, int]()
    for index in range(len(source)):
        sample = source[index]
        with time_limit(sample.key):
            found = read(sample, min_side=8 if index % 2 else None)
        if isinstance(found, Image.Image):
            assert found.mode == "RGB"
            good += 1
            continue
        causes[found.cause] = causes.get(found.cause, 0) + 1
        assert found.key == sample.key
        assert found.detail
        assert "\n" not in found.detail
    assert causes.keys() <= CAUSES
    assert good
    assert causes["empty"] >= 1
    assert causes["not-an-image"] >= 10
    # The way of `caption`: threads that decode ahead of the model.
    began = time.monotonic()
    batches = list(decoded(find_image_inputs([tmp_path]), evaluation_transform(8), batch_size=32, threads=1))
    assert time.monotonic() - began < SECONDS * len(contents)
    assert sum(len(batch) for batch in batches) == good
    assert sum(len(batch.broken) for batch in batches) == sum(causes.values())
