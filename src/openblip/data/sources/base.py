"""What every source of samples has in common: its settings, its interface, and how columns are found.

A source is indexable, cheap to open and cheap to index: `source[i]` reads bytes or makes a path and never
decodes. What is wrong with one sample is a `BrokenSample`; what is wrong with the whole (no such file, no
such column) is a `UserError` when the source is opened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from openblip.core.errors import UserError, closest, nearest
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig
from openblip.data.sources.digest import Digest

__all__ = [
    "COLUMN_SETTINGS",
    "URL_COLUMNS",
    "NoSamples",
    "PairsSource",
    "Source",
    "find_column",
    "refuse_unread",
    "string_array",
    "string_of",
]

COLUMN_SETTINGS = ("image_column", "text_column", "id_column", "answer_column", "meta_columns")
_OF_EVERY_SOURCE = frozenset(
    (
        "path",
        "name",
        "weight",
        "epoch_share",
        "pairs",
        "need_texts",
        "need_answers",
        "answer_weight",
        "rule",
        "max_questions",
        "num_images",
    )
)
URL_COLUMNS = ("url", "image_url", "img_url")


class NoSamples(UserError):
    """A source that can be read and has no sample of use.

    Attributes:
        bad_rows: what is wrong with each of those that it holds.
    """

    def __init__(self, message: str, bad_rows: Iterable[BrokenSample] = ()) -> None:
        super().__init__(message)
        self.bad_rows = list(bad_rows)


class Source(ABC):
    """An indexable collection of samples.

    Attributes:
        name: for messages and for keeping image ids apart.
        bad_rows: what was unreadable while opening (lines that are not JSON, cut tars); the loader reports it.
        reads: the settings of `SourceConfig` that this kind reads, besides those of every source.
        blocks: contiguous ranges that are cheap to read together (a tar, a row group), or None when every
            sample is as cheap as any other. Their order is shuffled, and samples among `window` blocks.
        window: how many blocks are shuffled together.
        num_images: of each sample.
        frames: of each sample's video; 0 where it has none.
    """

    name: str = ""
    reads: ClassVar[frozenset[str]] = frozenset()
    blocks: Sequence[range] | None = None
    window: int = 16
    num_images: int = 1
    frames: int = 0

    def __init__(self) -> None:
        self.bad_rows: list[BrokenSample] = []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`, its image not decoded.

        Raises:
            BrokenSample: this sample cannot be read.
        """

    def without_drawing(self, index: int) -> Sample:
        """Return sample `index` for a reader of texts and `meta`: images that would be drawn for it are left out.

        Raises:
            BrokenSample: this sample cannot be read.
        """
        return self[index]

    def text_counts(self) -> np.ndarray:
        """Return how many texts each sample has, int64 [len(self)]; 0 where it cannot be read."""

        def count(index: int) -> int:
            try:
                return len(self.without_drawing(index).texts)
            except BrokenSample:
                return 0

        return np.fromiter(map(count, range(len(self))), np.int64, len(self))

    def fingerprint(self, span: range | None = None, *, texts: bool = True) -> str:
        """Return what tells these samples from others: names, texts, ids and sizes, never times of files.

        Args:
            span: of which samples; None is all.
            texts: False leaves out all but what says which images these are.
        """
        digest = Digest()
        span = range(len(self)) if span is None else span
        digest.add(len(span))
        self.digest(digest, span, texts=texts)
        return digest.value()

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        """Add the samples of a span to a fingerprint; a source that says nothing is recognized by its size
        alone."""
        digest.add(type(self).__name__, len(self))

    def describe(self) -> dict[str, Any]:
        """Return what a person wants to know: kind, path, number of samples, columns."""
        return {"kind": type(self).__name__, "name": self.name, "num_samples": len(self)}


def refuse_unread(config: SourceConfig, reads: frozenset[str], what: str) -> None:
    """Refuse settings that the kind of source at hand does not read, so that none is without effect.

    Args:
        reads: see `Source.reads`.
        what: the source, for the message.

    Raises:
        UserError: names the setting and the nearest one that is read.
    """
    if config.questions and "questions" not in reads:
        raise UserError(
            f"{what} holds no questions with answers that can be read; give a captions file, see docs/vqa.md"
        )
    if config.statements and "statements" not in reads:
        raise UserError(f"{what} holds no statements with labels that can be read; give a captions file")
    if config.num_images > 1 and "num_images" not in reads:
        raise UserError(
            f"{what} has one image in each sample, not {config.num_images}; give a captions file that names several"
        )
    for setting in fields(config):
        name = setting.name
        if name in reads | _OF_EVERY_SOURCE or getattr(config, name) == setting.default:
            continue
        raise UserError(
            f'{what} does not read the setting "{name}"{nearest(name, reads | _OF_EVERY_SOURCE - {"path"})}'
        )
    if config.answer_column and not (config.questions or config.statements):
        raise UserError(f'{what} reads the setting "answer_column" only for questions and statements')
    for name, given in (
        ("max_questions", config.max_questions),
        ("rule", config.rule),
        ("need_answers", not config.need_answers and not config.statements),
        ("answer_weight", config.answer_weight is not None),
    ):
        if given and not config.questions:
            raise UserError(f'{what} reads the setting "{name}" only for questions with answers (finetune vqa)')


