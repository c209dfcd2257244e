"""An index as parquet: what pyarrow and datasets read is what the index holds, in memory that does not grow."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small
import torch
from index_small import Counting, build

from openblip.core.errors import UserError
from openblip.index import Filters
from openblip.index import export as export_module
from openblip.index.catalog import remove
from openblip.index.export import export
from openblip.index.image_index import ImageIndex


@pytest.fixture
def index(where: Path | str, photos: Path, predictor: Counting) -> ImageIndex:
    (photos / "new" / "some.jsonl").write_text('{"image": "7.png", "caption": "a cat", "year": 7}\n')
    index, _ = build(where, predictor, photos, f"{photos / 'new' / 'some.jsonl'}?meta_columns=year")
    remove(index.catalog, [str(photos / "2.png")])
    return index


def name_of(index: ImageIndex) -> str:
    return "vector" if index.store.shape[0] == 1 else "vectors"


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_pyarrow_reads_what_the_index_holds(
    index: ImageIndex, photos: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "_MOST_ROWS", 4)
    done: list[int] = []
    out = tmp_path / "all.parquet"
    assert export(index.catalog, index.store, out, kind=kind, progress=done.append) == 9  # type: ignore[arg-type]
    assert done == [4, 8, 9]
    file = pq.ParquetFile(out)
    assert file.num_row_groups == 3
    assert file.schema_arrow.metadata[b"fingerprint"].decode() == index.catalog.settings["fingerprint"]
    table = file.read()
    assert {Path(path).name for path in table["path"].to_pylist()} == {f"{n}.png" for n in range(10) if n != 2}
    for row in table.to_pylist():
        record = index.catalog.find(row["path"])
        assert record is not None
        assert (row["file"], row["start"], row["length"]) == (record.file, None, None)
        assert (row["key"], row["date"]) == (record.hash, record.date)
        assert tuple(row["captions"]) == record.captions
        assert (
            json.loads(row["metadata"]) == record.metadata == ({"year": 7} if row["path"].endswith("7.png") else {})
        )
        held = torch.tensor(row[name_of(index)]).reshape(index.store.shape)
        assert torch.equal(held, index.store.read([record.vector])[0])
    field = table.schema.field(name_of(index)).type
    assert field.list_size == index.store.shape[-1 if index.store.shape[0] == 1 else 0]
    inner = field.value_type if index.store.shape[0] == 1 else field.value_type.value_type
    assert str(inner) == {"float16": "halffloat", "float32": "float"}[kind]


def test_datasets_reads_it(index: ImageIndex, photos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")
    out = tmp_path / "some.parquet"
    assert export(index.catalog, index.store, out, filters=Filters(folder=str(photos / "new"))) == 4
    read = datasets.load_dataset("parquet", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(Path(path).name for path in read["path"]) == [f"{number}.png" for number in range(6, 10)]
    held = np.array(read.with_format("numpy")[name_of(index)]).reshape(4, *index.store.shape)
    records = [index.catalog.find(path) for path in read["path"]]
    own = index.store.read([record.vector for record in records if record is not None])
    np.testing.assert_allclose(held, own.numpy(), atol=0)


def test_images_in_tars_and_names_that_are_not_text(where: Path | str, tmp_path: Path, blip: Counting) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    small.make_image(1).save(folder / "1.png")
    index, _ = build(where, blip, folder)
    assert export(index.catalog, index.store, tmp_path / "odd.parquet") == 1
    (path,) = pq.read_table(tmp_path / "odd.parquet")["path"].to_pylist()
    assert path == f"{tmp_path}/caf\\udce9/1.png"


def test_an_empty_index_and_a_missing_vector(
    where: Path | str, photos: Path, tmp_path: Path, blip: Counting
) -> None:
    index, _ = build(where, blip, photos)
    out = tmp_path / "none.parquet"
    assert export(index.catalog, index.store, out, filters=Filters(words="nothing")) == 0
    assert pq.read_table(out).num_rows == 0
    index.catalog.database.run("UPDATE images SET vector = 99")
    with pytest.raises(UserError, match="build it again"):
        export(index.catalog, index.store, tmp_path / "torn.parquet")
    assert not (tmp_path / "torn.parquet").exists()
