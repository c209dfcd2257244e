"""Every format that is read, on small files made on the spot, and every mistake in them."""

from __future__ import annotations

import contextlib
import csv
import json
import tracemalloc
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
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources import open_source
from openblip.data.sources.records import read_records


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"image": f"images/{n}.png", "caption": f"image {n}"} for n in range(count)]


# ---- folders ----


def test_folder_with_texts_beside_the_images(image_folder: Path) -> None:
    (image_folder / "0.txt").write_text("zero\n\n  nought  \n", encoding="utf-8")
    (image_folder / "1.txt").write_text("\ufeffein Käfer", encoding="utf-8")
    inner = image_folder / "more" / "deep"
    inner.mkdir(parents=True)
    (inner / "77.PNG").write_bytes(encoded(make_image(77)))
    (inner / "77.txt").write_text("seventy-seven")
    (image_folder / ".hidden.png").write_bytes(b"")
    source = open_source(str(image_folder))
    assert len(source) == 11
    by_key = {source[i].key: source[i] for i in range(11)}
    assert by_key["0.png"].texts == ("zero", "nought")
    assert by_key["1.png"].texts == ("ein Käfer",)
    assert by_key["2.png"].texts == ()
    assert by_key["more/deep/77.PNG"].texts == ("seventy-seven",)


def test_folder_text_that_is_not_utf8(image_folder: Path) -> None:
    (image_folder / "0.txt").write_bytes("Käfer".encode("latin-1"))
    with pytest.raises(BrokenSample, match="bad-text"):
        open_source(str(image_folder))[0]


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        open_source(str(tmp_path))


# ---- captions files ----


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        return write_jsonl(path, rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


KINDS = [".jsonl", ".csv", ".tsv", ".parquet", ".json"]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_file(image_folder: Path, tmp_path: Path, kind: str) -> None:
    source = open_source(str(write_table(tmp_path / f"captions{kind}", rows_of(10))))
    assert contents(source) == [(n, (f"image {n}",), f"images/{n}.png") for n in range(10)]
    assert source.bad_rows == []
    assert source.describe()["num_samples"] == 10


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_image_are_one_sample_or_pairs(image_folder: Path, tmp_path: Path, kind: str) -> None:
    order = [3, 1, 3, 2, 1, 3]
    rows = [{"image": f"images/{n}.png", "caption": f"{k} of {n}"} for k, n in enumerate(order)]
    path = str(write_table(tmp_path / f"captions{kind}", rows))
    assert [(n, texts) for n, texts, _ in contents(open_source(path))] == [
        (3, ("0 of 3", "2 of 3", "5 of 3")),
        (1, ("1 of 1", "4 of 1")),
        (2, ("3 of 2",)),
    ]
    pairs = open_source(SourceConfig(path=path, pairs=True))
    assert [(n, texts) for n, texts, _ in contents(pairs)] == [
        (n, (text,))
        for n, texts in [(3, ("0 of 3", "2 of 3", "5 of 3")), (1, ("1 of 1", "4 of 1")), (2, ("3 of 2",))]
        for text in texts
    ]
    assert [pairs[i].image_id for i in range(6)] == [f"images/{n}.png" for n in (3, 3, 3, 1, 1, 2)]
    assert len({pairs[i].key for i in range(6)}) == 6


@pytest.mark.parametrize(("image", "text"), [("img_path", "TEXT"), ("filename", "captions"), ("File", "Txt")])
def test_columns_are_guessed(image_folder: Path, tmp_path: Path, image: str, text: str) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{text: "hello", "other": 1, image: "images/4.png"}])
    assert contents(open_source(str(path)))[0][:2] == (4, ("hello",))


def test_columns_by_name_lists_ids_meta_and_root(image_folder: Path, tmp_path: Path) -> None:
    rows = [{"a": "4.png", "b": ["x", "", "y"], "n": 7, "more": {"deep": [1]}, "caption": "no"}]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    source = open_source(
        SourceConfig(
            path=str(path),
            image_column="a",
            text_column="b",
            id_column="n",
            meta_columns=("more",),
            image_root=str(image_folder),
        )
    )
    assert contents(source) == [(4, ("x", "y"), "7")]
    assert source[0].meta == {"more": {"deep": [1]}}


