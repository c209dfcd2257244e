"""Images packed into other files: parquet and tars, whole, cut and damaged."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_data import contents, encoded, make_image, number_of

from openblip.core.errors import UserError
from openblip.data.images import decode_image
from openblip.data.sample import BrokenSample
from openblip.data.source_config import SourceConfig
from openblip.data.sources import open_source

# ---- parquet with images inside ----


@pytest.mark.parametrize("inside", ["binary", "struct"])
def test_parquet_with_images(tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openblip.data.sources.parquet._CACHE_BYTES", 1)  # keep two row groups only
    folder = tmp_path / "parquet"
    folder.mkdir()
    for part in range(2):
        rows = []
        for n in range(part * 10, part * 10 + 10):
            data = encoded(make_image(n)) if n != 13 else None
            image = {"bytes": data, "path": f"{n}.png"} if inside == "struct" else data
            rows.append(
                {"image": image, "texts": [f"p{n}", f"q{n}"] if n != 4 else [], "split": "a" if n % 2 else "b"}
            )
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet", row_group_size=4)
    source = open_source(str(folder))
    assert [len(block) for block in source.blocks or ()] == [4, 4, 2, 4, 4, 2]
    order = np.random.default_rng(0).permutation(20)
    for index in order:
        if index == 13:
            with pytest.raises(BrokenSample, match="no image"):
                source[13]
            continue
        sample = source[int(index)]
        assert number_of(np.asarray(decode_image(sample)).transpose(2, 0, 1)) == index
        assert sample.texts == ((f"p{index}", f"q{index}") if index != 4 else ())
    odd = open_source(SourceConfig(path=str(folder), split="a", pairs=True))
    assert [odd[i].texts[0] for i in range(4)] == ["p1", "q1", "p3", "q3"]
    assert len(odd) == 20


def test_parquet_files_with_different_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.png"], "caption": ["a"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet"):
        open_source(str(tmp_path))


# ---- tars ----


@pytest.mark.parametrize("layout", ["folder", "glob", "braces", "pax", "ustar"])
def test_tars(tmp_path: Path, write_tar: Any, layout: str) -> None:
    import tarfile

    kind = {"pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}.get(layout, tarfile.GNU_FORMAT)
    write_tar("t/00000.tar", 0, 4, format=kind)
    write_tar("t/00002.tar", 4, 3, format=kind)  # a missing number does not matter
    (tmp_path / "t" / "00000_stats.json").write_text("{}")
    pattern = {"glob": "t/*.tar", "braces": "t/{00000..00003}.tar"}.get(layout, "t")
    source = open_source(str(tmp_path / pattern))
    assert [(n, texts) for n, texts, _ in contents(source)] == [(n, (f"image number {n}",)) for n in range(7)]
    assert source.blocks == [range(4), range(4, 7)]
    assert source[5].key == "00002/000000005"
    if layout == "braces":
        assert source.describe()["num_missing_tars"] == 2


def test_a_tar_that_is_replaced_is_read_anew(tmp_path: Path, write_tar: Any) -> None:
    write_tar("t/0.tar", 0, 2)
    assert [n for n, _, _ in contents(open_source(str(tmp_path / "t")))] == [0, 1]
    write_tar("new.tar", 5, 2).replace(tmp_path / "t" / "0.tar")  # its members lie at the same places
    found = contents(open_source(str(tmp_path / "t")))
    assert [(n, texts) for n, texts, _ in found] == [(n, (f"image number {n}",)) for n in (5, 6)]


def test_tar_fields(write_tar: Any) -> None:
    path = str(write_tar("a.tar", 0, 3))
    source = open_source(SourceConfig(path=path, text_column="caption", id_column="url", meta_columns=("status",)))
    sample = source[2]
    assert (sample.texts, sample.image_id, sample.meta) == (("json 2",), "u2", {"status": "success"})
    with pytest.raises(UserError, match=r'no "captoin".*did you mean "caption"'):
        open_source(SourceConfig(path=path, text_column="captoin"))


def test_long_names_and_folders_in_tars(tmp_path: Path) -> None:
    import io
    import tarfile

    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
            folder = tarfile.TarInfo("deep")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name, data in (
                ("deep/" + "k" * 150 + ".seg.png", encoded(make_image(8))),
                ("deep/" + "k" * 150 + ".txt", b"one\ntwo\n"),
                ("deep/._" + "k" * 150 + ".png", b"resource fork"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        source = open_source(str(tmp_path / "a.tar"))
        assert contents(source) == [(8, ("one", "two"), "a/deep/" + "k" * 150)]
        assert len(open_source(SourceConfig(path=str(tmp_path / "a.tar"), pairs=True))) == 2


def test_tar_cut_short_keeps_what_came_before(write_tar: Any) -> None:
    path = write_tar("a.tar", 0, 6)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    source = open_source(str(path))
    assert 1 < len(source) < 6
    assert [bad.cause for bad in source.bad_rows] == ["truncated"]
    assert [n for n, _, _ in contents(source)] == list(range(len(source)))


def test_damaged_tar_keeps_what_came_before(write_tar: Any) -> None:
    path = write_tar("a.tar", 0, 6)
    data = bytearray(path.read_bytes())
    place = data.index(b"000000003.png")
    data[place : place + 5] = b"XXXXX"
    path.write_bytes(bytes(data))
    source = open_source(str(path))
    assert len(source) == 3
    assert [bad.cause for bad in source.bad_rows] == ["unreadable"]


def test_tar_without_images_and_compressed_tar(tmp_path: Path, write_tar: Any) -> None:
    path = write_tar("a.tar", 0, 2)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match="no known kind"):
        open_source(str(tmp_path / "b.tar.gz"))


# ---- damaged parquet ----


def write_parquet(path: Path, count: int = 40) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        {"image": encoded(make_image(n)) + rng.bytes(400), "caption": f"image number {n} {rng.integers(1 << 40)}"}
        for n in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    return path


@pytest.mark.parametrize("cut", [3, 100, 2000])
def test_parquet_cut_short(tmp_path: Path, cut: int) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as parquet"):
        open_source(str(path))


def test_parquet_with_damaged_pages_is_told_or_skipped(tmp_path: Path) -> None:
    """Wherever bytes are overwritten: a sentence on opening, broken samples, or good ones; never a traceback."""
    whole = write_parquet(tmp_path / "a.parquet").read_bytes()
    outcomes = set()
    for place in range(4, len(whole) - 8, len(whole) // 60):
        data = bytearray(whole)
        data[place : place + 40] = b"\xff" * min(40, len(data) - place)
        (tmp_path / "b.parquet").write_bytes(data)
        try:
            source = open_source(str(tmp_path / "b.parquet"))
        except UserError as error:
            outcomes.add("told" if "b.parquet" in str(error) else "told without the file")
            continue
        for index in range(0, len(source), 10):
            try:
                decode_image(source[index])
                outcomes.add("read")
            except BrokenSample as broken:
                outcomes.add("skipped" if broken.detail else "skipped without a reason")
    assert outcomes == {"told", "read", "skipped"}
