"""Images that searches have found, by ids that say nothing about what or where they are."""

from __future__ import annotations

import hashlib
import hmac
import io
import secrets
from collections import OrderedDict

from PIL import Image

__all__ = ["SIDE", "Thumbnails", "jpeg"]

SIDE = 320
"""longest side of a thumbnail in pixels"""


class Thumbnails:
    """Only what a search has given can be looked at, and of that the latest.

    Args:
        most: images that are known at a time.
    """

    def __init__(self, *, most: int = 10_000) -> None:
        self._secret = secrets.token_bytes(32)
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._most = most

    def id_of(self, number: int) -> str:
        """The id of a hit's image, known from now on; a keyed hash, so that none can be guessed."""
        name = hmac.new(self._secret, str(number).encode(), hashlib.sha256).hexdigest()[:24]
        self._numbers[name] = number
        self._numbers.move_to_end(name)
        while len(self._numbers) > self._most:
            self._numbers.popitem(last=False)
        return name

    def number_of(self, name: str) -> int | None:
        """The index's number of an image; None where no search has given the id."""
        return self._numbers.get(name)


def jpeg(image: Image.Image) -> bytes:
    """A JPEG of an image, which is made small in place: its longest side is at most `SIDE`."""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
