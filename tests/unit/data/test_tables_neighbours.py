"""Captions files that are nearly right: ids that lead nowhere, columns called twice, paths written in two ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openblip.core.errors import UserError
from openblip.data.sources import Source, open_source


def read(source: Source) -> list[tuple[str, tuple[str, ...], str]]:
    samples = (source[index] for index in range(len(source)))
    return [(sample.key, sample.texts, sample.image_id) for sample in samples]


def written(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_missing_ids_of_coco_belong_to_no_image(image_folder: Path) -> None:
    images = [{"file_name": "0.png", "id": None}, {"file_name": "1.png"}, {"file_name": "2.png", "id": 7.0}]
    annotations = [{"caption": "a"}, {"caption": "b", "image_id": None}, {"caption": "c", "image_id": "7"}]
    source = open_source(written(image_folder, "c.json", {"images": images, "annotations": annotations}))
    assert read(source) == [("2.png", ("c",), "7")]
    told = ["c.json[0]", "c.json[1]", "c.json image '0.png'", "c.json image '1.png'"]
    assert [broken.key for broken in source.bad_rows] == told
    assert source.bad_rows[0].detail == "it has no image_id"
    assert source.bad_rows[2].detail == "it has no id, and so no annotation"


def test_an_id_of_two_coco_images_is_reported(image_folder: Path) -> None:
    images = [{"file_name": "0.png", "id": 7}, {"file_name": "1.png", "id": 7}, {"file_name": "2.png", "id": 8}]
    annotations = [{"caption": "a", "image_id": 7}, {"caption": "b", "image_id": 8}]
    source = open_source(written(image_folder, "c.json", {"images": images, "annotations": annotations}))
    assert read(source) == [("2.png", ("b",), "8")]
    assert source.bad_rows[0].detail == "several images have its image_id, 7"


def test_a_coco_image_whose_name_is_a_list_is_reported(image_folder: Path) -> None:
    images = [{"file_name": ["0.png", "1.png"], "id": 7}, {"file_name": "2.png", "id": 8}]
    annotations = [{"caption": "a", "image_id": 7}, {"caption": "b", "image_id": 8}]
    source = open_source(written(image_folder, "c.json", {"images": images, "annotations": annotations}))
    assert read(source) == [("2.png", ("b",), "8")]
    assert [broken.key for broken in source.bad_rows] == ["c.json[0]"]


def test_a_path_written_in_two_ways_is_one_image(image_folder: Path) -> None:
    rows = [("0.png", "a"), ("./0.png", "b"), ("x/../0.png", "c"), ("1..png", "d"), (".//0.png", "e")]
    lines = "\n".join(json.dumps({"image": image, "caption": caption}) for image, caption in rows)
    expected = [("0.png", ("a", "b", "c", "e"), "0.png"), ("1..png", ("d",), "1..png")]
    assert read(open_source(written(image_folder, "c.jsonl", lines))) == expected
    table = pa.table({"image": [image for image, _ in rows], "caption": [caption for _, caption in rows]})
    pq.write_table(table, image_folder / "c.parquet")
    assert read(open_source(str(image_folder / "c.parquet"))) == expected


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.parquet"])
def test_nan_as_a_word_is_no_caption(image_folder: Path, name: str) -> None:
    rows = [("0.png", "nan"), ("1.png", "NaN"), ("2.png", "<NA>"), ("3.png", "nan bread"), ("4.png", "None")]
    if name == "c.csv":
        written(image_folder, name, "image,caption\n" + "".join(f"{a},{b}\n" for a, b in rows))
    elif name == "c.jsonl":
        written(image_folder, name, "\n".join(json.dumps({"image": a, "caption": b}) for a, b in rows))
    else:
        table = pa.table({"image": [a for a, _ in rows], "caption": [b for _, b in rows]})
        pq.write_table(table, image_folder / name)
    texts = [texts for _, texts, _ in read(open_source(str(image_folder / name)))]
    assert texts == [(), (), (), ("nan bread",), ("None",)]


def test_a_known_column_twice_is_refused(image_folder: Path) -> None:
    spec = written(image_folder, "c.csv", "image,caption,caption\n0.png,one,two\n")
    with pytest.raises(UserError, match='has 2 columns called "caption"'):
        open_source(spec)
    written(image_folder, "c.csv", "image,caption,,,note,note\n0.png,one,,,x,y\n")
    assert read(open_source(spec)) == [("0.png", ("one",), "0.png")]


@pytest.mark.parametrize("start", ["sep=;\r\n", '"sep=;"\r\n', "\n", "\r\n  \r\n"])
def test_lines_before_the_names(image_folder: Path, start: str) -> None:
    source = open_source(written(image_folder, "c.csv", start + "image;caption\n0.png;a, b\n1.png\n"))
    assert read(source) == [("0.png", ("a, b",), "0.png")]
    assert source.bad_rows[0].key == f"c.csv line {start.count(chr(10)) + 3}"


ROWS = [{"image": "0.png", "caption": "a, b"}, {"image": "1.png", "caption": "c"}]


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.txt", "c.json", "c.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, ROWS)),
        json.dumps(ROWS),
        "\ufeff" + json.dumps(ROWS, indent=1),
        'image,caption\n0.png,"a, b"\n1.png,c\n',
        "\ufeffimage\tcaption\n0.png\ta, b\n1.png\tc\n",
    ],
)
def test_the_content_decides_whatever_the_ending(image_folder: Path, name: str, text: str) -> None:
    assert [texts for _, texts, _ in read(open_source(written(image_folder, name, text)))] == [("a, b",), ("c",)]


def test_string_views_in_parquet(image_folder: Path) -> None:
    columns = {"image": ["0.png", "0.png"], "caption": ["a", "b"], "image_id": ["x", "x"], "split": ["t", "t"]}
    table = pa.table({name: pa.array(cells).cast(pa.string_view()) for name, cells in columns.items()})
    pq.write_table(table, image_folder / "c.parquet")
    for spec in ("c.parquet", "c.parquet?split=t"):
        assert read(open_source(f"{image_folder}/{spec}")) == [("0.png", ("a", "b"), "x")]
