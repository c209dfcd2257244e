"""The database of an index in PostgreSQL with pgvector: a schema for each index, captions as arrays of words.

One connection does everything, so that the writer's lock, which lies in its session, ends with it.
"""

from __future__ import annotations

import threading
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from re import findall
from typing import TYPE_CHECKING, Any

from openblip.core.errors import UserError, first_line, require
from openblip.index.address import Address
from openblip.index.database import Condition, busy, full

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

__all__ = ["PostgresDatabase"]

_LOCKS = 0x0B11
"""first number of the advisory locks that are ours"""
_PGVECTOR = (0, 8)
"""the oldest that goes on in an HNSW index until enough rows pass the filters"""
_SCHEMA = """
CREATE TABLE settings (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE places (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, spec bytea UNIQUE NOT NULL);
CREATE TABLE images (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    path bytea UNIQUE NOT NULL,
    place bigint NOT NULL REFERENCES places,
    file bytea NOT NULL, start bigint, length bigint,
    size bigint NOT NULL, modified bigint NOT NULL,
    hash text NOT NULL, look bigint NOT NULL, vector bigint NOT NULL,
    date text COLLATE "C" NOT NULL, metadata jsonb NOT NULL, removed text
);
CREATE INDEX images_hash ON images (hash);
CREATE INDEX images_vector ON images (vector);
CREATE INDEX images_place ON images (place);
CREATE TABLE captions (rowid bigint PRIMARY KEY, text text NOT NULL, words text[] NOT NULL);
CREATE INDEX captions_words ON captions USING gin (words);
CREATE TABLE broken (path bytea PRIMARY KEY, place bigint NOT NULL, cause text NOT NULL, detail text NOT NULL);
CREATE TABLE vectors (number bigint, query smallint, value {halfvec} NOT NULL, PRIMARY KEY (number, query));
"""


