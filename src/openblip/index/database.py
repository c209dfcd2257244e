"""What an index asks of a database: one writer, statements of SQL, and the few parts of SQL that differ.

Statements are written with `?` for values, and with what SQLite and PostgreSQL understand alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from openblip.core.errors import UserError

__all__ = ["Condition", "Database", "busy", "full"]

Condition = tuple[str, list[Any]]
"""of SQL, and its values"""


class Database(Protocol):
    """A database that holds one index; may be used by several threads."""

    name: str
    """of the index, as messages give it: the folder, or the address without a password"""
    errors: tuple[type[Exception], ...]
    """what statements raise where the tables are not those of an index"""

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        ...

    def run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Run a statement that gives no rows."""
        ...

    def many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each of `values`."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """All of what is within is committed, or nothing; within another one, with that."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Be the only writer of the index; the lock ends with the process, however that ends.

        Raises:
            UserError: another process is writing, the index cannot be written to, or the disk is full.
        """
        ...

    def holds_index(self) -> bool:
        """Whether the tables are there."""
        ...

    def create(self, shape: tuple[int, int]) -> None:
        """Make the tables, for vectors [Q, E] of each image."""
        ...

    def put_captions(self, image: int, text: str) -> None:
        """Keep captions, one a line, to be searched by their words."""
        ...

    def has_words(self, words: Sequence[str]) -> Condition:
        """Images whose captions have all these words, in any form of upper and lower case."""
        ...

    def has_metadata(self, name: str, value: str) -> Condition:
        """Images with that metadata."""
        ...

    def nbytes(self) -> int:
        """Bytes that the index takes."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def busy(name: str) -> UserError:
    """What a second writer is told."""
    return UserError(f"another process is writing to the index {name}; try again when it is done")


def full(name: str) -> UserError:
    """What a writer is told when the disk is full."""
    kept = "what was indexed before is kept; free some space and run the same command again"
    return UserError(f"the disk is full: {name} could not be written; {kept}")
