"""The two places where an index may be: a folder (SQLite and segments), or a schema of PostgreSQL with pgvector."""

from __future__ import annotations

import os
from pathlib import Path

from openblip.core.fingerprint import short_hash
from openblip.index.address import is_address, parse_address
from openblip.index.catalog import Catalog
from openblip.index.database import Database
from openblip.index.halfvec import HalfvecStore
from openblip.index.postgres import PostgresDatabase
from openblip.index.segments import SegmentStore
from openblip.index.sqlite import SqliteDatabase
from openblip.index.vectors import VectorStore

__all__ = ["cache_folder", "open_database", "store_of"]


def open_database(index: Path | str, *, create: bool = False) -> Database:
    """The database of an index, by its folder or address.

    Args:
        create: make what is missing of it.

    Raises:
        UserError: there is none, or it cannot be opened.
    """
    if is_address(os.fspath(index)):
        return PostgresDatabase(parse_address(os.fspath(index)), create=create)
    return SqliteDatabase(Path(index), create=create)


def store_of(catalog: Catalog) -> VectorStore:
    """Where the vectors of an index lie."""
    database = catalog.database
    if isinstance(database, PostgresDatabase):
        return HalfvecStore(database, catalog)
    assert isinstance(database, SqliteDatabase)
    return SegmentStore(database.folder / "vectors", catalog, database.version)


def cache_folder(catalog: Catalog) -> Path:
    """Where image features of an index are kept: beside it, or in the user's cache on this machine."""
    database = catalog.database
    if isinstance(database, SqliteDatabase):
        return database.folder
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "openblip" / "index" / short_hash(f"{database.name} {catalog.settings['created']}".encode())
