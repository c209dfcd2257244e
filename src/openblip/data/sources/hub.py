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
from openblip.data.sources.base import Source, SourceConfig, as_texts
from openblip.data.sources.table import choose_columns

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
        self._units: np.ndarray | None = None
        if config.pairs:
            texts = self._rows.select_columns([self._columns["caption"]])
            counts = np.array([max(1, len(as_texts(row[self._columns["caption"]]))) for row in texts], np.int64)
            owner = np.repeat(np.arange(len(counts)), counts)
            first = np.repeat(np.cumsum(counts) - counts, counts)
            self._units = np.stack([owner, np.arange(len(owner)) - first], axis=1)

    def __len__(self) -> int:
        return len(self._rows) if self._units is None else len(self._units)

    def __getitem__(self, index: int) -> Sample:
        row_number, text = (index, -1) if self._units is None else (int(n) for n in self._units[index])
        row = self._rows[row_number]
        key = image_id = str(row_number)
        if "id" in self._columns:
            image_id = str(row[self._columns["id"]])
        image = row[self._columns["image"]]
        if isinstance(image, dict):
            image = image["bytes"] if image.get("bytes") else image.get("path")
        if isinstance(image, str):
            image = Path(image)
        if image is None:
            raise BrokenSample("missing", key, "the row holds no picture")
        texts = as_texts(row[self._columns["caption"]]) if "caption" in self._columns else ()
        return Sample(
            key=key if text < 0 else f"{key}#{text}",
            image=image,
            texts=texts if text < 0 else texts[text : text + 1],
            image_id=image_id,
            meta={name: row[name] for name in self._config.meta_columns},
        )

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
    """Take the only column of pictures where none is named."""
    pictures = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if config.image_column or len(pictures) != 1:
        return config
    return replace(config, image_column=pictures[0])