class PairsSource(Source):
    """Every (image, caption) of another source as a sample of its own; the image id tells which belong together.

    A sample without captions stays one sample, so that the loader can report it.

    Args:
        each: texts of a sample, at most.
    """

    def __init__(self, source: Source, *, each: int = 1) -> None:
        super().__init__()
        self.name, self.bad_rows, self.window = source.name, source.bad_rows, source.window
        self.num_images, self.frames = source.num_images, source.frames
        self._source, self._each = source, each
        counts = np.maximum(-(-source.text_counts() // each), 1)
        self._ends = np.cumsum(counts)
        if source.blocks is not None:
            edges = np.concatenate([[0], self._ends])
            self.blocks = [range(int(edges[b.start]), int(edges[b.stop])) for b in source.blocks]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Sample:
        return self._pair(index, self._source.__getitem__)

    def without_drawing(self, index: int) -> Sample:
        return self._pair(index, self._source.without_drawing)

    def _pair(self, index: int, read: Callable[[int], Sample]) -> Sample:
        owner = int(np.searchsorted(self._ends, index, side="right"))
        number = index - int(self._ends[owner - 1]) if owner else index
        sample = read(owner)
        return replace(
            sample,
            key=f"{sample.key}#{number}",
            texts=sample.texts[number * self._each : (number + 1) * self._each],
            image_id=sample.image_id or sample.key,
        )

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        if not span:
            return
        first, last = (int(np.searchsorted(self._ends, place, side="right")) for place in (span[0], span[-1]))
        digest.add("pairs", self._each, span[0] - (int(self._ends[first - 1]) if first else 0))
        self._source.digest(digest, range(first, last + 1), texts=texts)

    def describe(self) -> dict[str, Any]:
        return {**self._source.describe(), "num_samples": len(self), "num_images": len(self._source)}


def find_column(wanted: str, guesses: Iterable[str], columns: Sequence[str], *, what: str, where: str) -> str:
    """Return the column called `wanted`, or the first of `guesses` that is there, whatever its case.

    Args:
        what: "image", "caption", "question", "answer", "statement" or "label", for the message.

    Raises:
        UserError: names the file, the columns found and the nearest.
    """
    options = {"caption": "text", "question": "text", "statement": "text", "label": "answer"}
    option = f"{options.get(what, what)}_column"
    if wanted:
        if wanted in columns:
            return wanted
        alike = [column for column in columns if column.strip() == wanted.strip()]
        if len(alike) == 1:
            return alike[0]
        found = f"it has {_quoted(columns)}" if columns else "it has none"
        raise UserError(f'{where} has no column "{wanted}"; {found}{closest(wanted, columns)}')
    lowered = {column.strip().lower(): column for column in reversed(columns)}
    for guess in guesses:
        if guess in lowered:
            return lowered[guess]
    if what == "image":
        for url in URL_COLUMNS:
            if url in lowered:
                raise UserError(
                    f'{where} holds web addresses (column "{lowered[url]}") and no images; '
                    "download them first, for example with img2dataset, and give its tars"
                )
    if what in ("question", "statement"):
        for caption in ("caption", "captions"):
            if caption in lowered:
                raise UserError(
                    f'{where} holds captions (column "{lowered[caption]}") and no {what}s; give rows with a '
                    f"{what}, or name their column with {option}"
                )
    close = next((hint for guess in guesses if (hint := closest(guess, columns))), "")
    without = ", or set need_answers=false for predictions alone" if what in ("label", "answer") else ""
    raise UserError(
        f"{where} has no {what} column; it has {_quoted(columns)}{close}; "
        f"name the one to use with {option}{without}"
    )


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "no columns"


def string_array(values: Sequence[str | bytes], *, paths: bool = False) -> pa.Array:
    """Return a large_string array of str or UTF-8 bytes.

    `pa.array` would do the same and import pandas on the way, where that is installed.

    Args:
        paths: bytes of file names that are not UTF-8 stay what they are; `string_of` gives them back.
    """
    encoded = [_encoded(value, paths) if isinstance(value, str) else value for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)


def _encoded(value: str, path: bool) -> bytes:
    if path:
        with suppress(UnicodeEncodeError):
            return value.encode("utf-8", "surrogateescape")
    return value.encode("utf-8", "replace")


def string_of(cell: pa.Scalar) -> str:
    """A cell of strings, in which bytes that are not UTF-8 are kept as the system keeps them in names of files."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return bytes(cell.as_buffer()).decode("utf-8", "surrogateescape")
