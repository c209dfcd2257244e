"""The truth of an index, in SQLite: which images it holds, what is known of each, and where its vector lies.

A vector counts once a row names it: vectors are written first, the row is committed after them, and what lies
behind the last vector that a row names is overwritten by the next writer. So a process may be killed at any moment.

Paths are bytes, as a file system has them. Removed images keep their row and their vector: a file that comes back
with the same content is not computed again.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.index.filters import Filters

__all__ = ["CATALOG", "LOCK", "Catalog", "Record", "check_index", "now", "remove", "writing"]

CATALOG = "index.sqlite"
_FORMAT = "1"
LOCK = "writer.lock"
_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE places (id INTEGER PRIMARY KEY, spec BLOB UNIQUE NOT NULL);
CREATE TABLE images (
    id INTEGER PRIMARY KEY,
    path BLOB UNIQUE NOT NULL,
    place INTEGER NOT NULL REFERENCES places,
    file BLOB NOT NULL, start INTEGER, length INTEGER,
    size INTEGER NOT NULL, modified INTEGER NOT NULL,
    hash TEXT NOT NULL, look INTEGER NOT NULL, vector INTEGER NOT NULL,
    date TEXT NOT NULL, metadata TEXT NOT NULL, removed TEXT
);
CREATE INDEX images_hash ON images (hash);
CREATE INDEX images_vector ON images (vector);
CREATE VIRTUAL TABLE captions USING fts5 (text);
CREATE TABLE broken (path BLOB PRIMARY KEY, place INTEGER NOT NULL, cause TEXT NOT NULL, detail TEXT NOT NULL);
"""
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


