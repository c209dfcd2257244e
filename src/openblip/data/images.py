"""Decoding: whatever file an image came in, an upright RGB image or a `BrokenSample` that says why not.

The size is checked before any pixel is decoded, only raster formats are opened (an EPS file would start
another program), and large JPEGs are decoded at a half, a quarter or an eighth where the transform needs no
more, which is most of the cost of large photographs.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from openblip.core.errors import first_line
from openblip.core.kinds import HEAD
from openblip.core.text import counted
from openblip.data.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ending_of, formats, instead_of_image
from openblip.data.sample import BrokenSample, ImageLike, Sample
from openblip.data.videos import read_frames

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "decode_image", "decode_images"]

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused before decoding (256 MiB as RGB; Pillow warns from here on)."""

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", *_TIFF_MAGIC)
_BAND = 1 << 18
"""pixels whose values are scaled together"""
_ORIENTATION = 0x0112
_CUT_WORDS = ("truncat", "broken", "incomplete")


def decode_image(
    source: Sample | ImageLike, *, key: str = "", min_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return the image as an upright RGB image; the first frame of an animation, transparency on white.

    Args:
        key: names the image in errors; a `Sample` (of one image) brings its own.
        min_side: a large JPEG may be decoded smaller, as long as its short side keeps this many pixels.
        max_pixels: the largest width x height that is decoded.

    Raises:
        BrokenSample: "missing", "empty", "truncated", "not-an-image", "too-large" or "unreadable".
    """
    if isinstance(source, Sample):
        return decode_image(source.image, key=source.key, min_side=min_side, max_pixels=max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, key)
    if isinstance(source, Image.Image):
        if 0 in source.size:
            raise BrokenSample("empty", key, "the image has no pixels")
        try:
            return _to_rgb(_upright(source))
        except Exception as error:  # one that Pillow has opened, and not read yet
            raise BrokenSample("unreadable", key, first_line(error)) from error
    data = _read(source, key) if isinstance(source, Path) else source
    if not data:
        raise BrokenSample("empty", key, "the file has no bytes")
    with _pillow_limit(max_pixels):
        image = _open(data, key)
        width, height = image.size
        if width * height > max_pixels:
            raise BrokenSample("too-large", key, f"{width} x {height} pixels, more than {max_pixels:,}")
        try:
            if min_side is not None and image.format == "JPEG":
                _draft(image, min_side)
            image.load()
            return _to_rgb(_upright(image))
        except MemoryError as error:
            raise BrokenSample("too-large", key, f"{width} x {height} pixels do not fit in memory") from error
        except Exception as error:  # Pillow's plugins raise what they like
            raise _explain(error, data, key) from error


_LIMIT_LOCK = threading.Lock()
_limits: list[int | None] = []
"""Pillow's own limit, once for each thread that has lifted it"""


@contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Lift the limit that Pillow keeps for the whole process, where more pixels are wanted than it warns of."""
    if max_pixels <= MAX_PIXELS:
        yield
        return
    with _LIMIT_LOCK:
        _limits.append(_limits[0] if _limits else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _LIMIT_LOCK:
            before = _limits.pop()
            if not _limits:
                Image.MAX_IMAGE_PIXELS = before


def decode_images(
    sample: Sample, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> list[Image.Image]:
    """Return all images of a sample, as `decode_image` does, or the frames of its video.

    Raises:
        BrokenSample: as `decode_image`; of several images the message names the number of the broken one.
    """
    if sample.frames:
        source = sample.image
        if isinstance(source, Path) and ending_of(source.name) in VIDEO_SUFFIXES:
            return read_frames(source, sample.frames, key=sample.key, min_side=min_side, max_pixels=max_pixels)
        still = decode_image(source, key=sample.key, min_side=min_side, max_pixels=max_pixels)
        return [still] * sample.frames
    images = []
    for number, image in enumerate(sample.images, 1):
        try:
            images.append(decode_image(image, key=sample.key, min_side=min_side, max_pixels=max_pixels))
        except BrokenSample as broken:
            if len(sample.images) > 1:
                broken.detail = f"image {number} of {len(sample.images)}: {broken.detail}"
            raise
    return images


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise BrokenSample("missing", key, f"there is no file {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise BrokenSample("unreadable", key, f"{path}: {error}") from error


def _open(data: bytes, key: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=formats())
    except (Image.DecompressionBombError, MemoryError) as error:
        raise BrokenSample("too-large", key, str(error) or "it does not fit in memory") from error
    except UnidentifiedImageError as error:
        if data.startswith(_TIFF_MAGIC) and (what := _unread_tiff(data)):
            raise BrokenSample("unreadable", key, what) from error
        if data.startswith(_MAGIC):
            raise BrokenSample("truncated", key, "the file ends before the image's header does") from error
        raise BrokenSample("not-an-image", key, f"it {instead_of_image(data[:HEAD])}") from error
    except Exception as error:  # Pillow's plugins raise what they like
        raise _explain(error, data, key) from error


_TIFF_VALUES = {
    1: "unsigned integers",
    2: "signed integers",
    3: "floats",
    5: "complex integers",
    6: "complex floats",
}
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_BANDS, _TIFF_VALUE = 256, 257, 258, 277, 339


def _unread_tiff(data: bytes) -> str:
    """What a TIFF with a whole header holds, as a sentence that says why it is not read; "" where it is cut."""
    big = b"+" in data[2:4]  # BigTIFF has wider numbers
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    wide, entry = (8, 20) if big else (2, 12)
    try:
        file = io.BytesIO(data)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if big else 8))
        count = int.from_bytes(data[directory.next : directory.next + wide], order)
        if directory.next + wide + count * entry > len(data):
            return ""
        file.seek(directory.next)
        directory.load(file)
        if _TIFF_WIDTH not in directory or _TIFF_HEIGHT not in directory:
            return ""
        bands = int(directory.get(_TIFF_BANDS, 1))
        bits = {int(number) for number in directory.get(_TIFF_BITS, (1,))}
        kinds = {int(number) for number in directory.get(_TIFF_VALUE, (1,))}
    except Exception:  # noqa: BLE001  the header is not whole
        return ""
    values = " and ".join(_TIFF_VALUES.get(kind, "values of an unknown kind") for kind in sorted(kinds))
    size = " and ".join(map(str, sorted(bits)))
    return (
        f"it is a TIFF of {counted(bands, 'band')} of {size}-bit {values}, which is not read; save it "
        "as an image of 8 or 16 bits with 1, 3 or 4 bands, or as 32-bit floats with 1"
    )


def _explain(error: Exception, data: bytes, key: str) -> BrokenSample:
    """Tell a file that ends early from one that is damaged."""
    text = first_line(error)
    cut = isinstance(error, EOFError) or any(word in text.lower() for word in _CUT_WORDS)
    if data.startswith(b"\xff\xd8"):
        cut = cut or not data.rstrip(b"\0").endswith(b"\xff\xd9")
    elif data.startswith(b"RIFF"):
        cut = cut or len(data) < 8 + int.from_bytes(data[4:8], "little")
    return BrokenSample("truncated" if cut else "unreadable", key, text)


def _draft(image: Image.Image, min_side: int) -> None:
    """Let the JPEG decoder scale by 1/2, 1/4 or 1/8 where the short side stays at least `min_side`."""
    short = min(image.size)
    scale = next((scale for scale in (8, 4, 2) if short // scale >= min_side), 1)
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image  # exif_transpose would copy it
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  damaged EXIF says nothing about the pixels, which are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_uint8(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Scale grey values of 16 or 32 bits, or floats, [H, W] to 0..255."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # of either order of bytes
        return (values >> 8).astype(np.uint8)
    # Band by band, since numbers of 64 bits take several times the memory of the image.
    rows = max(1, _BAND // max(1, values.shape[1]))
    bands = [slice(first, first + rows) for first in range(0, len(values), rows)]
    low = min(float(_numbers(values[band]).min()) for band in bands)
    high = max(float(_numbers(values[band]).max()) for band in bands)
    start, scale = low, 255.0 / max(high - low, 1e-12)
    for full in (1.0, 255.0, 65535.0):  # the usual ranges keep their meaning; others are stretched
        if low >= 0 and high <= full and (full > 1.0 or values.dtype.kind == "f"):
            start, scale = 0.0, 255.0 / full
            break
    scaled = np.empty(values.shape, np.uint8)
    for band in bands:
        scaled[band] = np.round((_numbers(values[band]) - start) * scale)
    return scaled


def _numbers(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64))


def _from_array(array: np.ndarray, key: str) -> Image.Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_image:
        shape = f"{array.dtype} {list(array.shape)}"
        raise BrokenSample("not-an-image", key, f"an array of {shape}, not of uint8 [H, W, 3]")
    if not array.size:
        raise BrokenSample("empty", key, "the array has no pixels")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))
