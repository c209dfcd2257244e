"""Which files of a tar make up a sample, and which of them is its image and its text.

WebDataset's rule: the key is the name up to the first dot, the rest says what the file is (0001.jpg, 0001.seg.png,
0001.txt). Names with dots of their own would fall into one sample by it (photo.v1.jpg, photo.v2.jpg): where no file
has just the key and an ending, or a longer name has an image and a text of its own, the key is the name up to the
last dot.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from openblip.core.errors import UserError, nearest
from openblip.data.formats import IMAGE_SUFFIXES, LEFT_OUT
from openblip.data.sample import BrokenSample
from openblip.data.sources.cells import TEXT_COLUMNS
from openblip.data.sources.tar_members import Member
from openblip.data.walk import is_hidden

__all__ = ["KeyReader", "Places"]

Places = tuple[int, ...]
"""(image offset, size, text offset, size, JSON offset, size), size -1 where there is none"""
Files = dict[str, Member]
"""By what follows the key in their names."""

_TEXTS = ("txt", "caption", "cap")
_MOST_KNOWN = 10_000
_PREFERRED = ("jpg", "jpeg", "png", "webp")
_PREFERRED_STEMS = ("image", "img", "rgb", "photo", "picture", "input")


class KeyReader:
    """Groups the files of tars into samples.

    Args:
        image_column: the ending of the image where a key has several ("left.jpg", "left" or "png"); several in the
            order of preference, as "jpg;png"; "" takes the plain ending (0001.jpg before 0001.seg.png).
        text_column: the ending of the text, or a field of the JSON.
    """

    def __init__(self, image_column: str, text_column: str) -> None:
        self._image_column = image_column
        self._choices = [choice.strip().lower().lstrip(".") for choice in image_column.split(";") if choice.strip()]
        self.text_endings = (text_column.lower().lstrip("."),) if text_column else _TEXTS
        self._seen: set[str] = set()
        self._num_chosen = 0
        self._known: dict[tuple[str, ...], tuple[str, str, str, str]] = {}

    def check(self, where: str) -> None:
        """Refuse an `image_column` that no sample had.

        Raises:
            UserError: names the nearest ending.
        """
        if self._choices and not self._num_chosen:
            close = nearest(self._image_column, self._seen)
            raise UserError(f'the samples of {where} have no image with the ending "{self._image_column}"{close}')

    def samples(self, members: Iterable[Member], label: str) -> tuple[list[tuple[str, Places]], list[BrokenSample]]:
        """The samples of one tar in the order of their first files, and what is wrong with others.

        Args:
            label: of the tar, in messages.
        """
        keys: dict[str, Files] = {}
        twice: dict[str, None] = {}
        for member in members:
            folder, name = os.path.split(member.name)
            first, _, ending = name.partition(".")
            if not first or is_hidden(member.name):
                continue  # hidden files, as some archivers add them
            key = os.path.join(folder, first)
            files = keys.setdefault(key, {})
            if ending in files:
                twice[key] = None
            else:
                files[ending] = member
        detail = "the tar holds this key twice; its first files are used"
        bad = [BrokenSample("duplicate-key", f"{label}/{key}", detail) for key in twice]
        several: Counter[str] = Counter()
        found: list[tuple[str, Places]] = []
        for short, together in keys.items():
            for key, files in self._split(short, together):
                image, text, fields, told = self._roles(tuple(files))
                if told:
                    several[told] += 1
                if image:
                    self._num_chosen += 1
                    found.append((key, (*_place(files, image), *_place(files, text), *_place(files, fields))))
                elif text or fields or (self._choices and _images(files)):
                    what = f'no image "{self._image_column}" among {", ".join(files)}' if self._choices else ""
                    bad.append(BrokenSample("missing", f"{label}/{key}", what or _why_none(files)))
                elif why := _unread(files):
                    bad.append(BrokenSample("unreadable", f"{label}/{key}", why))
        for told, count in several.items():
            what = f"{count} samples hold several images: {told}; image_column chooses another"
            bad.append(BrokenSample("several-images", label, what))
        return found, bad

    def _split(self, key: str, files: Files) -> list[tuple[str, Files]]:
        """One sample or several, of files whose names agree up to the first dot."""
        if not any("." in ending for ending in files) or any(e.lower() in self._choices for e in files if "." in e):
            return [(key, files)]
        stems: dict[str, Files] = {}
        for ending, member in files.items():
            stem, _, last = ending.rpartition(".")
            stems.setdefault(stem, {})[last] = member
        plain = stems.get("", {})
        kinds = {ending.lower() for ending in _images(plain)}
        apart = [stem for stem, own in stems.items() if stem and self._stands_alone(own, bool(plain), kinds)]
        if not plain:
            named = any(stem.lower() in TEXT_COLUMNS and not _images(own) for stem, own in stems.items())
            if apart or (len(_images(files)) > 1 and not named):
                return [(f"{key}.{stem}", own) for stem, own in stems.items()]
            return [(key, files)]
        rest = {ending: member for ending, member in files.items() if ending.rpartition(".")[0] not in apart}
        return [(key, rest), *((f"{key}.{stem}", stems[stem]) for stem in apart)]

    def _stands_alone(self, files: Files, beside_plain: bool, kinds: set[str]) -> bool:
        """Whether the files of a longer name are an image with a text of its own."""
        images, endings = _images(files), {ending.lower() for ending in files}
        if not images:
            return False
        if endings & {*_TEXTS, *self.text_endings}:
            return True
        return "json" in endings and (not beside_plain or images[0].lower() in kinds)

    def _roles(self, files: tuple[str, ...]) -> tuple[str, str, str, str]:
        """The endings of the image, the text and the JSON, "" for none; and what is to be reported of the
        choice."""
        if files not in self._known:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            image, told = self._image(files)
            self._known[files] = image, self._text(files, image), self._fields(files, image), told
        return self._known[files]

    def _image(self, files: tuple[str, ...]) -> tuple[str, str]:
        images = _images(files)
        self._seen.update(ending.lower() for ending in images)
        if self._choices:
            for choice in self._choices:
                for ending in files:
                    if ending.lower() == choice or (
                        ending in images and ending.lower().rpartition(".")[0] == choice
                    ):
                        return ending, ""
            return "", ""
        candidates = [ending for ending in images if "." not in ending] or images
        candidates.sort(key=_preference)
        message = f"{', '.join(candidates)}, of which {candidates[0]} is read" if len(candidates) > 1 else ""
        return (candidates[0] if candidates else ""), message

    def _text(self, files: tuple[str, ...], image: str) -> str:
        lower = {ending.lower(): ending for ending in reversed(files)}
        stem = image.lower().rpartition(".")[0]
        wanted = [*self.text_endings, *(f"{name}.txt" for name in (*self.text_endings, *TEXT_COLUMNS))]
        if stem and self.text_endings == _TEXTS:
            wanted.append(f"{stem}.txt")
        return next((lower[ending] for ending in wanted if ending in lower and lower[ending] != image), "")

    def _fields(self, files: tuple[str, ...], image: str) -> str:
        lower = {ending.lower(): ending for ending in reversed(files)}
        stem = image.lower().rpartition(".")[0]
        return next((lower[ending] for ending in ("json", f"{stem}.json") if ending in lower), "")


def _unread(files: Iterable[str]) -> str:
    """What an image is among files with these endings that is not read here."""
    kinds = (LEFT_OUT.get(f".{ending.rpartition('.')[2].lower()}") for ending in files)
    return next((f"its image is {kind}" for kind in kinds if kind and kind.image), "")


def _why_none(files: Iterable[str]) -> str:
    return _unread(files) or "no image in the tar"


def _images(files: Iterable[str]) -> list[str]:
    return [ending for ending in files if f".{ending.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES]


def _preference(ending: str) -> tuple[bool, int, str]:
    stem, _, kind = ending.lower().rpartition(".")
    rank = _PREFERRED.index(kind) if kind in _PREFERRED else len(_PREFERRED)
    return stem not in _PREFERRED_STEMS and bool(stem), rank, ending.lower()


def _place(files: Files, ending: str) -> tuple[int, int]:
    return (files[ending].offset, files[ending].size) if ending else (0, -1)
