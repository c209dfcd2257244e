"""Helpers of the data tests: images that tell which they are, and what a source holds."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

from openblip.data.images import decode_image
from openblip.data.sources import Source


def make_image(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An image of one colour that tells which it is: red = number, green = 255 - number, blue = 7."""
    return Image.new("RGB", size, (number % 256, 255 - number % 256, 7))


def number_of(pixels: np.ndarray) -> int:
    """Read the number back from uint8 [3, H, W]."""
    return int(pixels[0, pixels.shape[1] // 2, pixels.shape[2] // 2])


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def contents(source: Source) -> list[tuple[int, tuple[str, ...], str]]:
    """Return (number of the image, texts, image id) of every sample."""
    found = []
    for index in range(len(source)):
        sample = source[index]
        pixels = np.asarray(decode_image(sample)).transpose(2, 0, 1)
        found.append((number_of(pixels), sample.texts, sample.image_id))
    return found


def tiff(bands: int, bits: int, kind: int, values: bytes | None = None, side: int = 4) -> bytes:
    """A TIFF that Pillow may not read. kind: 1 unsigned, 2 signed, 3 floats, 6 complex."""
    pixels = values if values is not None else bytes(side * side * bands * bits // 8)
    first = 8 + 2 + 12 * 10 + 4
    lists = struct.pack(f"<{bands}H", *[bits] * bands), struct.pack(f"<{bands}H", *[kind] * bands)

    def stored(data: bytes, place: int) -> bytes:
        return data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", place)

    second = first + len(lists[0])
    tags = [(256, side), (257, side), (259, 1), (262, 2 if bands >= 3 else 1), (277, bands), (278, side)]
    entries = {tag: struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags}
    entries[258] = struct.pack("<HHI", 258, 3, bands) + stored(lists[0], first)
    entries[339] = struct.pack("<HHI", 339, 3, bands) + stored(lists[1], second)
    entries[273] = struct.pack("<HHII", 273, 4, 1, second + len(lists[1]))
    entries[279] = struct.pack("<HHII", 279, 4, 1, len(pixels))
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + b"\0" * 4
    return b"II*\0" + struct.pack("<I", 8) + directory + lists[0] + lists[1] + pixels
