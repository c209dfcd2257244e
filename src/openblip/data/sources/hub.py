"""Hugging Face datasets as a source: a folder that `save_to_disk` wrote, or a name on the hub.

Pictures stay encoded (the `datasets` library is told not to decode), so they go through the same checks as
any other, and rows stay in the library's memory-mapped files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from openblip.core.errors import UserError, nearest, require
from openblip.data.sample import BrokenSample, Sample
from openblip.data.sources.base import Source, SourceConfig
from openblip.data.sources.digest import Digest, pieces
from openblip.data.sources.table import choose_columns, row_texts

__all__ = ["HubSource"]


class HubSource(Source):
    """Rows of a Hugging Face dataset; needs the extra "datasets".

    Args:
        name: a folder or a hub name.
        split: "" takes the only split there is.
    """

    def __init__(self, name: str, split: str, config: SourceConfig) -> None:
        super().__init__()
        datasets = require("datasets", "datasets")
        self.name = config.name or config.path
        self._config = config
        data = _load(datasets, name, split)
        self._columns = choose_columns(data.column_names, _guided(datasets, data, config), f"hf:{name}")
        image = self._columns["image"]
        if isinstance(data.features[image], datasets.Image):
            data = data.cast_column(image, datasets.Image(decode=False))
        kept = [*dict.fromkeys([*self._columns.values(), *config.meta_columns])]
        self._rows = data.select_columns(kept)

    def text_counts(self) -> np.ndarray:
        kept = [
            self._columns[role] for role in ("caption", "question", "answer", "weight") if role in self._columns
        ]
        if not kept:
            return np.zeros(len(self), np.int64)

        def count(row: dict[str, Any]) -> int:
            try:
                return len(row_texts(row, self._columns, ""))
            except BrokenSample:
                return 0

        return np.fromiter(map(count, self._rows.select_columns(kept)), np.int64, len(self))

    def __len__(self) -> int:
        return len(self._rows)

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        image = self._columns["image"]
        kept = [name for name in self._rows.column_names if name != image] if texts else []
        # Where the library keeps a choice of rows, reading their images would copy them all.
        kept += [image] if self._rows._indices is None else []
        for piece in pieces(span, 10_000) if kept else ():
            table = self._rows.select_columns(kept).with_format("arrow")[piece.start : piece.stop]
            for name in kept:
                digest.strings(table[name]) if name != image else digest.images(table[name])

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        key = image_id = str(index)
        if "id" in self._columns:
            image_id = str(row[self._columns["id"]])
        image = row[self._columns["image"]]
        if isinstance(image, dict):
            image = image["bytes"] if image.get("bytes") else image.get("path")
        if isinstance(image, str):
            image = Path(image)
        if image is None:
            raise BrokenSample("missing", key, "the row holds no picture")
        texts = row_texts(row, self._columns, key)
        meta = {name: row[name] for name in self._config.meta_columns}
        return Sample(key=key, image=image, texts=texts, image_id=image_id, meta=meta)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "kind": "hf", "columns": self._columns}


def _load(datasets: Any, name: str, split: str) -> Any:
    """Return one split as a `datasets.Dataset`."""
    try:
        if Path(name).is_dir() and _is_saved(Path(name)):
            data = datasets.load_from_disk(name)
        else:
            data = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # its errors share no closer base
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the Hugging Face dataset {name} cannot be opened: {first}") from error
    if not isinstance(data, dict):
        if split:
            raise UserError(f'the dataset {name} has no splits, so "{split}" cannot be chosen')
        return data
    if not split and len(data) == 1:
        return next(iter(data.values()))
    if split not in data:
        ask = f'no split "{split}"{nearest(split, data)}' if split else f"several splits: {', '.join(data)}"
        raise UserError(f"the dataset {name} has {ask}; choose one as hf:{name}:SPLIT")
    return data[split]


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _guided(datasets: Any, data: Any, config: SourceConfig) -> SourceConfig:
    """Return settings for choosing columns: the only column of pictures where none is named."""
    pictures = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    column = pictures[0] if len(pictures) == 1 else ""
    return replace(config, split="", image_column=config.image_column or column)  # the split is chosen by now
