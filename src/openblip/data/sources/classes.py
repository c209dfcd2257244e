"""Folders of classes, as ImageNet is sorted: CLASS/NAME.JPEG, each image's text the name of its class.

    source = open_source("val/?classes=names.txt")      # or classes=folder: folders are called as their classes
    source[0].texts                                     # ("tench",)
    source.class_names                                  # {"n01440764": "tench", ...}, all that the file names

A file of names has a line for each folder, "n01440764", a tab or blank, "tench"; or a name on each line in the
order of the sorted folders. Two classes of one name cannot be told apart and are refused: ImageNet's synonyms have
two cranes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from openblip.core.errors import UserError
from openblip.core.text import read_list, without_halves
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import string_of
from openblip.data.sources.folder import FolderSource

__all__ = ["AS_FOLDERS", "ClassFolderSource", "read_class_names"]

AS_FOLDERS = "folder"
"""in place of a file: classes are called as their folders, "_" for a blank"""
_SHOWN = 5


class ClassFolderSource(FolderSource):
    """Images in folders that name their class, the first below the source's; texts beside images are not read.

    Attributes:
        class_names: of each folder; with a file those that it names, also where no image lies.
    """

    reads = frozenset(("classes",))

    def __init__(self, folder: Path, config: SourceConfig) -> None:
        super().__init__(folder, config)
        folders = [_folder_of(string_of(name)) for name in self._names]
        known = sorted(set(folders) - {""})
        if not known:
            raise UserError(f"{folder} holds no folder with images: each class needs one of its own")
        if config.classes == AS_FOLDERS:
            self.class_names: Mapping[str, str] = {name: without_halves(name.replace("_", " ")) for name in known}
        else:
            self.class_names = read_class_names(folder / Path(config.classes).expanduser(), known)
            if unnamed := [name for name in known if name not in self.class_names]:
                shown = ", ".join(unnamed[:_SHOWN]) + (", ..." if len(unnamed) > _SHOWN else "")
                raise UserError(f"{config.classes} has no name for {len(unnamed)} folders of {folder}: {shown}")
        _refuse_twice(self.class_names, config.classes)
        if len(self.class_names) < 2:
            raise UserError(f"{folder} has one class ({known[0]}); a classification needs at least two")

    def __getitem__(self, index: int) -> Sample:
        name = string_of(self._names[index])
        folder = _folder_of(name)
        if not folder:
            raise BrokenSample("no-text", name, "it lies in no folder of a class")
        return Sample(name, (self._folder / name,), (self.class_names[folder],), image_id=name)


def _folder_of(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def read_class_names(file: Path, folders: Sequence[str]) -> dict[str, str]:
    """Names of classes by their folders.

    Args:
        folders: those that hold images, sorted.

    Raises:
        UserError: the file cannot be read, has a folder twice, or fits the folders in no way.
    """
    try:
        lines = read_list(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read as names of classes: {error.strerror}") from error
    splitter = "\t" if any("\t" in line for line in lines) else " "
    pairs = [(line.partition(splitter)[0].strip(), line.partition(splitter)[2].strip()) for line in lines]
    there = set(folders)
    if splitter == " " and not any(folder in there and name for folder, name in pairs):
        if len(lines) != len(folders):
            raise UserError(
                f"{file} names no folder and has {len(lines)} lines for {len(folders)} folders; write each folder "
                'and its class, as "n01440764 tench", or one class for each folder in sorted order'
            )
        pairs = list(zip(folders, lines, strict=True))
    if twice := [folder for folder, count in Counter(folder for folder, _ in pairs).items() if count > 1]:
        raise UserError(f"{file} names the folder {twice[0]} twice")
    if nameless := [folder for folder, name in pairs if not name]:
        raise UserError(f"{file} gives no class for {nameless[0]}")
    return dict(pairs)


def _refuse_twice(names: Mapping[str, str], file: str) -> None:
    more = {name for name, count in Counter(names.values()).items() if count > 1}
    if more:
        same = ", ".join(f'{folder} "{name}"' for folder, name in names.items() if name in more)
        raise UserError(f"two classes of {file} have one name ({same}); give each a name of its own")
