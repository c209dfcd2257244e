"""Hugging Face datasets as a source: a folder that `save_to_disk` wrote, or a name on the hub.

    hf:NAME    hf:NAME:SPLIT    hf:NAME:CONFIGURATION:SPLIT

Images stay encoded (the `datasets` library is configured not to decode), so they go through the same checks as
any other, and rows stay in the library's memory-mapped files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from huggingface_hub.constants import HF_HUB_CACHE

from openblip.core.errors import UserError, first_line, nearest, require
from openblip.core.places import local_path
from openblip.data.sample import BrokenSample, ImageLike, Sample
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import COLUMN_SETTINGS, Source, string_array
from openblip.data.sources.cells import is_missing, row_images
from openblip.data.sources.digest import Digest, pieces
from openblip.data.sources.identity import id_strings, image_name, settle_ids
from openblip.data.sources.paths import image_roots, locate_image
from openblip.data.sources.table import choose_columns, image_columns, row_texts

__all__ = ["HubSource"]

_SPLIT_COLUMN = "split"


class HubSource(Source):
    """Rows of a Hugging Face dataset; needs the extra "datasets".

    Args:
        name: a folder or a hub name, with ":CONFIGURATION:SPLIT" or ":SPLIT" behind it where these are chosen.
        config: its `split` chooses a split, and within it the rows whose own column `split` says so.
    """

    reads = frozenset(
        (*COLUMN_SETTINGS, "split", "image_root", "absolute_paths", "questions", "statements", "num_images")
    )

    def __init__(self, name: str, config: SourceConfig) -> None:
        super().__init__()
        datasets = require("datasets", "datasets")
        self.name = config.name or config.path
        self._config = config
        self.num_images = config.num_images
        data, self._own_split, place = _load(datasets, name, config.split)
        self._columns = choose_columns(data.column_names, _guided(datasets, data, config), f"hf:{place}")
        self._images = image_columns(self._columns)
        for image in self._images:
            if _holds_images(datasets, data.features[image]):
                data = data.cast_column(image, _undecoded(datasets, data.features[image]))
        folder = place if Path(place).is_dir() else ""
        self._roots = image_roots(config.image_root, folder) if config.image_root or folder else ()
        self._caches = _caches(datasets)
        kept = [*dict.fromkeys([*self._columns.values(), *config.meta_columns])]
        self._rows = data.select_columns(kept)
        self._ids = self._settled_ids() if "id" in self._columns else None

    def _settled_ids(self) -> pa.Array:
        ids = id_strings(_column(self._rows, self._columns["id"]))
        images = self._rows.select_columns(self._images)

        def names_of(rows: np.ndarray) -> list[str]:
            return [self._name(images[int(row)], int(row)) for row in rows]

        return settle_ids(ids, names_of)

    def text_counts(self) -> np.ndarray:
        roles = (role for role in self._columns if role != "id" and not role.startswith("image"))
        kept = list(dict.fromkeys(self._columns[role] for role in roles))
        if not kept:
            return np.zeros(len(self), np.int64)

        def count(row: dict[str, Any]) -> int:
            try:
                return len(row_texts(row, self._columns, "", need_answers=self._config.need_answers))
            except BrokenSample:
                return 0

        return np.fromiter(map(count, self._rows.select_columns(kept)), np.int64, len(self))

    def __len__(self) -> int:
        return len(self._rows)

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        kept = [name for name in self._rows.column_names if name not in self._images] if texts else []
        # Where the library keeps a choice of rows, reading their images would copy them all.
        kept += self._images if self._rows._indices is None else []
        for piece in pieces(span, 10_000) if kept else ():
            table = self._rows.select_columns(kept).with_format("arrow")[piece.start : piece.stop]
            for name in kept:
                digest.strings(table[name]) if name not in self._images else digest.images(table[name])

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        key = str(index)
        given = self._given(row, key)
        if not given:
            raise BrokenSample("missing", key, "the row holds no image")
        images: tuple[ImageLike, ...] = tuple(self._located(i, key) if isinstance(i, str) else i for i in given)
        image_id = key if any(isinstance(image, bytes) for image in given) else image_name(*given)
        if self._ids is not None:
            image_id = self._ids[index].as_py()
        texts = row_texts(row, self._columns, key, need_answers=self._config.need_answers)
        meta = {name: row[name] for name in self._config.meta_columns}
        return Sample(key=key, images=images, texts=texts, image_id=image_id, meta=meta)

    def _given(self, row: Mapping[str, Any], key: str) -> tuple[bytes | str, ...]:
        cells = [row[column] for column in self._images]
        return row_images(cells, self._images, key, count=self.num_images)

    def _name(self, row: Mapping[str, Any], number: int) -> str:
        try:
            return image_name(*self._given(row, str(number))) or f"row {number}"
        except BrokenSample:
            return f"row {number}"

    def _located(self, name: str, key: str) -> Path:
        """The library gives absolute paths into its caches; others start from the data set's folder.

        A data set of the hub is another's file: its rows must not name what else is on this machine.
        """
        place = local_path(name)
        if os.path.isabs(place):
            roots = (*self._roots, *self._caches)
            return locate_image(name, roots, key=key, absolute=self._config.absolute_paths)
        if not self._roots and "://" not in place:
            raise BrokenSample("bad-row", key, f"{name} starts from no folder; name one as image_root")
        return locate_image(name, self._roots, key=key, absolute=False)

    def describe(self) -> dict[str, Any]:
        own = {"rows_by_own_split": self._own_split} if self._own_split else {}
        return {**super().describe(), "kind": "hf", "columns": self._columns, **own}


def _caches(datasets: Any) -> tuple[str, ...]:
    """Folders in which the library keeps what it has downloaded and unpacked."""
    known = datasets.config
    places = (known.HF_DATASETS_CACHE, known.DOWNLOADED_DATASETS_PATH, known.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE)
    return tuple(dict.fromkeys(os.path.abspath(os.path.expanduser(place)) for place in places))


def _column(data: Any, name: str) -> pa.Array | pa.ChunkedArray:
    """A column in its rows' order."""
    if not len(data):
        return string_array([])
    return data.select_columns([name]).with_format("arrow")[:].column(name)


