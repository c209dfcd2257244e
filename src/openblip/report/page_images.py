"""Images inside a page: whatever is at hand becomes a small data URI.

A drawn or small image stays as sharp as it is (PNG, or JPEG where that is much smaller); a large one is reduced
first. Encoded bytes of a small image are taken as they are, so nothing is encoded twice.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from openblip.core.errors import UserError

__all__ = ["PageImage", "page_image"]

_LIMIT = 60_000
"""bytes of an encoded image that is taken as it is"""
_URI = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]*={0,2}")


@dataclass(kw_only=True)
class PageImage:
    """An image as the page holds it."""

    uri: str
    """data:image/...;base64,..."""
    width: int
    """in pixels"""
    height: int
    alt: str = ""

    def __post_init__(self) -> None:
        # report.json may come from elsewhere, and the page must not load anything from outside.
        if not _URI.fullmatch(self.uri):
            raise UserError(f'an image of a report is a data URI of an image, not "{self.uri[:60]}"')


def page_image(
    image: Image.Image | np.ndarray | bytes | Path | str, *, alt: str = "", max_side: int = 400, quality: int = 85
) -> PageImage:
    """Return `image` as a `PageImage`.

    Args:
        image: PIL, uint8 [H, W, 3] or [H, W], an encoded file's bytes, or its path.
        alt: text for those who cannot see it.
        max_side: longer sides are reduced to it, in pixels.
        quality: of JPEG.

    Raises:
        UserError: the file or bytes are no image.
    """
    data: bytes | None = None
    if isinstance(image, Path | str):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise UserError(f"{image} cannot be read for the report: {error.strerror}") from error
    elif isinstance(image, bytes):
        data = image
    if data is not None:
        try:
            opened = Image.open(io.BytesIO(data))
            width, height = opened.size
            upright = opened.getexif().get(0x0112, 1) == 1  # the EXIF orientation
            small = len(data) <= _LIMIT and max(width, height) <= max_side
            if opened.format in ("PNG", "JPEG") and upright and small:
                return PageImage(uri=_uri(data, opened.format), width=width, height=height, alt=alt)
            decoded = ImageOps.exif_transpose(opened)
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            what = image if isinstance(image, Path | str) else "bytes given for an image"
            raise UserError(f"{what} cannot be shown in the report: {error}") from error
    elif isinstance(image, Image.Image):
        decoded = image
    else:
        array = np.asarray(image)
        assert array.dtype == np.uint8, "images are uint8"
        decoded = Image.fromarray(array)
    return _encode(decoded, alt, max_side, quality)


def _encode(image: Image.Image, alt: str, max_side: int, quality: int) -> PageImage:
    image = image.convert("RGB")
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    choices: list[tuple[bytes, str]] = []
    for name, options in (("JPEG", {"quality": quality, "optimize": True}), ("PNG", {"optimize": True})):
        if name == "PNG" and max(image.size) > 128:
            continue
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        choices.append((buffer.getvalue(), name))
    jpeg, png = choices[0], choices[-1]
    # Small drawings look better without JPEG's ringing; that is worth some bytes, not many.
    best = png if len(png[0]) <= max(4 * len(jpeg[0]), 12_000) else jpeg
    return PageImage(uri=_uri(*best), width=image.width, height=image.height, alt=alt)


def _uri(data: bytes, image_format: str) -> str:
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(data).decode()}"