def check_index(folder: Path) -> None:
    """Refuse a folder that is no index.

    Raises:
        UserError: says how one is made.
    """
    if not (folder / CATALOG).is_file():
        kind = "is no index" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder} {kind}; openblip index build DATA --model MODEL --out {quote(os.fspath(folder))} makes one"
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only writer of an index; the lock ends with the process, however that ends.

    Raises:
        UserError: another process is writing, the folder cannot be written to, or the disk is full.
    """
    with ExitStack() as stack:
        try:
            connection = sqlite3.connect(folder / LOCK, timeout=0, isolation_level=None)
            stack.enter_context(closing(connection)).execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                message = f"another process is writing to the index {folder}; try again when it is done"
                raise UserError(message) from None
            raise UserError(f"the index {folder} cannot be written to: {error}") from error
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            full = "full" in str(error) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)
            if not full:
                raise
            kept = "what was indexed before is kept; free some space and run the same command again"
            raise UserError(f"the disk is full: {folder} could not be written; {kept}") from error


class Catalog:
    """The SQLite file of an index; may be used by several threads.

    Args:
        folder: of the index.
        create: settings of a new index, where there is none yet.

    Raises:
        UserError: there is no index, it is of another version, or its file is damaged.
    """

    def __init__(self, folder: Path, create: dict[str, Any] | None = None) -> None:
        self.folder, path = folder, folder / CATALOG
        if create is None:
            check_index(folder)
        # A folder on a read-only file system cannot hold the files that WAL needs beside the database.
        fixed = path.exists() and not os.access(folder, os.W_OK)
        place = f"{path.absolute().as_uri()}?immutable=1" if fixed else os.fspath(path)
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            place, uri=fixed, timeout=60, isolation_level=None, check_same_thread=False
        )
        try:
            if not fixed:
                self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            if create is not None and not self.rows("SELECT 1 FROM sqlite_master WHERE name = 'settings'"):
                with self.transaction():
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self.run(statement)
                    settings = {"format": _FORMAT, **create}
                    self.many(
                        "INSERT INTO settings VALUES (?, ?)", [(k, json.dumps(v)) for k, v in settings.items()]
                    )
            self.settings: dict[str, Any] = {
                name: json.loads(value) for name, value in self.rows("SELECT name, value FROM settings")
            }
        except sqlite3.DatabaseError as error:
            self.close()
            raise UserError(
                f"{path} cannot be read ({error}); remove {folder} and build the index again"
            ) from error
        if self.settings.get("format") != _FORMAT:
            self.close()
            raise UserError(f"{folder} is of another version of OpenBLIP; remove it and build the index again")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    # SQL --------------------------------------------------------------------------------------------------

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def run(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run a statement; returns the id of an inserted row."""
        with self._lock:
            return self._connection.execute(statement, values).lastrowid or 0

    def many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each of `values`."""
        with self._lock:
            self._connection.executemany(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is within is committed, or nothing; within another one, with that."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def version(self) -> tuple[int, int]:
        """Changes whenever any process has changed the index."""
        return self.rows("PRAGMA data_version")[0][0], self._connection.total_changes

    # Reading ----------------------------------------------------------------------------------------------

    @property
    def num_vectors(self) -> int:
        """How many vectors count."""
        last = self.rows("SELECT max(vector) FROM images")[0][0]
        return 0 if last is None else last + 1

    def count(self, *, removed: bool = False) -> int:
        """Images that are in the index, or that were removed."""
        return int(self.rows(f"SELECT count(*) FROM images WHERE removed IS {'NOT' if removed else ''} NULL")[0][0])

    def place(self, spec: str) -> int:
        """The number of a place where images come from; a new one gets its own."""
        found = self.rows("SELECT id FROM places WHERE spec = ?", (os.fsencode(spec),))
        return found[0][0] if found else self.run("INSERT INTO places (spec) VALUES (?)", (os.fsencode(spec),))

    def places(self) -> list[str]:
        """All specs that images came from, in order of their first use."""
        return [os.fsdecode(spec) for (spec,) in self.rows("SELECT spec FROM places ORDER BY id")]

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
        where, values = (filters or Filters()).where()
        for record in self._in("vector", vectors, f" AND {where}", values):
            found.setdefault(record.vector, []).append(record)
        return found

    def vectors(self, filters: Filters | None = None) -> list[int]:
        """Numbers of the vectors of the images in the index that pass the filters."""
        where, values = (filters or Filters()).where()
        return [vector for (vector,) in self.rows(f"SELECT vector FROM images WHERE {where}", values)]

    def ids_of_place(self, place: int) -> set[int]:
        """Ids of the images that came from a place and are in the index."""
        found = self.rows("SELECT id FROM images WHERE place = ? AND removed IS NULL", (place,))
        return {number for (number,) in found}

    def ids_at(self, name: str) -> set[int]:
        """Ids of the image at a path, or of all that lie in a folder or tar."""
        where, values = Filters(folder=name).where()
        found = self.rows(f"SELECT id FROM images WHERE {where}", values)
        found += self.rows(
            "SELECT id FROM images WHERE removed IS NULL AND path = ?", (os.fsencode(os.path.abspath(name)),)
        )
        return {number for (number,) in found}

    def broken(self) -> list[BrokenSample]:
        """Images that could not be read when they were last looked at."""
        found = self.rows("SELECT path, cause, detail FROM broken ORDER BY path")
        return [BrokenSample(cause, os.fsdecode(path), detail) for path, cause, detail in found]

    def _in(
        self, column: str, numbers: Sequence[int], more: str = "", values: Sequence[Any] = ()
    ) -> Iterator[Record]:
        for start in range(0, len(numbers), _AT_ONCE):
            part = [int(number) for number in numbers[start : start + _AT_ONCE]]
            yield from self._select(f"{column} IN ({', '.join('?' * len(part))}){more}", [*part, *values])

    def _select(self, where: str, values: Sequence[Any]) -> list[Record]:
        """Images by a condition, with their captions."""
        columns = ", ".join(f"images.{name}" for name in _COLUMNS)
        statement = f"SELECT {columns}, captions.text FROM images LEFT JOIN captions ON captions.rowid = images.id"
        return [_record(row) for row in self.rows(f"{statement} WHERE {where}", values)]

    # Writing ----------------------------------------------------------------------------------------------

    def put(self, record: Record) -> int:
        """Write an image, in place of the one of its path; returns its id."""
        path = os.fsencode(record.path)
        values = (
            *(path, record.place, os.fsencode(record.file), record.start, record.length),
            *(record.size, record.modified, record.hash, record.look, record.vector, record.date),
            *(json.dumps(record.metadata, default=str), record.removed),
        )
        names = _COLUMNS[1:]
        changed = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        with self.transaction():
            self.run(
                f"INSERT INTO images ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
                f"ON CONFLICT (path) DO UPDATE SET {changed}",
                values,
            )
            record.id = self.rows("SELECT id FROM images WHERE path = ?", (path,))[0][0]
            self.run("DELETE FROM captions WHERE rowid = ?", (record.id,))
            if record.captions:
                captions = "\n".join(record.captions)
                self.run("INSERT INTO captions (rowid, text) VALUES (?, ?)", (record.id, captions))
            self.run("DELETE FROM broken WHERE path = ?", (path,))
        return record.id

    def put_broken(self, broken: BrokenSample, place: int) -> None:
        """Note an image that cannot be read."""
        values = (os.fsencode(broken.key), place, broken.cause, broken.detail)
        self.run("INSERT OR REPLACE INTO broken VALUES (?, ?, ?, ?)", values)

    def forget_broken(self, place: int) -> None:
        """Forget what could not be read at a place, before it is looked at again."""
        self.run("DELETE FROM broken WHERE place = ?", (place,))

    def remove(self, ids: Iterable[int], when: str) -> None:
        """Mark images as removed."""
        self.many("UPDATE images SET removed = ? WHERE id = ?", [(when, number) for number in ids])


def remove(folder: Path, names: Sequence[str]) -> int:
    """Mark images of an index as removed: files, or all that lie in folders or tars; returns how many.

    Raises:
        UserError: the index holds nothing of that name, or another process is writing to it.
    """
    with closing(Catalog(folder)) as catalog, writing(folder):
        ids: set[int] = set()
        for name in names:
            if not (found := catalog.ids_at(name)):
                raise UserError(f"the index {folder} holds no image at {name}")
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