def _load(datasets: Any, name: str, setting: str) -> tuple[Any, str, str]:
    """Return the rows requested, the word of their own column `split` or "", and the name without choices."""
    place, parts = name, list[str]()
    while not Path(place).is_dir() and ":" in place and len(parts) < 2:
        place, _, last = place.rpartition(":")
        parts.insert(0, last)
    configuration, inline = ([""] * 2 + parts)[-2:]
    saved = Path(place).is_dir() and _is_saved(Path(place))
    if saved and configuration:
        raise UserError(f'the dataset {place} has no configurations, so "{configuration}" cannot be chosen')
    known: list[str] = []
    try:
        if saved:
            data = datasets.load_from_disk(place)
        else:
            data = datasets.load_dataset(place, *([configuration] if configuration else []))
    except Exception as error:  # its errors share no base, and those of its parsers come through
        known = [] if saved else _configurations(datasets, place)
        if len(known) < 2 or configuration in known:
            raise UserError(f"the Hugging Face dataset {place} cannot be opened: {first_line(error)}") from error
        if configuration or inline not in known:
            asked = f"several configurations: {', '.join(known)}"
            if configuration:
                asked = f'no configuration "{configuration}"{nearest(configuration, known)}'
            message = f"the dataset {place} has {asked}; choose one as hf:{place}:CONFIGURATION:SPLIT"
            raise UserError(message) from error
    else:
        unknown = isinstance(data, dict) and inline and inline not in data and not configuration and not saved
        if not unknown or inline not in (known := _configurations(datasets, place)):
            return *_choose(data, place, configuration, inline, setting), place
    return _load(datasets, f"{place}:{inline}:", setting)  # what was named is a configuration


def _choose(data: Any, place: str, configuration: str, inline: str, setting: str) -> tuple[Any, str]:
    """The split `inline`, or else `setting`; and in it the rows whose own column `split` says so, where it does."""
    word, split = setting or inline, ""
    if isinstance(data, dict):
        split = inline or setting
        only = next(iter(data)) if len(data) == 1 else ""
        if only and (not split or (split not in data and split in _own_splits(data[only]))):
            split = only
        if split not in data:
            ask = f'no split "{split}"{nearest(split, data)}' if split else f"several splits: {', '.join(data)}"
            inner = f"{configuration}:" if configuration else ""
            raise UserError(f"the dataset {place} has {ask}; choose one as hf:{place}:{inner}SPLIT")
        data = data[split]
    own = _own_splits(data) if word else []
    if word in own:
        if len(own) == 1:
            return data, ""
        cells = _column(data, _SPLIT_COLUMN).to_pylist()
        return data.select([row for row, cell in enumerate(cells) if cell == word]), word
    if not word or word == split:
        return data, ""
    if own:
        raise UserError(f'the dataset {place} has no rows of split "{word}"{nearest(word, own)}')
    raise UserError(
        f'the dataset {place} has no splits{" within " + split if split else ""}, so "{word}" cannot be chosen'
    )


def _own_splits(data: Any) -> list[str]:
    """What a data set's own column `split` says, empty where it has none."""
    if _SPLIT_COLUMN not in data.column_names:
        return []
    return [str(value) for value in data.unique(_SPLIT_COLUMN) if not is_missing(value)]


def _configurations(datasets: Any, name: str) -> list[str]:
    try:
        return list(datasets.get_dataset_config_names(name))
    except Exception:  # noqa: BLE001  as there is no such data set at all, which is reported already
        return []


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _holds_images(datasets: Any, feature: Any) -> bool:
    """Whether a feature is an image, or a list of them."""
    inner = getattr(feature, "feature", None)
    return isinstance(feature, datasets.Image) or (inner is not None and _holds_images(datasets, inner))


def _undecoded(datasets: Any, feature: Any) -> Any:
    """The feature of images, or of lists of them, that leaves them encoded."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    return type(feature)(_undecoded(datasets, feature.feature))


def _guided(datasets: Any, data: Any, config: SourceConfig) -> SourceConfig:
    """Return settings for choosing columns: the only column of images where none is named."""
    images = [name for name, feature in data.features.items() if _holds_images(datasets, feature)]
    column = images[0] if len(images) == 1 else ""
    return replace(config, split="", image_column=config.image_column or column)  # the split is chosen by now
