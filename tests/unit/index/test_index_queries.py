"""Queries, filters and the catalog of an index, without a model."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.index import Filters
from openblip.index.catalog import Catalog, Record
from openblip.index.queries import parse_query
from openblip.index.sqlite import CATALOG, SqliteDatabase
from openblip.index.stores import open_database

SETTINGS = {"fingerprint": "f", "model": "m", "tokenizer": "", "shape": [1, 4], "created": ""}


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("a red bus", [("a red bus", 1)]),
        ("  a red bus - at night ", [("a red bus - at night", 1)]),
        ("+car -red", [("car", 1), ("red", -1)]),
        ("+a red car - at night", [("a red car", 1), ("at night", -1)]),
        ("+2*car -0.5*red paint", [("car", 2), ("red paint", -0.5)]),
        ("+well-lit +a t-shirt", [("well-lit", 1), ("a t-shirt", 1)]),
        ("-red +car", [("red", -1), ("car", 1)]),
    ],
)
def test_queries_are_read(text: str, terms: list[tuple[str, float]]) -> None:
    assert parse_query(text) == terms


@pytest.mark.parametrize("text", ["", "  ", "-red", "+0*red", "-red -blue"])
def test_queries_without_anything_to_look_for(text: str) -> None:
    with pytest.raises(UserError, match=r"a search needs a text|says only what is not wanted"):
        parse_query(text)


@pytest.mark.parametrize("text", ["+", "-", "--", "+ -", "+car +-", "+ +"])
def test_signs_without_a_text(text: str) -> None:
    with pytest.raises(UserError, match="a sign has no text after it"):
        parse_query(text)


def test_queries_of_too_many_texts_and_too_large_weights() -> None:
    assert len(parse_query("+red " * 32)) == 32
    with pytest.raises(UserError, match="at most 32 texts with signs, not 33"):
        parse_query("+red " * 33)
    with pytest.raises(UserError, match=r'in "\+9+\.\.\." a weight is larger than 1000'):
        parse_query(f"+{'9' * 400}*red")


def record(path: str, number: int, **more: object) -> Record:
    values = {
        "place": 1,
        "file": path,
        "start": None,
        "length": None,
        "size": 9,
        "modified": 1,
        "hash": f"h{number}",
    }
    date = f"2024-05-0{number + 1} 12:00:00"
    return Record(path=path, vector=number, date=date, **{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
def catalog(where: Path | str) -> Catalog:
    """In a folder, and in PostgreSQL."""
    return filled(where)


def filled(where: Path | str) -> Catalog:
    if isinstance(where, Path):
        where.mkdir()
    found = Catalog(open_database(where, create=True), SETTINGS)
    found.place("photos")
    found.put(record("/p/a.jpg", 0, captions=("A red bus.", "the road"), metadata={"place": "Rome", "year": 2024}))
    found.put(record("/p/sub/b.jpg", 1, captions=("two dogs on a road",), metadata={"place": "Ulm"}))
    found.put(record("/p2/c.jpg", 2, metadata={"a.b": 'q"t', "flag": True}))
    found.put(record("/p/t.tar/0001", 3, file="/p/t.tar", start=512, length=9))
    return found


@pytest.mark.parametrize(
    ("filters", "vectors"),
    [
        (Filters(), [0, 1, 2, 3]),
        (Filters(folder="/p"), [0, 1, 3]),
        (Filters(folder="/p/t.tar"), [3]),
        (Filters(folder="/p/s"), []),
        (Filters(since="2024-05-02"), [1, 2, 3]),
        (Filters(until="2024-05-02"), [0, 1]),
        (Filters(since="2024-05-02 12", until="2024-05-03 11"), [1]),
        (Filters(until="2024"), [0, 1, 2, 3]),
        (Filters(words="ROAD"), [0, 1]),
        (Filters(words="road, bus"), [0]),
        (Filters(words='"OR" NEAR('), []),
        (Filters(metadata={"place": "Rome"}), [0]),
        (Filters(metadata={"year": "2024"}), [0]),
        (Filters(metadata={"a.b": 'q"t'}), [2]),
        (Filters(metadata={"flag": "true"}), [2]),
        (Filters(metadata={"flag": "1"}), []),
        (Filters(folder="/p", words="road", until="2024-05-01", metadata={"place": "Rome"}), [0]),
    ],
)
def test_filters(catalog: Catalog, filters: Filters, vectors: list[int]) -> None:
    assert sorted(catalog.vectors(filters)) == vectors
    found = catalog.by_vectors([3, 2, 1, 0], filters)
    assert sorted(found) == vectors


def test_filters_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match='since takes a date such as 2024-05-01, not "yesterday"'):
        Filters(since="yesterday")
    for never in ("2024-13", "2024-02-30", "2024-05-01 25", "0000"):
        with pytest.raises(UserError, match="until takes a date"):
            Filters(until=never)
    assert Filters(since="2024-02-29T12:30")
    with pytest.raises(UserError, match='there is no word in "--"'):
        Filters(words="--")
    assert not Filters()
    assert Filters(words="a")


def test_what_is_written_is_read(catalog: Catalog, where: Path | str) -> None:
    odd = os.fsdecode(b"/p/\xff name\n.jpg")
    unlike = {"nan": float("nan"), "nul": ["a\0b"], "half": "\ud83d"}
    catalog.put(record(odd, 4, captions=("x\0y\ud83d",), metadata=unlike))
    catalog.put_broken(BrokenSample("truncated", odd + "2", f"cut: {odd}\0"), 1)
    catalog.close()
    again = Catalog(open_database(where))
    found = again.find(odd)
    assert found is not None
    assert (found.path, found.file, found.captions, found.vector) == (odd, odd, ("xy?",), 4)
    assert found.metadata == {"nan": None, "nul": ["ab"], "half": "?"}
    assert again.num_vectors == 5
    broken = [(one.key, one.cause, one.detail) for one in again.broken()]
    assert broken == [(odd + "2", "truncated", "cut: /p/? name\\n.jpg")]
    assert again.settings == {"format": "1", **SETTINGS}
    if isinstance(where, Path):
        assert again.database.rows("PRAGMA journal_mode") == [("wal",)]


def test_captions_follow_their_image(catalog: Catalog) -> None:
    catalog.put(record("/p/a.jpg", 5, captions=("a cat",)))
    assert catalog.vectors(Filters(words="bus")) == []
    assert catalog.vectors(Filters(words="cat")) == [5]
    assert catalog.count() == 4, "the path is the same image"
    catalog.remove(catalog.ids_at("/p"), "2024")
    assert (catalog.count(), catalog.count(removed=True)) == (1, 3)
    assert catalog.vectors(Filters(words="cat")) == []


def test_a_transaction_is_all_or_nothing(catalog: Catalog) -> None:
    def fail() -> None:
        with catalog.database.transaction():
            catalog.put(record("/new.jpg", 6, captions=("new",)))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert catalog.find("/new.jpg") is None
    assert catalog.vectors(Filters(words="new")) == []


def test_words_are_told_alike(catalog: Catalog) -> None:
    catalog.put(record("/p/odd.jpg", 4, captions=("Un CAFÉ à Zürich, 3.5 km/h", "photo-shoot_2 of x@y.org")))
    for words in ("cafe", "CAFÉ", "zurich", "3", "km/h", "photo shoot", "shoot_2", "y.org", "un café, photo"):
        assert catalog.vectors(Filters(words=words)) == [4], words
    for words in ("caf", "km/z", "cafe road"):
        assert catalog.vectors(Filters(words=words)) == [], words


def test_two_writers_refuse_each_other(catalog: Catalog, where: Path | str) -> None:
    other = open_database(where)
    with catalog.database.writing():
        with (
            pytest.raises(UserError, match="another process is writing to the index") as refused,
            other.writing(),
        ):
            raise AssertionError("two writers at once")
        assert "\n" not in str(refused.value)
    with other.writing():
        pass


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    database = SqliteDatabase(tmp_path / "gone", create=True)
    database.close()
    shutil.rmtree(tmp_path / "gone")
    with (
        pytest.raises(UserError, match="cannot be written to: unable to open database"),
        database.writing(),
    ):
        raise AssertionError("written to")


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path, create=True)
    for error in (OSError(errno.ENOSPC, "No space left on device"), sqlite3.OperationalError("disk is full")):
        with (
            pytest.raises(UserError, match=r"the disk is full: .* what was indexed before is kept"),
            database.writing(),
        ):
            raise error
    with pytest.raises(sqlite3.OperationalError, match="syntax"), database.writing():
        raise sqlite3.OperationalError("syntax error")


def test_folders_that_are_no_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no index; openblip index build DATA"):
        SqliteDatabase(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        SqliteDatabase(tmp_path / "none")
    (tmp_path / CATALOG).write_bytes(b"no database " * 999)
    with pytest.raises(UserError, match=r"index\.sqlite cannot be read .*; remove .* and build the index again"):
        SqliteDatabase(tmp_path)
    (tmp_path / "other").mkdir()
    Catalog(SqliteDatabase(tmp_path / "other", create=True), SETTINGS).close()
    with sqlite3.connect(tmp_path / "other" / CATALOG) as connection:
        connection.execute("UPDATE settings SET value = '\"0\"' WHERE name = 'format'")
    with pytest.raises(UserError, match="is of another version of OpenBLIP"):
        Catalog(SqliteDatabase(tmp_path / "other"))


def test_an_index_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only file system; whoever runs the tests may be allowed to write anywhere."""
    folder = tmp_path / "I"
    filled(folder).close()
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setattr(os, "access", lambda *_: False)
    fixed = Catalog(SqliteDatabase(folder))
    assert fixed.count() == 4
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        fixed.put(record("/new.jpg", 6))
    fixed.close()
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
