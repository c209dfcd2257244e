"""A folder of pictures, each with its captions in a .txt of the same name, one caption on a line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from openblip.core.errors import UserError
from openblip.data.images import IMAGE_SUFFIXES
from openblip.data.sample import BrokenSample, Sample
from openblip.data.sources.base import Source, SourceConfig, string_array
from openblip.data.sources.digest import MOST_SIZES, MOST_TEXTS, Digest, spread

__all__ = ["FolderSource", "list_images"]


def list_images(folder: Path) -> list[str]:
    """Return the pictures under `folder` as sorted relative paths; hidden files and folders are left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(parent, folder)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                found.append(name if inside == "." else os.path.join(inside, name))
    return sorted(found)


class FolderSource(Source):
    """Pictures of a folder and its subfolders; `a/b.jpg` has its captions in `a/b.txt`."""

    def __init__(self, folder: Path, config: SourceConfig) -> None:
        super().__init__()
        self.name = config.name or config.path
        self._folder = folder
        names = list_images(folder)
        if not names:
            raise UserError(
                f"{folder} holds no pictures, tars or captions files; "
                "give a folder of images with .txt files beside them, or a captions file"
            )
        self._names = string_array(names)

    def _name(self, image: int) -> str:
        return self._names[image].as_py()

    def _texts(self, name: str) -> tuple[str, ...]:
        path = (self._folder / name).with_suffix(".txt")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError:
            return ()
        except UnicodeDecodeError as error:
            raise BrokenSample("bad-text", name, f"{path.name} is not UTF-8 text") from error
        except OSError as error:
            raise BrokenSample("bad-text", name, f"{path.name}: {error}") from error
        return tuple(line.strip() for line in lines if line.strip())

    def __len__(self) -> int:
        return len(self._names)

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        digest.strings(self._names[span.start : span.stop])
        for index in spread(span, MOST_TEXTS if texts else MOST_SIZES):
            try:
                sample = self[index]
                digest.image_size(sample)
                digest.add(sample.texts if texts else ())
            except BrokenSample as broken:
                digest.broken(broken)

    def __getitem__(self, index: int) -> Sample:
        name = self._name(index)
        return Sample(key=name, image=self._folder / name, texts=self._texts(name), image_id=name)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "kind": "folder"}
