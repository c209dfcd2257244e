"""Texts for images: the same for all of them, or for each its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from openblip.core.errors import UserError

__all__ = ["OwnTexts", "Texts"]

Texts = str | Sequence[str] | Sequence[Sequence[str]]
"""One text or several for every image, or for each image its own."""


@dataclass(frozen=True)
class OwnTexts:
    """Texts, shared out over images as these come."""

    groups: list[list[str]]
    """one for all images where `same`, else one for each"""
    same: bool

    @classmethod
    def of(cls, texts: Texts) -> OwnTexts:
        """What a person hands over."""
        if isinstance(texts, str):
            return cls([[texts]], same=True)
        many = list(texts)
        if not all(many):
            raise UserError("one of the texts is empty")
        if not many:
            raise UserError("there is no text; name at least one")
        if all(isinstance(text, str) for text in many):
            return cls([cast(list[str], many)], same=True)
        return cls([[text] if isinstance(text, str) else list(text) for text in many], same=False)

    def share(self, start: int, count: int) -> Iterator[tuple[list[int], list[str]]]:
        """For the images `start`, `start + 1`, ... of a batch of `count`: rows of the batch with their texts."""
        if self.same:
            yield list(range(count)), self.groups[0]
            return
        own = self.groups[start : start + count]
        if len(own) < count:
            raise UserError(f"there are texts for {len(self.groups)} images, but there are more images")
        for row, group in enumerate(own):
            yield [row], group

    def check(self, count: int) -> None:
        """Refuse texts that are left over when all `count` images are done."""
        if not self.same and count != len(self.groups):
            raise UserError(f"there are texts for {len(self.groups)} images, but {count} images")
