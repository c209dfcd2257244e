"""Captions in text files of their own: those of `a/b.jpg` in `a/b.txt`, or in `FOLDER/a/b.txt`, one on each line.

So the tools that train image generators expect them, and `data.sources.folder` reads them.

    files = TextFiles(["photos/"], existing="skip")
    plan = files.plan(find_image_inputs(["photos/"]))
    files.write(plan.files[name], ["a red bus"])
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Literal

from openblip.core.errors import UserError
from openblip.core.files import write_text
from openblip.core.places import local_path
from openblip.core.text import read_lines
from openblip.data.formats import IMAGE_SUFFIXES, LEFT_OUT, ending_of
from openblip.data.image_inputs import STDIN, FoundImages, ImageInput, TarMember
from openblip.data.sample import BrokenSample

__all__ = ["Existing", "Plan", "TextFiles"]

Existing = Literal["skip", "overwrite", "append"]
"""what becomes of a text file that is there already"""
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass
class Plan:
    """Which images get captions, and the file of each."""

    images: FoundImages
    files: dict[str, Path] = field(default_factory=dict)
    """by the name of the image"""
    existing: int = 0
    """images whose file is there already and stays as it is"""
    sharing: list[tuple[str, str]] = field(default_factory=list)
    """images that share the file of another: "a.png" beside "a.jpg", with that other"""


@dataclass(frozen=True)
class TextFiles:
    """How captions are put into text files.

    Args:
        places: where the images come from, as `find_image_inputs` takes them.
        folder: for the files, which mirrors the folders of the images; None puts each beside its image.
        prefix: before every caption, as it is.
        suffix: after every caption, as it is.

    Raises:
        UserError: the extension is none of a text, or a caption would not be one line.
    """

    places: Sequence[str | Path]
    folder: Path | None = None
    extension: str = ".txt"
    existing: Existing = "skip"
    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        name = f"x.{self.extension.lstrip('.')}"
        if not re.fullmatch(r"[\w.-]+", name) or name == "x." or ".." in name:
            raise UserError(f'"{self.extension}" is no extension of a file; give one such as .txt or .caption')
        if ending_of(name) in (*IMAGE_SUFFIXES, *LEFT_OUT, ".tar"):
            raise UserError(f"a text must not end in {ending_of(name)}; give an extension such as .txt or .caption")
        for text in (self.prefix, self.suffix):
            if "\n" in text or "\r" in text:
                raise UserError(f"{text!r} is more than one line; a caption is one line of its file")
        if self.folder is not None and STDIN in map(str, self.places):
            raise UserError(
                "a list of images has no folder to mirror; leave the folder out, or name the images' own"
            )

    def plan(self, found: FoundImages) -> Plan:
        """Give each image its file; images whose file stays as it is are left out.

        An image that a link puts outside the folder that was named is left out too, with a reason.

        Raises:
            UserError: an image lies in a tar, two images in different folders would share a file, or a folder
                cannot be written or has the name of a text.
        """
        plan, roots = Plan(FoundImages()), _Roots(self.places)
        plan.images.left_out = found.left_out
        owners: dict[str, str] = {}
        for image in found:
            if isinstance(image.image, TarMember):
                raise UserError(f"{image.name} lies in a tar, where no text can be put beside it; unpack the tar")
            try:
                path = self._path(image, roots)
            except BrokenSample as broken:
                found.left_out.folders.append(broken)
                continue
            if path.is_dir():
                raise UserError(f"{path} is a folder, where the text of {image.name} would be; rename it")
            stem, owner = _stem(image.name), owners.setdefault(str(path), image.name)
            if owner != image.name and _stem(owner) != stem:
                raise UserError(f"{owner} and {image.name} would share {path}; name one of their folders at a time")
            if self.existing == "skip" and os.path.lexists(path):
                plan.existing += 1
            elif owner != image.name:
                plan.sharing.append((image.name, owner))
            elif image.name not in plan.files:  # it may have been named twice
                plan.images.append(image)
                plan.files[image.name] = path
        for folder in {path.parent for path in plan.files.values()}:
            _check_writable(folder)
        return plan

    def _path(self, image: ImageInput, roots: _Roots) -> Path:
        root = roots.of(image.name)
        stem = f"{_stem(image.name)}.{self.extension.lstrip('.')}"
        base = root if self.folder is None else self.folder
        path = Path(stem) if self.folder is None else self.folder / os.path.relpath(stem, root)
        if not _inside(str(path.parent), str(base)):
            raise BrokenSample("outside", image.name, f"a link leads out of {base}, and texts stay inside")
        return path

    def write(self, path: Path, captions: Iterable[str]) -> None:
        """Write captions, one on each line; to `append` those lines that the file does not hold yet.

        Raises:
            UserError: the folder cannot be written, or what is to be appended to is no text.
        """
        lines = [f"{self.prefix}{' '.join(caption.split())}{self.suffix}" for caption in captions]
        if self.existing == "append" and path.exists():
            before = read_lines(path)
            lines = [*before, *(line for line in lines if line not in before)]
        try:
            write_text(path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            raise _unwritable(path.parent) from error


class _Roots:
    """The folders below which images were found."""

    def __init__(self, places: Iterable[str | Path]) -> None:
        found = {self._of_place(str(place)) for place in places if str(place) != STDIN}
        self._roots = sorted(found, key=len, reverse=True)

    @staticmethod
    def _of_place(place: str) -> str:
        path = Path(local_path(place))
        if path.is_dir():
            return str(path)
        if os.path.lexists(path):
            return str(path.parent)
        return str(Path(*takewhile(lambda part: not any(c in part for c in "*?["), path.parts[:-1])))

    def of(self, name: str) -> str:
        """The innermost of them that holds the image; of a list's, the image's own folder."""
        folder = os.path.dirname(name) or "."
        below = not os.path.isabs(folder) and ".." not in Path(folder).parts
        holds = (root for root in self._roots if (root == "." and below) or _slash(folder).startswith(_slash(root)))
        return next(holds, folder)


def _slash(folder: str) -> str:
    return folder.rstrip(os.sep) + os.sep


def _stem(name: str) -> str:
    return name[: len(name) - len(ending_of(name))]


def _inside(folder: str, root: str) -> bool:
    real, base = os.path.realpath(folder), os.path.realpath(root)
    return real == base or real.startswith(_slash(base))


def _check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, before any work is done for it."""
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent) or parent == Path("."))
    if not there.is_dir():
        raise UserError(f"{there} is no folder; texts cannot be put into it")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(there)


def _unwritable(folder: Path) -> UserError:
    return UserError(f"the folder {folder} cannot be written; make it writable, or name another with --out")
