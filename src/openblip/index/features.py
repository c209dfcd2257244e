"""Image features that ITM reads, on disk within a bound, so that images found again are not encoded again.

One SQLite file beside the index; it may be deleted at any time. Those used longest ago go first.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["FEATURES", "DiskFeatures"]

FEATURES = "features.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS features (
    key TEXT PRIMARY KEY, used REAL NOT NULL, shape TEXT NOT NULL, bytes INTEGER NOT NULL, data BLOB NOT NULL
)
"""


class DiskFeatures:
    """Features [N, Dv] by the hash of an image's content, kept as float16; may be used by several threads.

    Nothing is kept where the file cannot be written.

    Args:
        max_bytes: of all features; 0 keeps none.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.max_bytes, self._lock = max_bytes, threading.Lock()
        self._connection: sqlite3.Connection | None = None
        if max_bytes <= 0:
            return
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            return
        with suppress(sqlite3.OperationalError, OSError):  # it cannot be opened or written, or is locked
            try:
                self._connection = _opened(folder / FEATURES)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # damaged: it holds nothing that cannot be computed again
                for ending in ("", "-wal", "-shm"):
                    (folder / f"{FEATURES}{ending}").unlink(missing_ok=True)
                self._connection = _opened(folder / FEATURES)

    def get(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Those that are there, float16 [N, Dv]."""
        found: dict[str, Tensor] = {}
        if self._connection is None:
            return found
        with self._lock, suppress(sqlite3.OperationalError):
            for key in keys:
                row = self._connection.execute("SELECT shape, data FROM features WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    tokens, width = map(int, row[0].split(" "))
                    values = np.frombuffer(bytearray(row[1]), np.float16).reshape(tokens, width)
                    found[key] = torch.from_numpy(values)
            now = time.time()
            self._connection.executemany(
                "UPDATE features SET used = ? WHERE key = ?", [(now, key) for key in found]
            )
        return found

    def put(self, features: dict[str, Tensor]) -> None:
        """Keep features, and let go of others so that the bound holds."""
        if self._connection is None or not features:
            return
        rows = []
        for key, one in features.items():
            data = one.to(torch.float16).cpu().contiguous().numpy().tobytes()
            rows.append((key, time.time(), f"{one.shape[0]} {one.shape[1]}", len(data), data))
        with self._lock, suppress(sqlite3.OperationalError):  # a full disk, or a writer that takes long
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?, ?)", rows)
                self._connection.execute(
                    "DELETE FROM features WHERE key IN (SELECT key FROM (SELECT key, sum(bytes) OVER "
                    "(ORDER BY used DESC, rowid DESC) AS total FROM features) WHERE total > ?)",
                    (self.max_bytes,),
                )
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @property
    def nbytes(self) -> int:
        """Bytes that all features take."""
        if self._connection is None:
            return 0
        with self._lock:
            return int(self._connection.execute("SELECT total(bytes) FROM features").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()


def _opened(file: Path) -> sqlite3.Connection:
    """The file, with its table.

    Raises:
        sqlite3.OperationalError: it cannot be used now, whatever it holds.
        sqlite3.DatabaseError: it is damaged.
    """
    connection = sqlite3.connect(file, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection
