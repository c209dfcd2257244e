"""What a service takes on: the bounds that keep one client from taking it from the others."""

from __future__ import annotations

from dataclasses import dataclass, fields

from openblip.core.errors import UserError

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one request, and of all together.

    Raises:
        UserError: one is not above 0.
    """

    body_bytes: int = 16 * 2**20
    """of a request's body; more is refused while it comes (413)"""
    pixels: int = 40_000_000
    """width x height of an image, read from its header before it is decoded (413)"""
    texts: int = 256
    """texts, questions or answers to choose from, of each kind, in one request (422)"""
    characters: int = 2000
    """of one text; how many tokens it may have is the model's to say (422)"""
    tokens: int = 128
    """longest caption or answer that may be requested (422)"""
    sequences: int = 16
    """beams, and captions or answers of one image or question (422)"""
    queue: int = 128
    """requests in hand, reading and waiting included; one more gets 429 with Retry-After"""
    seconds: float = 60.0
    """from a request's arrival to its answer; later it gets 504, and its work is dropped"""
    body_seconds: float = 15.0
    """to send the body (408)"""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise UserError(f"the limit {field.name} is {getattr(self, field.name)}; it must be above 0")
