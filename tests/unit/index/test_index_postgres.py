"""An index in PostgreSQL: how it is named, what is refused, and what happens when a connection is lost."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from index_small import Counting, build, new_address

from openblip.cli.checks import check_arguments
from openblip.cli.engines import _open_index
from openblip.cli.index import index_search
from openblip.core.errors import UserError
from openblip.index.address import is_address, parse_address
from openblip.index.image_index import ImageIndex
from openblip.index.postgres import PostgresDatabase
from openblip.index.stores import open_database

WORD = "se%40cret"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://me@db.org/shop#photos", "postgresql://me@db.org/shop#photos"),
        (f"postgres://me:{WORD}@db.org:5433/shop#photos", "postgresql://me@db.org:5433/shop#photos"),
        (f"postgresql://db.org/shop?user=me&password={WORD}#p_1", "postgresql://db.org/shop#p_1"),
        (f"postgresql://me:{WORD}@/shop?host=/run/pg&sslmode=require#p", "postgresql://me@/shop?host=/run/pg#p"),
        (f"postgresql://me:{WORD}@a:1,b:2/shop#p", "postgresql://me@a:1,b:2/shop#p"),
        (f"postgresql://me:{WORD}@[::1]:5432/shop#p", "postgresql://me@[::1]:5432/shop#p"),
    ],
)
def test_addresses_are_shown_without_a_password(given: str, shown: str) -> None:
    assert is_address(given)
    address = parse_address(given)
    assert address.shown == shown
    assert WORD not in repr(address)
    assert f"{address.url}#{address.name}" == given
    assert address.schema == f"openblip_{address.name}"


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://me:se/cret@db/shop#p",
        "postgresql://me:se?cret@db/shop#p",
        "postgresql://me:se#cret@db/shop#p",
        "postgresql://me:secret@b@db/shop",
        "postgresql://me:cret/shop#p",
        "postgresql://me:se[cret@db/shop#p",
        "postgresql://me:secret\uff0f@db/shop#p",
        "postgresql://me:secret@db/shop",
        "postgresql://me:secret@db/shop#Photos",
        "postgresql://me:secret@db/shop#p;drop",
        f"postgresql://me:secret@db/shop#{'p' * 41}",
        "mysql://me:secret@db/shop#p",
    ],
)
def test_addresses_that_cannot_be_read_are_not_repeated(given: str) -> None:
    with pytest.raises(UserError, match=r"postgresql://USER@HOST") as refused:
        parse_address(given)
    assert "cret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ == (refused.value.__context__ is not None)


def test_a_server_that_does_not_answer_is_one_sentence_without_a_password() -> None:
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    for query in ("", "?sslmode=secret"):
        with pytest.raises(
            UserError, match=r"the database of postgresql://me@127\.0\.0\.1:1/x#p cannot be"
        ) as refused:
            open_database(f"postgresql://me:secret@127.0.0.1:1/x{query}#p")
        assert "\n" not in str(refused.value)
        assert "me:secret" not in str(refused.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r'psycopg is not installed; run: pip install "openblip\[postgres\]"'):
        open_database("postgresql://me@db/x#p")
    with pytest.raises(UserError, match="psycopg is not installed"):
        check_arguments("index-search", index_search, ("x",), {"index": "postgresql://me@db/x#p"})


def test_an_index_that_is_not_there(postgres: str) -> None:
    with pytest.raises(UserError, match=r"holds no index postgresql://.*; openblip index build DATA --model MODEL"):
        open_database(new_address(postgres))


def test_indexes_of_one_database_do_not_meet(postgres: str, photos: Path, blip: Counting) -> None:
    first, second = new_address(postgres), new_address(postgres)
    build(first, blip, photos / "new")
    index, _ = build(second, blip, photos)
    with ImageIndex.open(first, blip) as other, other.catalog.database.writing(), index.catalog.database.writing():
        assert (other.catalog.count(), index.catalog.count()) == (4, 10)
    assert index.catalog.database.nbytes() > 10_000


def test_a_lost_connection_is_opened_again(postgres: str, photos: Path, blip: Counting) -> None:
    index, _ = build(new_address(postgres), blip, photos)
    database = index.catalog.database
    assert isinstance(database, PostgresDatabase)

    def end() -> None:
        (number,) = database.rows("SELECT pg_backend_pid()")[0]
        database._connect().execute("SELECT pg_terminate_backend(%s, 5000)", (number,))

    end()
    assert len(index.search(text="a dog", rerank=2)) == 10

    def write() -> None:
        with database.writing():
            end()
            index.catalog.place("new")

    with pytest.raises(UserError, match=r"was lost .* run the same command again") as lost:
        write()
    assert "\n" not in str(lost.value)
    with database.transaction():
        index.catalog.place("new")
    with database.writing():
        assert index.catalog.places()[-1] == "new"


def test_several_threads_search_and_the_service_opens_it(postgres: str, photos: Path, blip: Counting) -> None:
    where = new_address(postgres)
    build(where, blip, photos)
    index, name = _open_index(where, {"m": blip})
    assert name == "m"
    expected = index.search(text="a dog", rerank=0)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: index.search(text="a dog", rerank=0), range(12))) == [expected] * 12


def test_a_database_that_may_only_be_read(postgres: str, photos: Path, blip: Counting) -> None:
    where = new_address(postgres)
    build(where, blip, photos)
    database = open_database(where)
    database.run("SET default_transaction_read_only = on")
    with pytest.raises(UserError, match="cannot be written to: cannot execute INSERT"), database.writing():
        database.run("INSERT INTO places (spec) VALUES (?)", (b"x",))
