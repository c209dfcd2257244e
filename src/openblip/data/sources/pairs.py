"""Single pairs of an image and a text, in the order of their file, each with the id of its row.

Other sources gather all texts of an image in one sample; whoever scores pairs wants a result for each row, where it
stands. Columns are found, and images located, as for a source; what is no table of rows is read sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openblip.core.errors import UserError, first_line
from openblip.core.places import local_path
from openblip.data.sample import BrokenSample, ImageLike
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources.base import refuse_unread
from openblip.data.sources.cells import given_texts, is_missing, row_images
from openblip.data.sources.open import open_source
from openblip.data.sources.paths import image_roots, locate_image
from openblip.data.sources.records import RECORDS, Row, first_rows, read_records
from openblip.data.sources.table import choose_columns, image_columns

__all__ = ["ID_OF_ROW", "Pair", "read_pairs"]

ID_OF_ROW = ("id", "key", "identifier", "uid", "pair_id")
"""usual columns of a row's id, unless `id_column` names another"""
_READS = frozenset(("image_column", "text_column", "id_column", "image_root", "absolute_paths", "split"))


@dataclass(frozen=True, slots=True)
class Pair:
    """An image, not decoded yet, and one text."""

    row: int
    """of the file, from 0; those that cannot be read count"""
    id: str | int | None
    """what the row calls itself"""
    name: str
    """of the image, as the file has it; the row's place for one that is inside the file"""
    image: ImageLike
    text: str
    place: str
    """for messages, such as "pairs.jsonl line 7" """


def read_pairs(spec: SourceConfig | str) -> Iterator[Pair | BrokenSample]:
    """The pairs of a file (JSON lines, JSON, CSV, TSV, parquet) or of any other source, one after the other.

    A row with several texts gives several pairs. What cannot be read comes as a `BrokenSample` in its place.

    Raises:
        UserError: nothing is there, or a column is missing.
    """
    config = parse_spec(spec) if isinstance(spec, str) else spec
    path = Path(local_path(config.path)).expanduser()
    parquet = path.suffix.lower() == ".parquet"
    if not path.is_file() or not (parquet or path.suffix.lower() in RECORDS):
        yield from _of_samples(config)
        return
    refuse_unread(config, _READS, config.path)
    rows = _parquet_rows(path) if parquet else read_records(path, config)
    head = first_rows(rows, path)
    seen = list(dict.fromkeys(name for _, row in head if isinstance(row, dict) for name in row))
    if not seen:
        broken = next((row for _, row in head if isinstance(row, BrokenSample)), None)
        raise UserError(f"{path} has no rows that can be read{f' ({broken})' if broken else ''}")
    names = choose_columns(seen, config, str(path))
    own = [config.id_column] if config.id_column else [name for name in seen if name.strip().lower() in ID_OF_ROW]
    images, roots = image_columns(names), image_roots(config.image_root, str(path.parent))
    for number, (place, row) in enumerate(chain(head, rows)):
        if isinstance(row, BrokenSample):
            yield row
        elif not config.split or row.get("split") == config.split:
            try:
                name, image = _image(row, images, place, roots, absolute=config.absolute_paths)
                texts = given_texts(row.get(names["caption"]))
                if not texts:
                    raise BrokenSample("no-text", place, f'no text under "{names["caption"]}"')
            except BrokenSample as broken:
                yield BrokenSample(broken.cause, place, broken.detail)
                continue
            called = next((_id(row.get(column)) for column in own), None)
            yield from (Pair(number, called, name, image, text, place) for text in texts)


def _id(value: Any) -> str | int | None:
    return None if is_missing(value) else value if isinstance(value, int) else str(value)


def _image(
    row: dict[str, Any], columns: list[str], place: str, roots: tuple[str, ...], *, absolute: bool
) -> tuple[str, ImageLike]:
    found = row_images([row.get(column) for column in columns], columns, place)
    if not found:
        raise BrokenSample("bad-row", place, f'no image under "{columns[0]}"')
    if isinstance(found[0], bytes):
        return place, found[0]
    return found[0], locate_image(found[0], roots, key=place, absolute=absolute)


def _parquet_rows(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    yield f"{path.name} row {number}", row
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as parquet: {first_line(error)}") from error


def _of_samples(config: SourceConfig) -> Iterator[Pair | BrokenSample]:
    source = open_source(config)
    yield from list(source.bad_rows)  # it may note more of them while it is read
    for number in range(len(source)):
        try:
            sample = source[number]
            image, texts = sample.image, sample.texts
            if not texts:
                raise BrokenSample("no-text", sample.key, "there is no text for it")
        except BrokenSample as broken:
            yield broken
            continue
        yield from (Pair(number, sample.key, sample.key, image, text, sample.key) for text in texts)
