"""Samples of several images: columns and lists that name them, what is broken, batches, and NLVR2's files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loaders import PLAIN, RANDOM, NoisyImages, make
from make_data import encoded, make_image, number_of

from openblip.core.errors import UserError
from openblip.data.images import decode_images
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig
from openblip.data.sources import open_source
from openblip.data.sources.statements import open_statements, statements_of

PAIRS = ((1, 2), (3, 4), (5, 6))


def numbers(sample: Sample) -> tuple[int, ...]:
    """Which images a sample holds."""
    return tuple(number_of(np.asarray(image).transpose(2, 0, 1)) for image in decode_images(sample))


def name(number: int) -> str:
    return f"images/{number}.png"


def write(tmp_path: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / f"pairs.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(
                {key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in row.items()}
                for row in rows
            )
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


KINDS = ["jsonl", "json", "csv", "parquet"]
COLUMNS = [("image_0", "image_1"), ("left", "right"), ("first", "other")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_a_column_for_each_image(image_folder: Path, tmp_path: Path, kind: str, columns: tuple[str, str]) -> None:
    rows = [{columns[0]: name(a), columns[1]: name(b), "caption": f"{a} {b}"} for a, b in PAIRS]
    spec = f"{write(tmp_path, kind, rows)}?num_images=2"
    if columns[0] == "first":  # unusual names have to be given
        with pytest.raises(UserError, match="has no image column"):
            open_source(spec)
        spec += "&image_column=first,other"
    source = open_source(spec)
    assert [numbers(source[i]) for i in range(3)] == list(PAIRS)
    assert source[0].key == "images/1.png,images/2.png"
    assert source.num_images == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_lists(image_folder: Path, tmp_path: Path, kind: str) -> None:
    rows = [{"images": [name(a), name(b)], "caption": f"{a} {b}"} for a, b in PAIRS]
    source = open_source(f"{write(tmp_path, kind, rows)}?num_images=2")
    assert [numbers(source[i]) for i in range(3)] == list(PAIRS)
    assert [source[i].texts for i in range(3)] == [("1 2",), ("3 4",), ("5 6",)]


@pytest.mark.parametrize("layout", ["lists", "columns"])
def test_images_inside_parquet(tmp_path: Path, layout: str) -> None:
    def cell(number: int) -> dict[str, Any]:
        return {"bytes": encoded(make_image(number)), "path": None}

    rows = [
        {"images": [cell(a), cell(b)], "caption": "c"}
        if layout == "lists"
        else {"image_0": cell(a), "image_1": cell(b), "caption": "c"}
        for a, b in PAIRS
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    source = open_source(f"{tmp_path / 'a.parquet'}?num_images=2")
    assert [numbers(source[i]) for i in range(3)] == list(PAIRS)


def test_hugging_face_columns_of_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [[{"bytes": encoded(make_image(pair[n])), "path": None} for pair in PAIRS] for n in (0, 1)]
    content = {"left_image": cells[0], "right_image": cells[1], "sentence": ["a", "b", "c"], "label": ["True"] * 3}
    data = datasets.Dataset.from_dict(content)
    for column in ("left_image", "right_image"):
        data = data.cast_column(column, datasets.Image())
    data.save_to_disk(str(tmp_path / "d"))
    source = open_statements(str(tmp_path / "d"))
    assert [numbers(source[i]) for i in range(3)] == list(PAIRS)
    assert [s.text for i in range(3) for s in statements_of(source[i].meta)] == ["a", "b", "c"]


def test_rows_of_one_pair_are_one_sample_and_the_order_of_images_counts(image_folder: Path, tmp_path: Path) -> None:
    pairs = ((1, 2), (2, 1), (1, 2))
    rows = [{"images": [f"./{name(a)}", name(b)], "caption": f"c{n}"} for n, (a, b) in enumerate(pairs)]
    rows.append({"images": [name(1), name(2)], "caption": "c3"})
    source = open_source(f"{write(tmp_path, 'jsonl', rows)}?num_images=2")
    assert [(numbers(source[i]), source[i].texts) for i in range(len(source))] == [
        ((1, 2), ("c0", "c2", "c3")),
        ((2, 1), ("c1",)),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_without_all_images_are_bad_rows_that_name_the_field(
    image_folder: Path, tmp_path: Path, kind: str
) -> None:
    rows = [
        {"image_0": name(1), "image_1": name(2), "caption": "c"},
        {"image_0": name(1), "image_1": None, "caption": "c"},
        {"image_0": None, "image_1": None, "caption": "c"},
    ]
    path = write(tmp_path, kind, rows)
    source = open_source(f"{path}?num_images=2")
    where = (
        ("pairs.jsonl line 2", "pairs.jsonl line 3") if kind == "jsonl" else ("pairs.parquet:1", "pairs.parquet:2")
    )
    assert [(bad.cause, bad.key) for bad in source.bad_rows] == [("bad-row", place) for place in where]
    assert source.bad_rows[0].detail == 'no image under "image_1", where a sample has 2'
    assert source.bad_rows[1].detail == 'no path under "image_0": None'
    lists = [{"images": [name(1), name(2)], "caption": "c"}, {"images": [name(1)], "caption": "c"}]
    source = open_source(f"{write(tmp_path, kind, lists)}?num_images=2")
    assert [bad.detail for bad in source.bad_rows] == ['the row holds 1 image under "images", where a sample has 2']


def test_the_number_of_columns_has_to_be_that_of_images(image_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"left": name(1), "right": name(2), "caption": "c"}])
    with pytest.raises(UserError, match="image_column names 2 columns, and a sample has 1 image here"):
        open_source(f"{path}?image_column=left,right")
    with pytest.raises(UserError, match="image_column names 2 columns, and a sample has 3 images here"):
        open_source(f"{path}?image_column=left,right&num_images=3")
    with pytest.raises(UserError, match=r"num_images of source .* must be at least 1, not 0"):
        SourceConfig(path="a.jsonl", num_images=0)
    source = open_source(f"{path}?image_column=left,right&num_images=2")
    with pytest.raises(UserError, match="has 2 images for each sample, and 1 are read here"):
        make(source, 1)
    with pytest.raises(BrokenSample, match=r"several-images: images/1.png,images/2.png: it has 2 images"):
        _ = source[0].image


# ---- batches ----


def pair_source(tmp_path: Path, *, break_second: bool = False) -> str:
    rows = [{"images": [name(2 * n), name(2 * n + 1)], "caption": f"c{n}"} for n in range(5)]
    if break_second:
        (tmp_path / name(5)).write_bytes(encoded(make_image(5))[:20])
        (tmp_path / name(9)).unlink()
    return f"{write(tmp_path, 'jsonl', rows)}?num_images=2"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_batch_holds_all_images_of_its_samples(image_folder: Path, tmp_path: Path, workers: int) -> None:
    loader = make(
        open_source(pair_source(tmp_path)), 5, transform=PLAIN, shuffle=False, num_images=2, num_workers=workers
    )
    (batch,) = loader
    assert batch.images.shape == (5, 2, 3, 8, 8)
    assert batch.texts == [f"c{n}" for n in range(5)]
    found = [[number_of(image.numpy()) for image in pair] for pair in batch.images]
    assert found == [[2 * n, 2 * n + 1] for n in range(5)]


def test_each_image_is_augmented_by_itself_and_again_in_the_same_way(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)

    class Twice(NoisyImages):
        num_images = 2

        def __getitem__(self, index: int) -> Sample:
            return Sample(str(index), (noise, noise), ("c",))

    loader = make(Twice(4), 4, transform=RANDOM, num_images=2)
    (batch,) = loader
    assert all(not bool((first == second).all()) for first, second in batch.images)
    (again,) = make(Twice(4), 4, transform=RANDOM, num_images=2)
    assert bool((batch.images == again.images).all())
    (alone,) = make(NoisyImages(4), 4, transform=RANDOM)
    assert alone.images.shape == (4, 3, 8, 8)


def test_a_broken_second_image_is_a_broken_sample(image_folder: Path, tmp_path: Path) -> None:
    loader = make(
        open_source(pair_source(tmp_path, break_second=True)), 5, shuffle=False, num_images=2, leave_out=True,
        drop_last=False,
    )  # fmt: skip
    (batch,) = loader
    assert batch.texts == ["c0", "c1", "c3"]
    assert dict(loader.skipped.counts) == {"truncated": 1, "missing": 1}
    truncated, missing = (loader.skipped.examples[cause][0] for cause in ("truncated", "missing"))
    assert truncated.key == "images/4.png,images/5.png"
    assert truncated.detail.startswith("image 2 of 2: ")
    assert missing.detail == f"image 2 of 2: there is no file {tmp_path / name(9)}"


def test_pairs_resume_to_the_byte_and_their_changes_are_noticed(image_folder: Path, tmp_path: Path) -> None:
    spec = pair_source(tmp_path)
    loader = make(open_source(spec), 1, num_images=2, seed=3)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = [batch.images for batch in batches]
    resumed = make(open_source(spec), 1, num_images=2, seed=3)
    resumed.load_state_dict(state)
    again = [batch.images for batch in resumed]
    assert len(again) == len(rest) == 4
    assert all(bool((one == other).all()) for one, other in zip(rest, again, strict=True))
    (tmp_path / name(3)).write_bytes(encoded(make_image(3)) + b"\0")  # the second image of a pair
    with pytest.raises(UserError, match="have changed since the run was saved"):
        make(open_source(spec), 1, num_images=2, seed=3).load_state_dict(state)


# ---- statements: NLVR2's files and their neighbours ----


OWN = [
    {"identifier": "test1-0-1-0", "label": "True", "sentence": "Two dogs.", "left_url": "u", "right_url": "v"},
    {"identifier": "test1-0-1-1", "label": "False", "sentence": "One dog.", "left_url": "u", "right_url": "v"},
    {"identifier": "test1-0-2-0", "label": "False", "sentence": "Two dogs.", "left_url": "u", "right_url": "v"},
]


@pytest.mark.parametrize("folder", ["", "test1/"])
@pytest.mark.parametrize("directory", [None, 57])
def test_the_files_of_nlvr2(tmp_path: Path, folder: str, directory: int | None) -> None:
    place = tmp_path / "images" / folder / ("" if directory is None else str(directory))
    place.mkdir(parents=True)
    for pair in (1, 2):
        for image in (0, 1):
            (place / f"test1-0-{pair}-img{image}.png").write_bytes(encoded(make_image(10 * pair + image), "JPEG"))
    rows = OWN if directory is None else [{**row, "directory": directory} for row in OWN]
    (tmp_path / "test1.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_statements(f"{tmp_path / 'test1.json'}?image_root={tmp_path / 'images'}")
    first, second = source[0], source[1]
    assert first.texts == ("Two dogs.", "One dog.")
    found = np.array([numbers(first), numbers(second)])
    assert np.allclose(found, [(10, 11), (20, 21)], atol=3)  # JPEG bytes under the name of a PNG
    statements = [*statements_of(first.meta), *statements_of(second.meta)]
    assert [(s.label, s.group) for s in statements] == [
        (True, "test1-0-0"),
        (False, "test1-0-1"),
        (False, "test1-0-0"),  # the sentence of the first, about another pair
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", [("True", "False"), (True, False), ("true", "FALSE"), (1, 0)])
def test_the_files_that_blip_made_of_nlvr2(
    image_folder: Path, tmp_path: Path, kind: str, labels: tuple[Any, Any]
) -> None:
    rows = [
        {"sentence": "s", "label": label, "images": [name(a), name(b)]}
        for label, (a, b) in zip((*labels, labels[0]), PAIRS, strict=True)
    ]
    source = open_statements(str(write(tmp_path, kind, rows)))
    statements = [statements_of(source[i].meta)[0] for i in range(3)]
    assert [s.label for s in statements] == [True, False, True]
    assert {s.group for s in statements} == {"s"}
    batch = next(iter(make(source, 3, shuffle=False, num_images=2, text_mode="all", clean="none")))
    assert batch.images.shape[:2] == (3, 2)
    assert [statements_of(meta)[0].text for meta in batch.meta] == batch.texts


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_wrong_labels_are_bad_rows(image_folder: Path, tmp_path: Path, kind: str) -> None:
    labels = ("True", "Maybe", None, "")
    rows: list[dict[str, Any]] = [
        {"sentence": "s", "label": label, "images": [name(n), name(n + 1)]} for n, label in enumerate(labels)
    ]
    rows.append({"sentence": " ", "label": "True", "images": [name(1), name(2)]})
    source = open_statements(str(write(tmp_path, kind, rows)))
    assert [bad.detail for bad in source.bad_rows] == [
        "'Maybe' under \"label\" is neither true nor false",
        'None under "label" is neither true nor false',
        "'' under \"label\" is neither true nor false",
        'no statement under "sentence"',
    ]
    assert all(bad.cause == "bad-row" and bad.key.startswith(f"pairs.{kind}") for bad in source.bad_rows)


def test_what_is_wrong_with_nlvr2_files_is_reported(image_folder: Path, tmp_path: Path) -> None:
    rows = [*OWN, {"identifier": "nonsense", "sentence": "s", "label": "True"}]
    (tmp_path / "dev.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_statements(str(tmp_path / "dev.json"))
    (bad,) = source.bad_rows
    assert (bad.cause, bad.key) == ("bad-row", "dev.json line 4")
    assert bad.detail == "'nonsense' under \"identifier\" is not SPLIT-SET-PAIR-SENTENCE, as dev-850-0-1 is"
    with pytest.raises(BrokenSample, match=r"image 1 of 2: there is no file .*test1-0-1-img0.png"):
        decode_images(source[0])
    path = write(tmp_path, "jsonl", [{"images": [name(1), name(2)], "sentence": "s"}])
    with pytest.raises(UserError, match=r'has no label column; it has "images", "sentence".*answer_column'):
        open_statements(str(path))
    with pytest.raises(UserError, match="open its source with open_statements"):
        statements_of({})


def test_each_statement_may_be_a_sample_of_its_own(image_folder: Path, tmp_path: Path) -> None:
    rows = [{"sentence": f"s{n}", "label": str(n == 1), "images": [name(1), name(2)]} for n in range(3)]
    path = write(tmp_path, "jsonl", rows)
    assert len(open_statements(str(path))) == 1
    source = open_statements(f"{path}?pairs=true")
    assert [[(s.text, s.label) for s in statements_of(source[i].meta)] for i in range(3)] == [
        [("s0", False)],
        [("s1", True)],
        [("s2", False)],
    ]