@pytest.mark.parametrize("kind", KINDS)
def test_missing_column_names_file_columns_and_nearest(tmp_path: Path, kind: str) -> None:
    path = write_table(tmp_path / f"data{kind}", [{"image": "a.png", "captoin": "x"}])
    with pytest.raises(UserError) as caught:
        open_source(str(path))
    for word in (path.name, "no caption column", '"captoin"', "text_column"):
        assert word in str(caught.value)
    with pytest.raises(UserError, match=r'no column "captain".*did you mean "captoin"'):
        open_source(SourceConfig(path=str(path), text_column="captain"))


def test_web_addresses_are_explained(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "laion.jsonl", [{"url": "http://x/y.jpg", "TEXT": "a"}])
    with pytest.raises(UserError, match="img2dataset"):
        open_source(str(path))
    path = write_jsonl(tmp_path / "mixed.jsonl", [{"image": "http://x/y.jpg", "caption": "a"}])
    with pytest.raises(BrokenSample, match="web address"):
        open_source(str(path))[0]


def test_captions_are_not_needed_where_they_are_to_be_written(image_folder: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", [{"image": "images/4.png"}])
    assert contents(open_source(SourceConfig(path=str(path), need_texts=False)))[0][:2] == (4, ())


def test_broken_lines_are_kept_apart(image_folder: Path, tmp_path: Path) -> None:
    rows = [*rows_of(2), '{"image": "images/2.png", "capt', '["list"]', {"caption": "no image"}, ""]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    with open(path, "ab") as file:
        file.write(b'{"image": "\xff.png"}\n')
    source = open_source(str(path))
    assert len(source) == 2
    assert [(bad.cause, bad.key) for bad in source.bad_rows] == [
        ("bad-row", f"data.jsonl line {line}") for line in (3, 4, 5, 7)
    ]


def test_broken_csv_rows(image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    lines = ['"image","caption"', 'images/1.png,"one, ""two""\nthree"', "images/2.png", "images/3.png,a,b", ",x"]
    path.write_bytes("\r\n".join(lines).encode() + b"\r\nimages/4.png,\xff\xfe\r\n")
    source = open_source(str(path))
    assert contents(source) == [(1, ('one, "two"\nthree',), "images/1.png")]
    assert len(source.bad_rows) == 4


def test_a_quote_that_is_never_closed_costs_one_row(image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    lines = ["image,caption", 'images/0.png,"a line\nbreak"', 'images/1.png,"never closed', *(
        f"images/{n}.png,image {n}" for n in range(2, 9)
    ), 'images/9.png,"again']  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    source = open_source(str(path))
    assert [n for n, _, _ in contents(source)] == [0, 2, 3, 4, 5, 6, 7, 8]
    assert source[0].texts == ("a line\nbreak",)
    assert [bad.key for bad in source.bad_rows] == ["data.csv line 4", "data.csv line 12"]
    assert source.bad_rows[1].detail == "a quote is opened here and never closed"


def test_many_stray_quotes_and_a_value_that_is_too_long(image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    stray = [f'images/{n % 10}.png,"stray {n}' for n in range(2001)]  # an odd number: the last one is never closed
    too_long = f"images/3.png,{'x' * 200_000}"
    path.write_text("\n".join(["image,caption", "images/2.png,first", *stray, too_long, "images/4.png,last"]))
    source = open_source(str(path))
    assert contents(source) == [(2, ("first",), "images/2.png"), (4, ("last",), "images/4.png")]
    assert [bad.key for bad in source.bad_rows] == [f"data.csv line {line}" for line in range(3, 2005)]


def test_quotes_in_tsv_swallow_nothing(image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text('image\tcaption\nimages/1.png\t"open quote\nimages/2.png\t"a ""b"" c"\n')
    assert [texts for _, texts, _ in contents(open_source(str(path)))] == [('"open quote',), ('a "b" c',)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", "", "no rows that can be read"),
        ("a.jsonl", "not json\n", "not JSON"),
        ("a.csv", "", "no rows"),
        ("a.csv", "image,caption\n", "no rows"),
        ("a.json", "", "neither"),
        ("a.json", "[]", "no rows"),
        ("a.json", '[{"image": "a", "caption": "b"}, {"ima', "is not JSON"),
        ("a.json", '[{"image": "a", "caption": "b"}', "cut"),
        ("a.json", '{"image": ', "not JSON"),
        ("a.json", '{"foo": 1, "bar": 2}', "'foo', 'bar'"),
        ("a.parquet", "PAR1 not parquet", "parquet"),
        ("a.yaml", "x: 1", "no known kind"),
        ("a.tar", "not a tar" * 100, "hold no images"),
        ("a.tar", "", "hold no images"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        open_source(str(tmp_path / name))


def test_paths_may_not_leave_the_root(image_folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.png"
    outside.write_bytes(encoded(make_image(9)))
    names = ["../secret.png", str(outside), "inner/../../other.png", "inner/../3.png", str(image_folder / "4.png")]
    path = write_jsonl(image_folder / "data.jsonl", [{"image": name, "caption": "x"} for name in names])
    source = open_source(str(path))
    for index in range(3):
        with pytest.raises(BrokenSample, match=r"bad-row.*leads out of"):
            source[index]
    assert [number_of(np.asarray(decode_image(source[i])).transpose(2, 0, 1)) for i in (3, 4)] == [3, 4]
    trusted = open_source(SourceConfig(path=str(path), absolute_paths=True))
    assert decode_image(trusted[1]).size == (40, 30)
    with pytest.raises(BrokenSample):
        trusted[0]  # a relative path still may not climb out


def test_splits(image_folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "split": "test" if n % 3 == 0 else "train"} for n, row in enumerate(rows_of(10))]
    for kind in KINDS:
        path = write_table(tmp_path / f"data{kind}", rows)
        source = open_source(SourceConfig(path=str(path), split="test"))
        assert [n for n, _, _ in contents(source)] == [0, 3, 6, 9]
        with pytest.raises(UserError, match=r'no rows of split "tset".*did you mean "test"'):
            open_source(SourceConfig(path=str(path), split="tset"))


# ---- the JSON files of COCO ----


def test_blip_pretraining_and_karpathy_train(image_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"caption": f"c{k}", "image": f"images/{n}.png", "image_id": f"coco_{n}"} for k, n in enumerate([5, 5, 6])
    ]
    path = tmp_path / "coco_karpathy_train.json"
    path.write_text(json.dumps(rows))
    assert contents(open_source(str(path))) == [(5, ("c0", "c1"), "coco_5"), (6, ("c2",), "coco_6")]
    assert len(open_source(SourceConfig(path=str(path), pairs=True))) == 3


def test_karpathy_dataset(image_folder: Path, tmp_path: Path) -> None:
    images = [
        {
            "filepath": "images",
            "filename": f"{n}.png",
            "cocoid": 100 + n,
            "split": split,
            "sentences": [{"raw": f"{n} a", "tokens": ["a"]}, {"raw": f"{n} b"}],
        }
        for n, split in enumerate(["train", "restval", "val", "test"])
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    train = open_source(SourceConfig(path=str(path), split="train"))  # with restval, as is usual
    assert contents(train) == [(0, ("0 a", "0 b"), "100"), (1, ("1 a", "1 b"), "101")]
    assert [n for n, _, _ in contents(open_source(SourceConfig(path=str(path), split="test")))] == [3]


def test_coco_annotations(image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions_val2014.json"
    content = {
        "images": [{"id": 41, "file_name": "1.png"}, {"id": 42, "file_name": "2.png"}],
        "annotations": [
            {"image_id": 42, "caption": "b"},
            {"image_id": 41, "caption": "a"},
            {"image_id": 42, "caption": "c"},
        ],
    }
    path.write_text(json.dumps(content))
    source = open_source(SourceConfig(path=str(path), image_root=str(image_folder)))
    assert contents(source) == [(2, ("b", "c"), "42"), (1, ("a",), "41")]


def test_json_lists_longer_than_one_piece(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openblip.data.sources.records._CHUNK", 13)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{**row, "pad": "x" * (7 * n)} for n, row in enumerate(rows_of(10))]))
    assert [n for n, _, _ in contents(open_source(str(path)))] == list(range(10))


def test_a_json_list_in_one_long_line_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    row = {"image": "a.png", "caption": "a", "pad": "x" * 1000}
    path.write_text(json.dumps([row] * 20_000))
    tracemalloc.start()
    try:
        assert next(read_records(path, SourceConfig(path=str(path)))) == ("data.json[0]", row)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2
    finally:
        tracemalloc.stop()


# ---- Hugging Face datasets ----


def test_hugging_face_dataset(tmp_path: Path, image_folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "sentences": datasets.List(datasets.Value("string")),
            "image_id": datasets.Value("int64"),
        }
    )
    rows = {
        "photo": [{"bytes": encoded(make_image(n)), "path": None} for n in range(4)],
        "sentences": [[f"a{n}", f"b{n}"] for n in range(4)],
        "image_id": [7, 8, 9, 9],
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": data, "val": data.select([3])}).save_to_disk(str(tmp_path / "both"))
    source = open_source(f"hf:{tmp_path / 'both'}:train")
    assert contents(source)[1] == (1, ("a1", "b1"), "8")
    assert len(open_source(f"hf:{tmp_path / 'both'}:val")) == 1
    pairs = open_source(SourceConfig(path=str(tmp_path / "both"), split="train", pairs=True))
    assert [pairs[i].texts[0] for i in (0, 1, 7)] == ["a0", "b0", "b3"]
    with pytest.raises(UserError, match="several splits: train, val"):
        open_source(f"hf:{tmp_path / 'both'}")
    with pytest.raises(UserError, match=r'no split "trian".*did you mean "train"'):
        open_source(f"hf:{tmp_path / 'both'}:trian")
    data.save_to_disk(str(tmp_path / "one"))
    assert len(open_source(str(tmp_path / "one"))) == 4


def test_rows_of_the_hub_name_no_files_outside(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    cache = tmp_path / "cache"
    cache.mkdir()
    for place in (tmp_path / "private.png", cache / "7.png"):
        place.write_bytes(encoded(make_image(7)))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", cache)
    climbing = str(cache / ".." / "private.png")
    names = ["../private.png", str(tmp_path / "private.png"), climbing, "3.png", str(cache / "7.png")]
    data = datasets.Dataset.from_dict({"image": names, "caption": list("abcde")})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: data)

    def read(spec: str) -> list[int]:
        """Which samples can be read."""
        source, found = open_source(spec), []
        for index in range(len(source)):
            with contextlib.suppress(BrokenSample):
                decode_image(source[index])
                found.append(index)
        return found

    assert read("hf:some/name") == [4]
    assert read(f"hf:some/name?image_root={image_folder}") == [3, 4]
    assert read("hf:some/name?absolute_paths=true") == [1, 2, 4]
    with pytest.raises(BrokenSample, match=r"bad-row.*starts from no folder; name one as image_root"):
        open_source("hf:some/name")[0]
    with pytest.raises(BrokenSample, match=r"bad-row.*leads out of .*; set absolute_paths if you trust"):
        open_source("hf:some/name")[1]


# ---- finding out what a path is ----


def test_folder_with_a_captions_file(image_folder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "captions.jsonl", rows_of(3))
    write_jsonl(tmp_path / "other.jsonl", rows_of(5))
    assert len(open_source(str(tmp_path))) == 3
    (tmp_path / "captions.jsonl").unlink()
    assert len(open_source(str(tmp_path))) == 5
    write_jsonl(tmp_path / "third.jsonl", rows_of(2))
    with pytest.raises(UserError, match=r"several captions files \(other.jsonl, third.jsonl\)"):
        open_source(str(tmp_path))


def test_nothing_there_names_the_nearest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "captions.jsonl", rows_of(1))
    with pytest.raises(UserError, match=r'there is no .*did you mean "captions.jsonl"'):
        open_source(str(tmp_path / "caption.jsonl"))
    with pytest.raises(UserError, match="not on this machine"):
        open_source("https://example.org/{000..010}.tar")


def test_settings_in_the_path() -> None:
    config = parse_spec("a/b.jsonl?text_column=x&weight=2&pairs=true&meta_columns=u,v")
    assert config == SourceConfig(
        path="a/b.jsonl", text_column="x", weight=2.0, pairs=True, meta_columns=("u", "v")
    )
    assert parse_spec("tars/0?.tar") == SourceConfig(path="tars/0?.tar")
    for wrong, right in (("wieght=2", "weight"), ("text_colum=x", "text_column")):
        with pytest.raises(UserError, match=rf'a.jsonl.*unknown setting "{wrong[:6]}.*did you mean "{right}"'):
            parse_spec(f"a.jsonl?{wrong}")
    for bad in ("a.jsonl?weight=two", "a.jsonl?weight=-1", "a.jsonl?pairs=perhaps"):
        with pytest.raises(UserError, match=r"weight|pairs"):
            parse_spec(bad)


def test_world_source() -> None:
    source = open_source("world:train?n=5&seed=3&pairs=true")
    assert source.describe()["num_images"] == 5
    assert len(source) > 5
    with pytest.raises(UserError, match=r"train"):
        open_source("world:trian?n=5")
