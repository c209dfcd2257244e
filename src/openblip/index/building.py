"""Building an index and keeping it up to date: what is new or changed is computed, what is gone is marked.

A file with the size and time it had is taken as it was; another one is read, and computed if its content is new.
Each batch is committed, so that a build that was killed resumes where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from openblip.core.errors import UserError
from openblip.core.fingerprint import short_hash
from openblip.data.image_inputs import ImageInput
from openblip.data.sample import BrokenSample
from openblip.index.address import is_address
from openblip.index.catalog import Catalog, Record, now
from openblip.index.duplicates import difference_hashes
from openblip.index.entries import Entry, Place, date_of, read_image
from openblip.index.image_index import ImageIndex
from openblip.index.model import model_fingerprint, source_of
from openblip.index.sqlite import CATALOG, LOCK
from openblip.index.stores import open_database
from openblip.tasks.predictor import Predictor

__all__ = ["Changes", "create", "update"]


@dataclass
class Changes:
    """What an update did."""

    added: int = 0
    changed: int = 0
    """images whose content is another one"""
    same: int = 0
    """images that needed nothing, or new captions at most"""
    removed: int = 0
    """images that are gone"""
    broken: list[BrokenSample] = field(default_factory=list)
    """images that cannot be used"""


def create(index: Path | str, predictor: Predictor, model: str, *, tokenizer: str = "") -> None:
    """Make an empty index, or leave the one that is there, if it is of the same model.

    Args:
        index: its folder, or its address in PostgreSQL.
        model: where the model is.

    Raises:
        UserError: the folder holds other things, or an index of another model, or the database cannot hold one.
    """
    predictor.adapter.need("embed")
    if not is_address(os.fspath(index)):
        _make_folder(Path(index))
    vectors = predictor.embed_images(np.zeros((8, 8, 3), np.uint8))
    with closing(open_database(index, create=True)) as database, database.writing():
        settings = {
            "fingerprint": model_fingerprint(predictor),
            "model": source_of(model),
            "tokenizer": source_of(tokenizer) if tokenizer else "",
            "shape": [vectors[0].numel() // vectors.shape[-1], vectors.shape[-1]],
            "created": now(),
        }
        Catalog(database, settings)
    ImageIndex.open(index, predictor).close()


def _make_folder(folder: Path) -> None:
    files = [file.name for file in folder.iterdir()] if folder.exists() else []
    if CATALOG not in files and any(not name.startswith(LOCK) for name in files):
        raise UserError(f"{folder} holds other files; name a new folder for the index")
    folder.mkdir(parents=True, exist_ok=True)


def update(index: ImageIndex, place: Place, *, progress: Callable[[int], None] = lambda done: None) -> Changes:
    """Bring an index up to date with a place.

    Args:
        progress: told how many images of the place are done.

    Raises:
        UserError: another process is writing to the index, it cannot be written to, or the disk is full.
    """
    catalog, store, predictor = index.catalog, index.store, index.predictor
    with catalog.database.writing():
        work = _Work(catalog, place)
        for sample in place.left_out:
            work.skip(sample)
        for batch in predictor.batches(work):
            for sample in batch.broken:
                work.skip(sample)
            if len(batch):
                vectors = predictor.embed_images(batch)
                looks = difference_hashes(batch.pixels)
                first = catalog.num_vectors
                store.append(vectors.reshape(-1, *store.shape), first)
                with catalog.database.transaction():
                    for row, name in enumerate(batch.names):
                        record, was_there = work.waiting.pop(name)
                        record.vector, record.look = first + row, looks[row]
                        work.put(record, was_there)
            progress(work.looked_at - len(work.waiting))
        work.remove_gone()
        store.settle()
        progress(len(place))
    return work.changes


class _Work:
    """Iterates over the images of a place that the model has to read; what needs no model is done on the way."""

    def __init__(self, catalog: Catalog, place: Place) -> None:
        self._catalog, self._place = catalog, place
        self._number = catalog.place(place.spec)
        self._before, self._seen = catalog.ids_of_place(self._number), set[int]()
        catalog.forget_broken(self._number)
        self.changes = Changes()
        self.waiting: dict[str, tuple[Record, bool]] = {}
        """images that are being computed, and whether their paths were in the index before"""
        self.looked_at = 0

    def put(self, record: Record, was_there: bool) -> None:
        """Write and count an image whose content is new at its path."""
        self._seen.add(self._catalog.put(record))
        self.changes.changed += was_there
        self.changes.added += not was_there

    def remove_gone(self) -> None:
        """Mark and count the images that were at the place before and were not seen."""
        gone = self._before - self._seen
        self._catalog.remove(gone, now())
        self.changes.removed = len(gone)

    def skip(self, broken: BrokenSample) -> None:
        """Count and list an image that cannot be used."""
        self.waiting.pop(broken.key, None)
        self.changes.broken.append(broken)
        self._catalog.put_broken(broken, self._number)

    def __iter__(self) -> Iterator[ImageInput]:
        for entry in self._place:
            self.looked_at += 1
            try:
                if isinstance(entry, BrokenSample):
                    raise entry
                data = self._unknown(entry)
            except BrokenSample as broken:
                self.skip(broken)
                continue
            if data is not None:
                yield ImageInput(entry.record.path, data)

    def _unknown(self, entry: Entry) -> bytes | None:
        """The bytes of an image that the model has to read; None where the index has what it needs."""
        new = entry.record
        if new.path in self.waiting:
            return None  # named twice
        new.place = self._number
        known = self._catalog.find(new.path)
        if known is not None and known.id in self._seen:
            return None
        file = (new.file, new.start, new.length, new.size, new.modified)
        if known is not None and file == (known.file, known.start, known.length, known.size, known.modified):
            self._again(entry, known, known)
            return None
        data = read_image(new)
        new.hash, new.date = short_hash(data), date_of(data, new.modified)
        if known is not None and known.hash == new.hash:
            self._again(entry, new, known)
            return None
        new.captions, new.metadata = entry.describe()
        was_there = known is not None and known.removed is None
        twin = self._catalog.with_hash(new.hash)
        if twin is None:
            self.waiting[new.path] = new, was_there
            return data
        new.vector, new.look = twin.vector, twin.look
        self.put(new, was_there)
        return None

    def _again(self, entry: Entry, new: Record, known: Record) -> None:
        """An image whose content is known: its captions may be new, and it may be back."""
        texts, metadata = entry.describe()
        self.changes.same += known.removed is None
        self.changes.added += known.removed is not None
        self._seen.add(known.id)
        same = new is known and known.place == self._number and known.removed is None
        if same and texts == known.captions and metadata == known.metadata:
            return
        new.place, new.captions, new.metadata = self._number, texts, metadata
        new.vector, new.look, new.removed = known.vector, known.look, None
        self._catalog.put(new)
