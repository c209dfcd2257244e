"""Images that searches have found, by ids that say nothing about where they lie."""

from __future__ import annotations

import hashlib
import hmac
import io
import secrets
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from openblip.data.images import decode_image
from openblip.data.sample import BrokenSample

__all__ = ["Thumbnails"]

_SIDE = 320


class Thumbnails:
    """Only what a search has given can be looked at, and of that the latest.

    Args:
        most: images that are known at a time.
        max_pixels: largest image that is decoded.
    """

    def __init__(self, *, most: int = 10_000, max_pixels: int = 40_000_000) -> None:
        self._secret = secrets.token_bytes(32)
        self._places: OrderedDict[str, Path] = OrderedDict()
        self._most, self._max_pixels = most, max_pixels

    def id_of(self, place: Path | str) -> str:
        """The id of an image, which can be drawn from now on; a keyed hash, so that no path can be guessed."""
        found = hmac.new(self._secret, str(place).encode("utf-8", "surrogateescape"), hashlib.sha256)
        name = found.hexdigest()[:24]
        self._places[name] = Path(place)
        self._places.move_to_end(name)
        while len(self._places) > self._most:
            self._places.popitem(last=False)
        return name

    def draw(self, name: str) -> bytes | None:
        """A small JPEG; None where no search has given the id, or the image is gone."""
        place = self._places.get(name)
        if place is None:
            return None
        try:
            image = decode_image(place, min_side=_SIDE, max_pixels=self._max_pixels)
        except BrokenSample:
            return None
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()
