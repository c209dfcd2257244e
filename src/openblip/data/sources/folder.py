"""A folder of images, each with its captions in a .txt or .caption of the same name, one caption on a line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openblip.core.errors import UserError, nearest
from openblip.core.places import nothing_in
from openblip.core.text import read_lines
from openblip.data.formats import VIDEO_SUFFIXES, ending_of
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import Source, string_array, string_of
from openblip.data.sources.digest import MOST_SIZES, MOST_TEXTS, Digest, spread
from openblip.data.videos import DEFAULT_FRAMES
from openblip.data.walk import walk

__all__ = ["TEXT_ENDINGS", "FolderSource", "with_texts"]

TEXT_ENDINGS = (".txt", ".caption", ".cap")
"""of texts beside images, in any case; where an image has several, the first that is there"""


def with_texts(images: Iterable[Path], files: Iterable[Path]) -> bool:
    """Whether one of the images has a text among the files beside it."""
    stems = {file.with_suffix("") for file in files if file.suffix.lower() in TEXT_ENDINGS}
    return any(image.with_suffix("") in stems for image in images)


class FolderSource(Source):
    """Images, or videos, of a folder and its subfolders; `a/b.jpg` has its captions in `a/b.txt`."""

    reads = frozenset(("text_column", "frames"))

    def __init__(self, folder: Path, config: SourceConfig) -> None:
        super().__init__()
        self.name = config.name or config.path
        self._folder = folder
        endings = (f".{config.text_column.lower().lstrip('.')}",) if config.text_column else TEXT_ENDINGS
        found = walk(folder, beside=endings, videos=config.frames > 0)
        self.frames = config.frames
        if not found.images and not self.frames and set(VIDEO_SUFFIXES) & found.left_out.files.keys():
            found, self.frames = walk(folder, beside=endings, videos=True), DEFAULT_FRAMES
        self._left_out = found.left_out.lines()
        self.bad_rows = found.left_out.broken()
        if not found.images:
            but = f", but {'; '.join(self._left_out)}" if self._left_out else ""
            raise UserError(nothing_in(folder, but))
        texts = [found.beside.get(name[: len(name) - len(ending_of(name))], "") for name in found.images]
        if config.text_column and not any(texts):
            known = {ending.lstrip(".") for ending in found.other_endings if ending}
            close = nearest(endings[0][1:], known) if known else ""
            raise UserError(f'no image in {folder} has a text that ends in "{endings[0]}" beside it{close}')
        self._names, self._text_names = string_array(found.images, paths=True), string_array(texts, paths=True)

    def _texts(self, name: str, beside: str) -> tuple[str, ...]:
        if not beside:
            return ()
        path = self._folder / beside
        try:
            lines = read_lines(path)
        except FileNotFoundError:
            return ()
        except UserError as error:
            raise BrokenSample("bad-text", name, str(error)) from error
        except OSError as error:
            raise BrokenSample("bad-text", name, f"{path}: {error.strerror}") from error
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
        name = string_of(self._names[index])
        texts = self._texts(name, string_of(self._text_names[index]))
        return Sample(key=name, images=(self._folder / name,), texts=texts, image_id=name, frames=self.frames)

    def describe(self) -> dict[str, Any]:
        left_out = {"left_out": self._left_out} if self._left_out else {}
        return {**super().describe(), "kind": "folder", **left_out}