class PostgresDatabase:
    """A `Database` in a schema of PostgreSQL.

    Args:
        create: bring what an index needs into the database, where it is not there yet.

    Raises:
        UserError: the database cannot be reached, has no pgvector or an old one, or holds no such index.
    """

    def __init__(self, address: Address, *, create: bool = False) -> None:
        self._psycopg = require("psycopg", "postgres")
        require("pgvector", "postgres")
        self.address, self.name = address, address.shown
        wrong = self._psycopg.errors
        self.errors: tuple[type[Exception], ...] = (wrong.UndefinedTable, wrong.UndefinedColumn)
        self._lock = threading.RLock()
        self._depth = 0
        self._writes = False
        self._connection = self._connect(create)
        if not create and not self.holds_index():
            self.close()
            raise self._absent()

    def _connect(self, create: bool = False) -> Connection[Any]:
        from pgvector.psycopg import register_vector
        from psycopg.types.string import TextLoader

        try:
            connection: Connection[Any] = self._psycopg.connect(
                self.address.url, autocommit=True, application_name="openblip index", connect_timeout=20
            )
        except self._psycopg.Error as error:
            # What cannot be read may be repeated by its message, with a password in it.
            told = first_line(error) if isinstance(error, self._psycopg.OperationalError) else "it cannot be read"
            raise UserError(f"the database of {self.name} cannot be opened: {told}") from None
        try:
            place = self._extension(connection, create)
            path = f'"{self.address.schema}", {place}'
            connection.execute("SELECT set_config('search_path', %s, false)", (path,))
            register_vector(connection)
        except BaseException:
            connection.close()
            raise
        connection.adapters.register_loader("jsonb", TextLoader)
        return connection

    def _extension(self, connection: Connection[Any], create: bool) -> str:
        """The schema of pgvector, quoted."""
        query = (
            "SELECT extversion, quote_ident(nspname) FROM pg_extension "
            "JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"
        )
        found = connection.execute(query).fetchone()
        if found is None and create:
            try:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except self._psycopg.Error as error:
                cause = f"the database of {self.name} has no pgvector ({first_line(error)})"
                raise UserError(f"{cause}; let its administrator run: CREATE EXTENSION vector") from None
            found = connection.execute(query).fetchone()
        if found is None:
            raise self._absent()  # no database holds an index without pgvector
        if tuple(int(part) for part in found[0].split(".")[:2]) < _PGVECTOR:
            needed = ".".join(map(str, _PGVECTOR))
            update = "let its administrator run: ALTER EXTENSION vector UPDATE"
            raise UserError(f"pgvector {found[0]} of {self.name} is too old, {needed} is needed; {update}")
        return str(found[1])

    def _absent(self) -> UserError:
        made = f"openblip index build DATA --model MODEL --out '{self.name}' makes it"
        return UserError(f"the database holds no index {self.name}; {made}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # SQL --------------------------------------------------------------------------------------------------

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Cursor[Any]:
        """Run a statement; a connection that was lost is opened again, unless something is being written.

        Raises:
            UserError: the connection was lost.
        """
        query = statement.replace("?", "%s").encode()
        with self._lock:
            try:
                return self._connection.execute(query, values or None)
            except self._psycopg.OperationalError as error:
                if not self._connection.closed:
                    raise
                if self._writes or self._depth:
                    raise self._lost(error) from None
            self._connection = self._connect()
            return self._connection.execute(query, values or None)

    def _lost(self, error: Exception) -> UserError:
        cause = f"the connection to {self.name} was lost ({first_line(error)})"
        return UserError(f"{cause}; what was indexed before is kept; run the same command again")

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """As `Database.rows`."""
        with self._lock:
            return self.execute(statement, values).fetchall()

    def run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """As `Database.run`."""
        self.execute(statement, values)

    def many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """As `Database.many`."""
        with self._lock, self._connection.cursor() as cursor:
            cursor.executemany(statement.replace("?", "%s").encode(), values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As `Database.transaction`."""
        with self._lock:
            if self._depth:
                yield
                return
            self.execute("SELECT 1")  # opens a lost connection again
            self._depth += 1
            try:
                with self._connection.transaction():
                    yield
            finally:
                self._depth -= 1

    def copy(self, table: str, types: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write rows to a table, in binary form."""
        statement = f"COPY {table} FROM STDIN WITH (FORMAT BINARY)".encode()
        with self._lock, self._connection.cursor() as cursor, cursor.copy(statement) as into:
            into.set_types(types)
            for row in rows:
                into.write_row(row)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """As `Database.writing`."""
        name = zlib.crc32(self.address.schema.encode())
        key = (_LOCKS, name - 2**32 if name >= 2**31 else name)
        # The server would else hold the lock for hours where the machine of a writer is cut off from it.
        for setting, seconds in (("idle", 60), ("interval", 10), ("count", 6)):
            self.rows("SELECT set_config(?, ?, false)", (f"tcp_keepalives_{setting}", str(seconds)))
        if not self.rows("SELECT pg_try_advisory_lock(?, ?)", key)[0][0]:
            raise busy(self.name)
        wrong = self._psycopg.errors
        self._writes = True
        try:
            yield
        except (wrong.DiskFull, wrong.OutOfMemory) as error:
            raise full(self.name) from error
        except (wrong.InsufficientPrivilege, wrong.ReadOnlySqlTransaction) as error:
            raise UserError(f"the index {self.name} cannot be written to: {first_line(error)}") from error
        except (self._psycopg.OperationalError, self._psycopg.InterfaceError) as error:
            if self._connection.closed:
                raise self._lost(error) from error
            raise
        finally:
            self._writes = False
            if not self._connection.closed:
                self.rows("SELECT pg_advisory_unlock(?, ?)", key)

    # What differs -----------------------------------------------------------------------------------------

    def holds_index(self) -> bool:
        """As `Database.holds_index`."""
        return bool(self.rows("SELECT to_regclass(?) IS NOT NULL", (f"{self.address.schema}.settings",))[0][0])

    def create(self, shape: tuple[int, int]) -> None:
        """As `Database.create`."""
        with self.transaction():
            self.run(f"CREATE SCHEMA IF NOT EXISTS {self.address.schema}")
            for statement in filter(str.strip, _SCHEMA.format(halfvec=f"halfvec({shape[1]})").split(";")):
                self.run(statement)

    def put_captions(self, image: int, text: str) -> None:
        """As `Database.put_captions`."""
        self.run("INSERT INTO captions (rowid, text, words) VALUES (?, ?, ?)", (image, text, words_of(text)))

    def has_words(self, words: Sequence[str]) -> Condition:
        """As `Database.has_words`."""
        condition = "images.id IN (SELECT rowid FROM captions WHERE captions.words @> ?::text[])"
        return condition, [[one for word in words for one in words_of(word)]]

    def has_metadata(self, name: str, value: str) -> Condition:
        """As `Database.has_metadata`."""
        return "metadata ->> ? = ?", [name, value]

    def nbytes(self) -> int:
        """As `Database.nbytes`."""
        query = (
            "SELECT coalesce(sum(pg_total_relation_size(pg_class.oid)), 0) FROM pg_class "
            "JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = ? AND relkind = 'r'"
        )
        return int(self.rows(query, (self.address.schema,))[0][0])


def words_of(text: str) -> list[str]:
    """The words of a text as SQLite's FTS5 tells them: letters and digits, without case and accents."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return sorted(set(findall(r"[^\W_]+", plain.casefold())))
