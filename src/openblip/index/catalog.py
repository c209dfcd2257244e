"""The truth of an index, in a database: which images it holds, what is known of each, and where its vector lies.

A vector counts once a row names it: vectors are written first, the row is committed after them, and what lies
behind the last vector that a row names is overwritten by the next writer. So a process may be killed at any moment.

Paths are bytes, as a file system has them. Removed images keep their row and their vector: a file that comes back
with the same content is not computed again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from openblip.core.errors import UserError, first_line
from openblip.data.sample import BrokenSample
from openblip.index.database import Database
from openblip.index.filters import Filters

__all__ = ["Catalog", "Record", "now", "remove"]

_FORMAT = "1"
_COLUMNS = (
    *("id", "path", "place", "file", "start", "length", "size"),
    *("modified", "hash", "look", "vector", "date", "metadata", "removed"),
)
_AT_ONCE = 500
"""values in one IN (...); older SQLite takes 999"""


@dataclass(slots=True)
class Record:
    """An image of an index."""

    path: str
    """names it: the path of its file, or TAR/KEY"""
    place: int
    file: str
    """that holds it"""
    start: int | None
    """where it begins in a tar, None for a file of its own"""
    length: int | None
    size: int
    """bytes of the image"""
    modified: int
    """time of the file, in nanoseconds"""
    hash: str = ""
    """of the content"""
    look: int = 0
    """perceptual hash, 64 bits (`duplicates.difference_hashes`)"""
    vector: int = -1
    """which of the vectors is its own; images of equal content share one"""
    date: str = ""
    """when it was taken, or else modified: "2024-05-01 12:30:00", local time"""
    metadata: dict[str, Any] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    removed: str | None = None
    """when it was found gone or was removed"""
    id: int = 0


class Catalog:
    """The images of an index; may be used by several threads.

    Args:
        create: settings of a new index, where there is none yet.

    Raises:
        UserError: there is no index, it is of another version, or its tables are damaged.
    """

    def __init__(self, database: Database, create: dict[str, Any] | None = None) -> None:
        self.database = database
        try:
            if not database.holds_index():
                if create is None:
                    raise UserError(f"{database.name} holds no index; build it first (openblip index build)")
                with database.transaction():
                    database.create(tuple(create["shape"]))
                    settings = {"format": _FORMAT, **create}
                    database.many(
                        "INSERT INTO settings VALUES (?, ?)", [(k, json.dumps(v)) for k, v in settings.items()]
                    )
            self.settings: dict[str, Any] = {
                name: json.loads(value) for name, value in database.rows("SELECT name, value FROM settings")
            }
        except database.errors as error:
            self.close()
            cause = f"{database.name} cannot be read ({first_line(error)})"
            raise UserError(f"{cause}; remove it and build the index again") from error
        if self.settings.get("format") != _FORMAT:
            self.close()
            cause = f"{database.name} is of another version of OpenBLIP"
            raise UserError(f"{cause}; remove it and build the index again")

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    # Reading ----------------------------------------------------------------------------------------------

    @property
    def num_vectors(self) -> int:
        """How many vectors count."""
        last = self.database.rows("SELECT max(vector) FROM images")[0][0]
        return 0 if last is None else last + 1

    def count(self, *, removed: bool = False) -> int:
        """Images that are in the index, or that were removed."""
        return int(
            self.database.rows(f"SELECT count(*) FROM images WHERE removed IS {'NOT' if removed else ''} NULL")[0][
                0
            ]
        )

    def place(self, spec: str) -> int:
        """The number of a place where images come from; a new one gets its own."""
        name, query = (os.fsencode(spec),), "SELECT id FROM places WHERE spec = ?"
        found = self.database.rows(query, name)
        if not found:
            self.database.run("INSERT INTO places (spec) VALUES (?)", name)
            found = self.database.rows(query, name)
        return int(found[0][0])

    def places(self) -> list[str]:
        """All specs that images came from, in order of their first use."""
        return [os.fsdecode(spec) for (spec,) in self.database.rows("SELECT spec FROM places ORDER BY id")]

    def find(self, path: str) -> Record | None:
        """The image of that path, removed or not."""
        return next(iter(self._select("path = ?", [os.fsencode(path)])), None)

    def with_hash(self, content: str) -> Record | None:
        """An image of that content, removed or not."""
        return next(iter(self._select("hash = ? LIMIT 1", [content])), None)

    def by_ids(self, ids: Sequence[int]) -> dict[int, Record]:
        """Images by their ids."""
        return {record.id: record for record in self._in("id", ids)}

    def by_vectors(self, vectors: Sequence[int], filters: Filters | None = None) -> dict[int, list[Record]]:
        """The images in the index with these vectors that pass the filters, by vector."""
        found: dict[int, list[Record]] = {}
        where, values = (filters or Filters()).where(self.database)
        for record in self._in("vector", vectors, f" AND {where}", values):
            found.setdefault(record.vector, []).append(record)
        return found

    def vectors(self, filters: Filters | None = None) -> list[int]:
        """Numbers of the vectors of the images in the index that pass the filters."""
        where, values = (filters or Filters()).where(self.database)
        return [vector for (vector,) in self.database.rows(f"SELECT vector FROM images WHERE {where}", values)]

    def blocks(self, count: int, filters: Filters | None = None) -> Iterator[list[Record]]:
        """The images in the index that pass the filters, so many at a time, in the order they came."""
        where, values = (filters or Filters()).where(self.database)
        last = 0
        while records := self._select(f"{where} AND id > ? ORDER BY id LIMIT ?", [*values, last, count]):
            yield records
            last = records[-1].id

    def ids_of_place(self, place: int) -> set[int]:
        """Ids of the images that came from a place and are in the index."""
        found = self.database.rows("SELECT id FROM images WHERE place = ? AND removed IS NULL", (place,))
        return {number for (number,) in found}

    def ids_at(self, name: str) -> set[int]:
        """Ids of the image at a path, or of all that lie in a folder or tar."""
        where, values = Filters(folder=name).where(self.database)
        found = self.database.rows(f"SELECT id FROM images WHERE {where}", values)
        found += self.database.rows(
            "SELECT id FROM images WHERE removed IS NULL AND path = ?", (os.fsencode(os.path.abspath(name)),)
        )
        return {number for (number,) in found}

    def broken(self) -> list[BrokenSample]:
        """Images that could not be read when they were last looked at."""
        found = self.database.rows("SELECT path, cause, detail FROM broken ORDER BY path")
        return [BrokenSample(cause, os.fsdecode(path), detail) for path, cause, detail in found]

    def _in(
        self, column: str, numbers: Sequence[int], more: str = "", values: Sequence[Any] = ()
    ) -> Iterator[Record]:
        for start in range(0, len(numbers), _AT_ONCE):
            part = [int(number) for number in numbers[start : start + _AT_ONCE]]
            where = f"{column} IN ({', '.join('?' * len(part))}){more} ORDER BY images.id"
            yield from self._select(where, [*part, *values])

    def _select(self, where: str, values: Sequence[Any]) -> list[Record]:
        """Images by a condition, with their captions."""
        columns = ", ".join(f"images.{name}" for name in _COLUMNS)
        statement = f"SELECT {columns}, captions.text FROM images LEFT JOIN captions ON captions.rowid = images.id"
        return [_record(row) for row in self.database.rows(f"{statement} WHERE {where}", values)]

    # Writing ----------------------------------------------------------------------------------------------

    def put(self, record: Record) -> int:
        """Write an image, in place of the one of its path; returns its id."""
        path = os.fsencode(record.path)
        values = (
            *(path, record.place, os.fsencode(record.file), record.start, record.length),
            *(record.size, record.modified, record.hash, record.look, record.vector, record.date),
            *(json.dumps(_plain(record.metadata), default=str), record.removed),
        )
        names = _COLUMNS[1:]
        changed = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        with self.database.transaction():
            self.database.run(
                f"INSERT INTO images ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
                f"ON CONFLICT (path) DO UPDATE SET {changed}",
                values,
            )
            record.id = self.database.rows("SELECT id FROM images WHERE path = ?", (path,))[0][0]
            self.database.run("DELETE FROM captions WHERE rowid = ?", (record.id,))
            if record.captions:
                self.database.put_captions(record.id, "\n".join(map(_text, record.captions)))
            self.database.run("DELETE FROM broken WHERE path = ?", (path,))
        return record.id

    def put_broken(self, broken: BrokenSample, place: int) -> None:
        """Note an image that cannot be read; the detail may repeat a name that is not UTF-8."""
        values = (os.fsencode(broken.key), place, broken.cause, _text(broken.detail))
        self.database.run(
            "INSERT INTO broken VALUES (?, ?, ?, ?) ON CONFLICT (path) "
            "DO UPDATE SET place = excluded.place, cause = excluded.cause, detail = excluded.detail",
            values,
        )

    def forget_broken(self, place: int) -> None:
        """Forget what could not be read at a place, before it is looked at again."""
        self.database.run("DELETE FROM broken WHERE place = ?", (place,))

    def remove(self, ids: Iterable[int], when: str) -> None:
        """Mark images as removed."""
        self.database.many("UPDATE images SET removed = ? WHERE id = ?", [(when, number) for number in ids])


def remove(catalog: Catalog, names: Sequence[str]) -> int:
    """Mark images of an index as removed: files, or all that lie in folders or tars; returns how many.

    Raises:
        UserError: the index holds nothing of that name, or another process is writing to it.
    """
    with catalog.database.writing():
        ids: set[int] = set()
        for name in names:
            if not (found := catalog.ids_at(name)):
                raise UserError(f"the index {catalog.database.name} holds no image at {name}")
            ids |= found
        catalog.remove(ids, now())
    return len(ids)


def now() -> str:
    """The local time, "2024-05-01 12:30:00"."""
    return datetime.now().isoformat(" ", "seconds")


def _record(row: Sequence[Any]) -> Record:
    """Of the values of `_COLUMNS` and the captions."""
    *values, text = row
    found = dict(zip(_COLUMNS, values, strict=True))
    found |= {name: os.fsdecode(found[name]) for name in ("path", "file")}
    found["metadata"] = json.loads(found["metadata"])
    return Record(**found, captions=tuple(text.split("\n")) if text else ())


def _plain(value: Any) -> Any:
    """Metadata as JSON has them: no database takes NaN, and PostgreSQL no NUL."""
    if isinstance(value, dict):
        return {_text(str(name)): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode()
