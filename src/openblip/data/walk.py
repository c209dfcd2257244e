"""The one walker of folders: which images lie in a folder and below, and what was left out.

Hidden files and what systems put between photographs (thumbnails, resource forks, trash) are not there for it.
Links are followed, to files and to folders; each folder is read once, under its own path where it has one in the
tree, so that links in a circle end. The order of the result depends on the names alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openblip.core.text import counted
from openblip.data.formats import IMAGE_SUFFIXES, LEFT_OUT, VIDEO_SUFFIXES, ending_of
from openblip.data.sample import BrokenSample

__all__ = ["LeftOut", "Walk", "is_hidden", "walk"]

_SYSTEM_FOLDERS = ("__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "lost+found",
                   "system volume information", "found.000")  # fmt: skip
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
_SYSTEM = frozenset((*_SYSTEM_FOLDERS, *_SYSTEM_FILES))
_NAMED = 3
"""files that are named for each kind that is left out"""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or the system's own; of a path, whether any part of it is."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part.lower() in _SYSTEM for part in parts)


@dataclass
class LeftOut:
    """Media files that a walk did not take, by ending, and folders that it could not read."""

    files: dict[str, list[str]] = field(default_factory=dict)
    folders: list[BrokenSample] = field(default_factory=list)

    def take(self, name: str) -> bool:
        """Note a file if it is of a kind that is left out."""
        ending = ending_of(name)
        if ending not in LEFT_OUT:
            return False
        self.files.setdefault(ending, []).append(name)
        return True

    def add(self, other: LeftOut, parent: str = "") -> None:
        """Note what another walk left out, below `parent`."""
        for ending, names in other.files.items():
            self.files.setdefault(ending, []).extend(os.path.join(parent, name) for name in names)
        self.folders += other.folders

    def broken(self) -> list[BrokenSample]:
        """The images among it, and the folders, as samples that cannot be read."""
        samples = [
            BrokenSample("unreadable", name, f"it is {LEFT_OUT[ending]}")
            for ending, names in sorted(self.files.items())
            for name in sorted(names)
            if LEFT_OUT[ending].image
        ]
        return samples + self.folders

    def lines(self) -> list[str]:
        """A sentence for each kind, with its number of files and the first of them; one for each folder."""
        lines = []
        for ending, names in sorted(self.files.items()):
            shown = ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            files = f"{counted(len(names), f'{ending} file')} left out ({shown})"
            lines.append(f"{files}: {LEFT_OUT[ending].of(len(names))}")
        return lines + [f"{folder.key} left out: {folder.detail}" for folder in self.folders]


@dataclass
class Walk:
    """What lies in a folder and below, as sorted paths from it."""

    images: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    """The text file of each image: by the image's path without its ending."""
    left_out: LeftOut = field(default_factory=LeftOut)
    other_endings: set[str] = field(default_factory=set)
    """Of files that are nothing of the above."""


def walk(root: Path, *, beside: Sequence[str] = (), videos: bool = False) -> Walk:
    """Go through a folder and all below it.

    Args:
        beside: endings of text files to note, in lower case with their point; of several beside an image, the one
            whose ending comes first here.
        videos: take these for images too, and do not leave them out.

    Raises:
        OSError: `root` itself cannot be read.
    """
    found = Walk()
    ranks = {ending: rank for rank, ending in enumerate(beside)}
    chosen: dict[str, tuple[int, str]] = {}
    # A link to a folder that holds `root` leads round in a circle, and to all else in there.
    seen = {_identity(parent) for parent in Path(os.path.realpath(root)).parents}
    folders, links = deque([""]), list[str]()
    while folders or links:
        if not folders:  # links come last, so that a folder has its own path where it has one in the tree
            links.sort(reverse=True)
            folders.append(links.pop())
        inside = folders.popleft()
        place = os.path.join(root, inside)
        try:
            if (identity := _identity(place)) in seen:
                continue
            entries = _entries(place)
        except OSError as error:
            if not inside:
                raise
            found.left_out.folders.append(BrokenSample("unreadable", place, f"the folder cannot be read: {error}"))
            continue
        seen.add(identity)
        for entry in entries:
            name = os.path.join(inside, entry.name)
            if is_hidden(entry.name):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(name)
                continue
            if not (entry.is_symlink() or entry.is_file()):
                continue  # a pipe, a socket or a device, which may never end
            ending = ending_of(entry.name)
            if ending in IMAGE_SUFFIXES or (videos and ending in VIDEO_SUFFIXES):
                found.images.append(name)
            elif ending == ".tar":
                found.tars.append(name)
            elif ending in ranks:
                stem = name[: -len(ending)]
                if stem not in chosen or (ranks[ending], name) < chosen[stem]:
                    chosen[stem] = ranks[ending], name
            elif not found.left_out.take(name):
                found.other_endings.add(ending)
    found.images.sort()
    found.tars.sort()
    found.beside = {stem: name for stem, (_, name) in chosen.items()}
    return found


def _identity(place: str | Path) -> tuple[int, int]:
    status = os.stat(place)
    return status.st_dev, status.st_ino


def _entries(place: str) -> Iterable[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
