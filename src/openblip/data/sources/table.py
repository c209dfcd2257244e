"""Captions files as a source: rows of (image, captions, id), grouped by image.

Rows live in Arrow columns and NumPy index arrays, about the size of their text, so that tens of millions of
rows fit in memory and cross to worker processes without a copy for each row.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openblip.core.errors import UserError, nearest
from openblip.data.formats import VIDEO_SUFFIXES, ending_of
from openblip.data.sample import BrokenSample, ImageLike, Sample
from openblip.data.source_config import SourceConfig
from openblip.data.sources.answers import (
    ABOUT_COLUMNS,
    ANSWER_COLUMNS,
    HOLDING_ANSWERS,
    QUESTION_COLUMNS,
    WEIGHT_COLUMNS,
    question_texts,
)
from openblip.data.sources.base import COLUMN_SETTINGS, Source, find_column, string_array, string_of
from openblip.data.sources.cells import ID_COLUMNS, IMAGE_COLUMNS, TEXT_COLUMNS, as_texts, given_id, row_images
from openblip.data.sources.digest import MOST_SIZES, Digest, pieces, spread
from openblip.data.sources.identity import image_ids, joined_names, same_names
from openblip.data.sources.labels import (
    IDENTIFIER,
    LABEL_COLUMNS,
    STATEMENT_COLUMNS,
    pair_images,
    statement_texts,
)
from openblip.data.sources.paths import image_roots, locate_image, name_images, named_videos
from openblip.data.sources.records import Row, first_rows, read_records
from openblip.data.sources.repeats import Repeats, repeated_images
from openblip.data.videos import DEFAULT_FRAMES

__all__ = [
    "Columns",
    "Grouping",
    "TableSource",
    "choose_columns",
    "image_columns",
    "no_such_split",
    "open_records",
    "row_paths",
    "row_texts",
]

_CHUNK = 1 << 16
_LOOK_AHEAD = 100
_NUMBERED = ("image_", "image", "img_", "img")
_SIDES = (["left_image", "right_image"], ["image_left", "image_right"], ["left", "right"])
"""usual names of columns where each image of a sample has its own"""
_KARPATHY_TRAIN = frozenset({"train", "restval"})


@dataclass
class Columns:
    """The rows of a captions file, R rows with T captions in all."""

    images: Any
    """`ImagePaths`, or anything whose [row] gives (key, images)."""
    texts: pa.Array
    """large_string [T], in row order."""
    text_row: np.ndarray
    """int64 [T]: the row of each caption."""
    num_rows: int
    ids: pa.Array | None = None
    """large_string [R], equal for rows of one image; None: every row is an image of its own."""
    meta: dict[str, pa.Array] = field(default_factory=dict)
    """Further columns [R], each cell as JSON text."""
    names: dict[str, str] = field(default_factory=dict)
    """Which column was taken for what."""
    bad_rows: list[BrokenSample] = field(default_factory=list)


class ImagePaths:
    """Images given by path; [row] -> (key, paths).

    Args:
        columns: large_string [R] of each image of a row.
    """

    def __init__(self, columns: Sequence[pa.Array], roots: tuple[str, ...], *, absolute: bool) -> None:
        self.columns = columns
        self.names = joined_names(columns)
        self.roots = roots
        self.absolute = absolute

    def are_videos(self) -> bool:
        """Whether the first of them are videos, by their endings, and none is an image."""
        first = [ending_of(string_of(name)) for name in self.names[:_LOOK_AHEAD]]
        return len(self.columns) == 1 and bool(first) and set(first) <= set(VIDEO_SUFFIXES)

    def same_names(self) -> pa.Array:
        """As `names`, each path in one way of writing."""
        return joined_names([same_names(column) for column in self.columns])

    def __getitem__(self, row: int) -> tuple[str, tuple[ImageLike, ...]]:
        key = string_of(self.names[row])
        names = [string_of(column[row]) for column in self.columns]
        return key, tuple(locate_image(name, self.roots, key=key, absolute=self.absolute) for name in names)


class Grouping:
    """Which row and which captions make up each sample.

    Args:
        text_row: int64 [T], ascending.
        ids: equal for rows of one image, or None.
    """

    def __init__(self, text_row: np.ndarray, num_rows: int, ids: pa.Array | None) -> None:
        self.text_order: np.ndarray | None = None
        counts = np.bincount(text_row, minlength=num_rows)
        if ids is None:
            self.row = np.arange(num_rows)
            self.start = np.concatenate([[0], np.cumsum(counts)])
        else:
            codes = pc.dictionary_encode(ids).indices.to_numpy(zero_copy_only=False).astype(np.int64)
            _, self.row = np.unique(codes, return_index=True)  # codes count up by first appearance
            if len(self.row) == num_rows:
                self.start = np.concatenate([[0], np.cumsum(counts)])
                return
            text_code = codes[text_row]
            self.text_order = np.argsort(text_code, kind="stable")
            sizes = np.bincount(text_code, minlength=len(self.row))
            self.start = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> tuple[int, list[int]]:
        """Return the row that holds the image, and the numbers of the captions."""
        numbers = range(self.start[index], self.start[index + 1])
        order = self.text_order
        return int(self.row[index]), list(numbers) if order is None else [int(order[n]) for n in numbers]


class TableSource(Source):
    """Samples from `Columns`."""

    reads = frozenset(
        (
            *(*COLUMN_SETTINGS, "split", "image_root", "image_name", "absolute_paths"),
            *("questions", "statements", "num_images", "frames"),
        )
    )

    def __init__(self, columns: Columns, config: SourceConfig, *, kind: str) -> None:
        super().__init__()
        self.name = config.name or config.path
        self.kind = kind
        self.num_images = config.num_images
        self.frames = config.frames
        if not self.frames and isinstance(columns.images, ImagePaths) and columns.images.are_videos():
            self.frames = DEFAULT_FRAMES
        self.bad_rows = columns.bad_rows
        self._columns = columns
        self._grouping = Grouping(columns.text_row, columns.num_rows, columns.ids)
        if hasattr(columns.images, "blocks_of"):  # images inside the table are read a row group at a time
            self.blocks, self.window = columns.images.blocks_of(self._grouping.row)

    def text_counts(self) -> np.ndarray:
        return np.diff(self._grouping.start)

    def __len__(self) -> int:
        return len(self._grouping)

    def __getitem__(self, index: int) -> Sample:
        columns = self._columns
        row, numbers = self._grouping[index]
        key, images = columns.images[row]
        image_id = string_of(columns.ids[row]) if columns.ids is not None else key
        try:
            texts = tuple(columns.texts[number].as_py() for number in numbers)
        except UnicodeDecodeError as error:
            raise BrokenSample("bad-text", key, f"its text is not UTF-8: {error}") from error
        meta = {name: json.loads(cells[row].as_py()) for name, cells in columns.meta.items()}
        return Sample(key=key, images=images, texts=texts, image_id=image_id, meta=meta, frames=self.frames)

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        columns, grouping = self._columns, self._grouping
        for piece in pieces(span):
            rows, ends = grouping.row[piece.start : piece.stop], grouping.start[piece.start : piece.stop + 1]
            if isinstance(columns.images, ImagePaths):
                digest.strings(columns.images.names.take(pa.array(rows)))
            else:
                columns.images.digest(digest, rows)
            if not texts:
                continue
            digest.numbers(np.diff(ends))
            numbers = np.arange(ends[0], ends[-1])
            numbers = numbers if grouping.text_order is None else grouping.text_order[numbers]
            digest.strings(columns.texts.take(pa.array(numbers)))
            for column in (columns.ids, *columns.meta.values()):
                if column is not None:
                    digest.strings(column.take(pa.array(rows)))
        for index in spread(span, MOST_SIZES) if isinstance(columns.images, ImagePaths) else ():
            try:
                digest.image_size(Sample(*columns.images[int(grouping.row[index])]))
            except BrokenSample as broken:
                digest.broken(broken)

    def describe(self) -> dict[str, Any]:
        columns = self._columns
        return {
            "kind": self.kind,
            "name": self.name,
            "num_samples": len(self),
            "num_rows": columns.num_rows,
            "num_texts": len(columns.texts),
            "num_bad_rows": len(self.bad_rows),
            "columns": columns.names,
        }


def open_records(path: Path, config: SourceConfig, *further: Path) -> TableSource:
    """Open a JSONL, CSV, TSV or JSON captions file.

    Args:
        further: more files of its rows, as where a file is published in numbered parts.
    """
    rows: Iterator[Row] = chain.from_iterable(read_records(file, config) for file in (path, *further))
    rows = named_videos(rows, path.parent)
    if config.statements:
        rows = pair_images(rows, image_roots(config.image_root, str(path.parent)))
    if config.image_name:
        rows = name_images(rows, config.image_name)
    columns = _gather(rows, path, config)
    return TableSource(columns, config, kind=path.suffix[1:].lower())


def no_such_split(split: str, seen: Iterable[str], where: str) -> UserError:
    """Return the error that names the splits there are."""
    return UserError(f'{where} has no rows of split "{split}"{nearest(split, seen)}')


def _gather(rows: Iterator[Row], path: Path, config: SourceConfig) -> Columns:
    head = first_rows(rows, path)
    seen = list(dict.fromkeys(name for _, row in head if isinstance(row, dict) for name in row))
    if not seen:
        broken = next((row for _, row in head if isinstance(row, BrokenSample)), None)
        why = f" ({broken.key}: {broken.detail})" if broken else ""
        raise UserError(f"{path} has no rows that can be read{why}")
    names = choose_columns(seen, config, str(path))
    images = [_Strings(paths=True) for _ in range(config.num_images)]
    texts, ids = _Strings(), _Strings(paths=True)
    meta = {name: _Strings() for name in config.meta_columns}
    text_row = array("q")
    bad_rows: list[BrokenSample] = []
    splits: set[str] = set()
    repeats = Repeats()
    wanted = _KARPATHY_TRAIN if config.split == "train" and path.suffix == ".json" else {config.split}
    for label, row in chain(head, rows):
        if isinstance(row, BrokenSample):
            bad_rows.append(row)
            continue
        split = row.get("split")
        if config.split and not (isinstance(split, str) and split in wanted):
            splits.add(str(split))
            continue
        try:
            paths = row_paths(row, image_columns(names), label, count=config.num_images)
            found = row_texts(row, names, label, need_answers=config.need_answers)
        except BrokenSample as broken:
            bad_rows.append(broken)
            continue
        if not (config.questions or config.statements):  # which have ids that a measure looks at
            repeats.add(len(images[0]), row, paths, found)
        for text in found:
            texts.append(text)
            text_row.append(len(images[0]))
        for column, name in zip(images, paths, strict=True):
            column.append(name)
        if "id" in names:
            ids.append(given_id(row.get(names["id"])))
        for name, cells in meta.items():
            cells.append(json.dumps(row.get(name), ensure_ascii=False))
    if splits and not len(images[0]):
        raise no_such_split(config.split, splits, str(path))
    roots = image_roots(config.image_root, str(path.parent))
    located = ImagePaths([column.finish() for column in images], roots, absolute=config.absolute_paths)
    columns = Columns(
        images=located,
        texts=texts.finish(),
        text_row=np.array(text_row, dtype=np.int64),
        num_rows=len(located.names),
        ids=image_ids(ids.finish(), located.names) if "id" in names else located.same_names(),
        meta={name: cells.finish() for name, cells in meta.items()},
        names=names,
        bad_rows=bad_rows,
    )
    return _without(columns, repeats.found(), path.name)


def _without(columns: Columns, rows: np.ndarray, file: str) -> Columns:
    """The columns without `rows`, which repeat others and are told as bad rows."""
    if not len(rows):
        return columns
    images = columns.images
    columns.bad_rows += repeated_images(rows, lambda row: string_of(images.names[row]), file)
    keep = np.ones(columns.num_rows, bool)
    keep[rows] = False
    mask, of_kept = pa.array(keep), keep[columns.text_row]
    return replace(
        columns,
        images=ImagePaths([one.filter(mask) for one in images.columns], images.roots, absolute=images.absolute),
        texts=columns.texts.filter(pa.array(of_kept)),
        text_row=(np.cumsum(keep) - 1)[columns.text_row[of_kept]],
        num_rows=int(keep.sum()),
        ids=None if columns.ids is None else columns.ids.filter(mask),
        meta={name: cells.filter(mask) for name, cells in columns.meta.items()},
    )


class _Strings:
    """A list of strings that is packed into Arrow as it grows."""

    def __init__(self, *, paths: bool = False) -> None:
        self._paths = paths
        self._open: list[str] = []
        self._parts: list[pa.Array] = []

    def __len__(self) -> int:
        return len(self._open) + _CHUNK * len(self._parts)

    def append(self, text: str) -> None:
        self._open.append(text)
        if len(self._open) == _CHUNK:
            self._parts.append(string_array(self._open, paths=self._paths))
            self._open.clear()

    def finish(self) -> pa.Array:
        return pa.concat_arrays([*self._parts, string_array(self._open, paths=self._paths)])


def row_paths(row: Mapping[str, Any], columns: Sequence[str], label: str, *, count: int) -> tuple[str, ...]:
    """The paths of the `count` images of a row.

    Raises:
        BrokenSample: "bad-row", there is none, or another number.
    """
    cells = [row.get(column) for column in columns]
    images = row_images(cells, columns, label, count=count)
    paths = tuple(image for image in images if isinstance(image, str))
    if len(paths) < count:
        raise BrokenSample("bad-row", label, f'no path under "{columns[0]}": {cells[0]!r:.200}')
    return paths


def row_texts(
    row: Mapping[str, Any], names: Mapping[str, str], label: str, *, need_answers: bool = True
) -> tuple[str, ...]:
    """The captions of a row, or its questions or its statement as JSON.

    Args:
        need_answers: refuse questions without answers and statements without labels.

    Raises:
        BrokenSample: "bad-row", a question without answers or a statement without a label; "bad-text", a caption
            that is not UTF-8.
    """
    if "question" in names:
        return question_texts(row, names, label, need_answers=need_answers)
    if "statement" in names:
        return statement_texts(row, names, label, need_label=need_answers)
    try:
        return as_texts(row.get(names["caption"])) if "caption" in names else ()
    except BrokenSample as broken:
        raise BrokenSample(broken.cause, label, broken.detail) from broken


def choose_columns(seen: Sequence[str], config: SourceConfig, where: str) -> dict[str, str]:
    """Return which of the columns `seen` hold which role.

    Roles are "image" (and "image2", ... where each image of a sample has its column), "id", and "caption", or
    "question" and "answer", or "statement" and "label". See `find_column`.
    """
    names = _choose_images(seen, config, where)
    known = {name.strip().lower(): name for name in seen}
    if config.questions:
        names |= _question_columns(seen, config, where)
    elif config.statements:
        names["statement"] = find_column(config.text_column, STATEMENT_COLUMNS, seen, what="statement", where=where)
        if config.need_answers or config.answer_column or not known.keys().isdisjoint(LABEL_COLUMNS):
            names["label"] = find_column(config.answer_column, LABEL_COLUMNS, seen, what="label", where=where)
        if IDENTIFIER in known:
            names["identifier"] = known[IDENTIFIER]
    elif config.need_texts or config.text_column or not known.keys().isdisjoint(TEXT_COLUMNS):
        names["caption"] = find_column(config.text_column, TEXT_COLUMNS, seen, what="caption", where=where)
    if config.id_column:
        names["id"] = find_column(config.id_column, (), seen, what="id", where=where)
    elif guess := next((known[name] for name in ID_COLUMNS if name in known), None):
        names["id"] = guess
    for name in config.meta_columns:
        find_column(name, (), seen, what="meta", where=where)
    if config.split:
        find_column("split", (), seen, what="split", where=where)
    return names


def image_columns(names: Mapping[str, str]) -> list[str]:
    """The columns of images among those that `choose_columns` found, in their order."""
    return [column for role, column in names.items() if role.startswith("image")]


def _choose_images(seen: Sequence[str], config: SourceConfig, where: str) -> dict[str, str]:
    known = {name.strip().lower(): name for name in reversed(seen)}
    wanted = [config.image_column] if config.image_column in seen else config.image_column.split(",")
    count = config.num_images
    if len(wanted) not in (1, count):
        images = f"{count} image{'s' * (count > 1)}"
        raise UserError(f"{where}: image_column names {len(wanted)} columns, and a sample has {images} here")
    if count > 1 and not config.image_column:
        numbered = [[f"{stem}{n + first}" for n in range(count)] for stem in _NUMBERED for first in (0, 1)]
        usual = [names for names in (*numbered, *_SIDES) if len(names) == count and known.keys() >= set(names)]
        wanted = [known[name] for name in usual[0]] if usual else wanted
    guesses = IMAGE_COLUMNS if count == 1 else ("images", *IMAGE_COLUMNS)
    found = [find_column(name, guesses, seen, what="image", where=where) for name in wanted]
    return {f"image{number if number > 1 else ''}": column for number, column in enumerate(found, 1)}


def _question_columns(seen: Sequence[str], config: SourceConfig, where: str) -> dict[str, str]:
    known = {name.strip().lower(): name for name in seen}
    question = find_column(config.text_column, QUESTION_COLUMNS, seen, what="question", where=where)
    names = {"question": question}
    holding = question.strip().lower() in HOLDING_ANSWERS  # which have their answers with them
    here = config.need_answers or not known.keys().isdisjoint(ANSWER_COLUMNS)
    if config.answer_column or (here and not holding):
        names["answer"] = find_column(config.answer_column, ANSWER_COLUMNS, seen, what="answer", where=where)
    if weight := next((known[name] for name in WEIGHT_COLUMNS if name in known), ""):
        names["weight"] = weight
    return names | {name: known[name] for name in ABOUT_COLUMNS if name in known}
