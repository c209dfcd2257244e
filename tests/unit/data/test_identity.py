"""Which image a row shows: missing ids, ids of several data sets in one file, in every kind of table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_data import contents, encoded, make_image

from openblip.data.sample import BrokenSample
from openblip.data.source_config import SourceConfig
from openblip.data.sources import open_source
from openblip.data.sources.cells import as_texts, given_id, is_missing, row_images
from openblip.data.sources.identity import id_strings, image_ids, image_name, settle_ids
from openblip.data.sources.questions import open_questions

KINDS = ["csv", "tsv", "jsonl", "json", "parquet"]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as a table; a missing value is what each kind has for it (an empty cell, null, a field left out)."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            delimiter = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, restval="")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def ids(*values: str) -> pa.Array:
    return pa.array(values, pa.large_string())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, "") for value in (None, float("nan"), "", "  ", "nan", "NaN", "None", "null", "<NA>")),
        *(
            (7, "7"),
            (7.0, "7"),
            (7.5, "7.5"),
            (" 7 ", "7"),
            ("coco_7", "coco_7"),
            (0, "0"),
            (0.0, "0"),
            (-3.0, "-3"),
        ),
        *((float("inf"), ""), (2.0**60, str(2**60)), (b"\x01\xff", "01ff"), (True, "True")),
    ],
)
def test_an_id_is_never_made_of_nothing(value: Any, expected: str) -> None:
    assert given_id(value) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_an_id_are_images_by_their_path(image_folder: Path, tmp_path: Path, kind: str) -> None:
    given: list[Any] = [None, "", None, "17", "17", ""]
    paths = [0, 1, 2, 3, 3, 1]
    rows = [
        {"image": f"images/{n}.png", "caption": f"c{k}", "image_id": image_id}
        for k, (n, image_id) in enumerate(zip(paths, given, strict=True))
    ]
    source = open_source(written(tmp_path / f"data.{kind}", rows))
    assert contents(source) == [
        (0, ("c0",), "images/0.png"),
        (1, ("c1", "c5"), "images/1.png"),
        (2, ("c2",), "images/2.png"),
        (3, ("c3", "c4"), "17"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_id_is_the_one_that_the_image_has_elsewhere(
    image_folder: Path, tmp_path: Path, kind: str
) -> None:
    rows = [
        {"image": f"images/{n}.png", "caption": f"c{k}", "image_id": image_id}
        for k, (n, image_id) in enumerate([(4, ""), (4, "9"), (5, "10"), (5, "")])
    ]
    source = open_source(written(tmp_path / f"data.{kind}", rows))
    assert contents(source) == [(4, ("c0", "c1"), "9"), (5, ("c2", "c3"), "10")]


@pytest.mark.parametrize("kind", KINDS)
def test_one_id_of_two_data_sets_loses_no_image(image_folder: Path, tmp_path: Path, kind: str) -> None:
    """COCO and Visual Genome in one file, both counted from 1."""
    rows = [
        {"image": f"images/{n}.png", "caption": f"c{k}", "image_id": image_id}
        for k, (n, image_id) in enumerate([(1, 1), (1, 1), (6, 1), (2, 2), (6, 1)])
    ]
    source = open_source(written(tmp_path / f"data.{kind}", rows))
    assert contents(source) == [
        (1, ("c0", "c1"), "1 images/1.png"),
        (6, ("c2", "c4"), "1 images/6.png"),
        (2, ("c3",), "2"),
    ]
    pairs = open_source(SourceConfig(path=str(tmp_path / f"data.{kind}"), pairs=True))
    assert len({pairs[i].image_id for i in range(5)}) == 3


def test_two_spellings_of_a_path_are_one_image(image_folder: Path, tmp_path: Path) -> None:
    rows = [{"image": path, "caption": path, "image_id": 1} for path in ("images/1.png", "./images/1.png")]
    assert len(open_source(written(tmp_path / "data.jsonl", rows))) == 1


def test_no_id_is_that_of_another_row_s_path() -> None:
    found = image_ids(ids("a.png", "", ""), ids("x/a.png", "a.png", "b.png")).to_pylist()
    assert found == ["a.png x/a.png", "a.png a.png", "b.png"]
    assert len(image_ids(ids(), ids())) == 0


def test_ids_that_pandas_made_floats_of(image_folder: Path, tmp_path: Path) -> None:
    column = pa.array([3.0, None, float("nan"), 4.0], pa.float64())
    assert id_strings(column).to_pylist() == ["3", "", "", "4"]
    assert id_strings(pa.array([3, None], pa.int64())).to_pylist() == ["3", ""]
    assert id_strings(pa.array(["a", None, "a"]).dictionary_encode()).to_pylist() == ["a", "", "a"]
    assert id_strings(pa.chunked_array([["a"], ["b"]])).to_pylist() == ["a", "b"]
    names = [f"images/{n}.png" for n in range(4)]
    table = pa.table({"image": names, "caption": names, "image_id": column})
    pq.write_table(table, tmp_path / "a.parquet")
    expected = ["3", "images/1.png", "images/2.png", "4"]
    source = open_source(str(tmp_path / "a.parquet"))
    assert [source[i].image_id for i in range(4)] == expected
    text = "image,caption,image_id\n" + "".join(
        f"{n},{n},{i}\n" for n, i in zip(names, ["3.0", "", "", "4.0"], strict=True)
    )
    (tmp_path / "a.csv").write_text(text)  # as DataFrame.to_csv writes them
    source = open_source(str(tmp_path / "a.csv"))
    assert [source[i].image_id for i in range(4)] == expected
    (tmp_path / "a.csv").write_text(text.replace("4.0", "v4.0"))  # versions are no numbers
    source = open_source(str(tmp_path / "a.csv"))
    assert [source[i].image_id for i in (0, 3)] == ["3.0", "v4.0"]


@pytest.mark.parametrize("layout", ["binary", "struct"])
def test_images_inside_parquet(tmp_path: Path, layout: str) -> None:
    shown = [0, 0, 1, 2, 2, 3]
    given = [5, 5, 5, None, None, 6]
    images: list[Any] = [encoded(make_image(n)) for n in shown]
    if layout == "struct":  # whose paths are of each row
        images = [{"bytes": data, "path": f"row{k}.png"} for k, data in enumerate(images)]
    rows = [
        {"image": i, "caption": f"c{k}", "image_id": g} for k, (i, g) in enumerate(zip(images, given, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    name = [image_name(encoded(make_image(n))) for n in range(4)]
    assert contents(open_source(str(tmp_path / "a.parquet"))) == [
        (0, ("c0", "c1"), f"5 {name[0]}"),
        (1, ("c2",), f"5 {name[1]}"),
        (2, ("c3", "c4"), name[2]),
        (3, ("c5",), "6"),
    ]


def test_images_are_read_only_where_ids_need_them() -> None:
    asked: list[list[int]] = []

    def names_of(rows: Any) -> list[str]:
        asked.append(rows.tolist())
        return [f"n{row}" for row in rows]

    assert settle_ids(ids("a", "b", "c"), names_of).to_pylist() == ["a", "b", "c"]
    assert settle_ids(ids("a", "", "b", "a"), names_of).to_pylist() == ["a n0", "n1", "b", "a n3"]
    assert asked == [[0, 1, 3]]


def test_parquet_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        rows = [{"image": encoded(make_image(ord(folder))), "caption": folder}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / folder / "0.parquet")
    source = open_source(str(tmp_path / "*" / "0.parquet"))
    assert [source[i].image_id for i in range(2)] == ["a/0.parquet:0", "b/0.parquet:0"]


def test_hugging_face_ids(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "image_id": datasets.Value("int64")}
    )
    shown, given = [0, 0, 1, 2, 3], [5, 5, 5, None, 2]
    rows = {
        "image": [{"bytes": encoded(make_image(n)), "path": None} for n in shown],
        "caption": [f"c{k}" for k in range(5)],
        "image_id": given,
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "d"))
    name = [image_name(encoded(make_image(n))) for n in range(4)]
    assert [i for _, _, i in contents(open_source(str(tmp_path / "d")))] == [
        f"5 {name[0]}",
        f"5 {name[0]}",
        f"5 {name[1]}",
        name[2],
        "2",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, [], [None, float("nan"), " "], {"raw": None}])
def test_nothing_is_no_text(value: Any) -> None:
    assert as_texts(value) == ()
    assert is_missing(float("nan"))
    assert not is_missing("nan")


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_nan_is_no_caption_and_no_answer(image_folder: Path, tmp_path: Path, kind: str) -> None:
    rows = [
        {"image": "images/0.png", "caption": float("nan"), "question": "which?", "answer": float("nan")},
        {"image": "images/1.png", "caption": float("nan"), "question": "which?", "answer": 3.0},
    ]
    path = written(tmp_path / f"data.{kind}", rows)
    source = open_source(path)
    assert [texts for _, texts, _ in contents(source)] == [(), ()]
    assert source.text_counts().tolist() == [0, 0]
    questions = open_questions(path)
    broken = [bad.detail for bad in questions.bad_rows]
    assert broken == ['no answer under "answer"']
    assert len(open_source(path)) == 2


def test_pandas_missing_values() -> None:
    pandas = pytest.importorskip("pandas")
    assert (as_texts(pandas.NA), given_id(pandas.NA), given_id(pandas.NaT)) == ((), "", "")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a.png", "a.png"),
        (b"\x89PNG", b"\x89PNG"),
        ({"bytes": None, "path": "a.png"}, "a.png"),
        ({"bytes": b"x", "path": "a.png"}, b"x"),
        ([{"bytes": b"x", "path": None}], b"x"),
        (["a.png"], "a.png"),
        (["", None, "a.png"], "a.png"),
        *((nothing, None) for nothing in (None, "", " ", [], {}, {"bytes": None, "path": None}, float("nan"), 3)),
    ],
)
def test_one_image_in_a_cell(cell: Any, expected: Any) -> None:
    assert row_images([cell], ["image"], "k") == (() if expected is None else (expected,))


def test_several_images_in_a_cell_are_reported() -> None:
    with pytest.raises(BrokenSample, match='holds 2 images under "image", where a sample has 1'):
        row_images([["a.png", {"bytes": b"x"}]], ["image"], "k")


@pytest.mark.parametrize(
    "cells",
    [
        ["a.png", {"bytes": b"x"}],
        [["a.png", {"bytes": b"x"}]],
    ],
)
def test_two_images_in_one_cell_or_in_two(cells: list[Any]) -> None:
    columns = ["left", "right"][: len(cells)]
    assert row_images(cells, columns, "k", count=2) == ("a.png", b"x")
    with pytest.raises(BrokenSample, match="where a sample has 3"):
        row_images(cells, columns, "k", count=3)


def test_two_images_in_the_json_of_a_text_file() -> None:
    assert row_images(['["a.png", "b.png"]'], ["images"], "k", count=2) == ("a.png", "b.png")
    assert row_images(["[1].png"], ["image"], "k") == ("[1].png",)
    with pytest.raises(BrokenSample, match='no image under "right", where a sample has 2'):
        row_images(["a.png", None], ["left", "right"], "k", count=2)
