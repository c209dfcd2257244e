"""Helpers of the data tests: pictures that tell which they are, and what a source holds."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from openblip.data.images import decode_image
from openblip.data.sources import Source


def picture(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture of one colour that tells which it is: red = number, green = 255 - number, blue = 7."""
    return Image.new("RGB", size, (number % 256, 255 - number % 256, 7))


def number_of(pixels: np.ndarray) -> int:
    """Read the number back from uint8 [3, H, W]."""
    return int(pixels[0, pixels.shape[1] // 2, pixels.shape[2] // 2])


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def contents(source: Source) -> list[tuple[int, tuple[str, ...], str]]:
    """Return (number of the picture, texts, image id) of every sample."""
    found = []
    for index in range(len(source)):
        sample = source[index]
        pixels = np.asarray(decode_image(sample)).transpose(2, 0, 1)
        found.append((number_of(pixels), sample.texts, sample.image_id))
    return found
