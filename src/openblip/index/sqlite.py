"""The database of an index in a folder: SQLite in WAL mode, captions in FTS5."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from openblip.core.errors import UserError
from openblip.index.database import Condition, busy, full

__all__ = ["CATALOG", "LOCK", "SqliteDatabase", "check_folder"]

CATALOG = "index.sqlite"
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


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no index.

    Raises:
        UserError: says how one is made.
    """
    if not (folder / CATALOG).is_file():
        kind = "is no index" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder} {kind}; openblip index build DATA --model MODEL --out {quote(os.fspath(folder))} makes one"
        )


class SqliteDatabase:
    """A `Database` in a file of a folder.

    Args:
        create: make the file where there is none.

    Raises:
        UserError: there is no index, or its file is damaged.
    """

    errors: tuple[type[Exception], ...] = (sqlite3.DatabaseError,)

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder, self.name, path = folder, os.fspath(folder), folder / CATALOG
        if not create:
            check_folder(folder)
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
        except sqlite3.DatabaseError as error:
            self.close()
            raise UserError(
                f"{path} cannot be read ({error}); remove {folder} and build the index again"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """As `Database.rows`."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """As `Database.run`."""
        with self._lock:
            self._connection.execute(statement, values)

    def many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """As `Database.many`."""
        with self._lock:
            self._connection.executemany(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As `Database.transaction`."""
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

    @contextmanager
    def writing(self) -> Iterator[None]:
        """As `Database.writing`."""
        with ExitStack() as stack:
            try:
                connection = sqlite3.connect(self.folder / LOCK, timeout=0, isolation_level=None)
                stack.enter_context(closing(connection)).execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if "locked" in str(error):
                    raise busy(self.name) from None
                raise UserError(f"the index {self.name} cannot be written to: {error}") from error
            try:
                yield
            except (sqlite3.OperationalError, OSError) as error:
                if "full" in str(error) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
                    raise full(self.name) from error
                raise

    def version(self) -> tuple[int, int]:
        """Changes whenever any process has changed the index."""
        return self.rows("PRAGMA data_version")[0][0], self._connection.total_changes

    def holds_index(self) -> bool:
        """As `Database.holds_index`."""
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE name = 'settings'"))

    def create(self, shape: tuple[int, int]) -> None:
        """As `Database.create`; the vectors have files of their own."""
        with self.transaction():
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self.run(statement)

    def put_captions(self, image: int, text: str) -> None:
        """As `Database.put_captions`."""
        self.run("INSERT INTO captions (rowid, text) VALUES (?, ?)", (image, text))

    def has_words(self, words: Sequence[str]) -> Condition:
        """As `Database.has_words`."""
        quoted = " ".join(f'"{word}"' for word in words)
        return "images.id IN (SELECT rowid FROM captions WHERE captions MATCH ?)", [quoted]

    def has_metadata(self, name: str, value: str) -> Condition:
        """As `Database.has_metadata`."""
        quoted = name.replace('"', '\\"')
        path = f'$."{quoted}"'
        # SQLite reads true and false as 1 and 0.
        condition = (
            "CASE WHEN json_type(metadata, ?) IN ('true', 'false') THEN json_type(metadata, ?) "
            "ELSE CAST(json_extract(metadata, ?) AS TEXT) END = ?"
        )
        return condition, [path, path, path, value]

    def nbytes(self) -> int:
        """As `Database.nbytes`; caches are counted."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
