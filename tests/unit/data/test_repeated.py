"""What stands in a dataset twice, or belongs to nothing there, is named: captions, images, annotations, dialogs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import miniature
import pytest

from openblip.core.places import DATA_ROOT
from openblip.core.text import read_json
from openblip.data.sources import Source, open_source
from openblip.data.sources.questions import asked_of, open_questions


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    miniature.coco(tmp_path)
    miniature.vqav2(tmp_path)
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    return tmp_path


def changed(path: Path, **parts: Any) -> None:
    """Write a JSON object anew, with some of its parts replaced by what a function makes of them."""
    content = read_json(path)
    miniature.write(path, content | {name: change(content[name]) for name, change in parts.items()})


def told(source: Source) -> list[tuple[str, str, str]]:
    return [(broken.cause, broken.key, broken.detail) for broken in source.bad_rows]


def test_a_row_with_all_captions_of_an_image_is_used_once(root: Path) -> None:
    path = root / "coco" / "annotations" / "coco_karpathy_test.json"
    miniature.write(path, read_json(path) * 3)
    source = open_source("coco:test")
    assert len(source[0].texts) == 6
    name = "val2014/COCO_val2014_000000000073.jpg"
    assert told(source) == [("bad-row", f"{path.name} {name}", "its row stands there 3 times; one is used")]


def test_what_names_a_caption_tells_a_repetition_from_two_people(image_folder: Path) -> None:
    rows = [{"image": "0.png", "caption": "a"}, {"image": "0.png", "caption": "a"}]
    rows += [{"image": f"{n}.png", "caption": "b", "retrieval_key": "ret1"} for n in (1, 2, 1)]
    path = image_folder / "c.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = open_source(f"{path}?meta_columns=retrieval_key")
    assert [source[index].texts for index in range(3)] == [("a", "a"), ("b",), ("b",)]
    assert source[2].meta == {"retrieval_key": "ret1"}
    assert [key for _, key, _ in told(source)] == ["c.jsonl 1.png"]


def test_an_image_that_is_listed_twice_is_named(root: Path) -> None:
    annotations = root / "coco" / "annotations"
    changed(annotations / "captions_val2014.json", images=lambda images: [images[0], *images])
    source = open_source("coco:val2014")
    assert [len(source[index].texts) for index in range(len(source))] == [5, 5, 5]
    assert told(source) == [("bad-row", "captions_val2014.json images[1]", "image 42 is listed already")]
    changed(annotations / "captions_val2014.json", annotations=lambda rows: [*rows, rows[7]])
    detail = "its row stands there 2 times; one is used"
    assert told(open_source("coco:val2014"))[1:] == [
        ("bad-row", "captions_val2014.json COCO_val2014_000000000073.jpg", detail)
    ]
    changed(annotations / "image_info_test2014.json", images=lambda images: [*images, images[1]])
    source = open_source("coco:test2014")
    assert len(source) == 2
    assert [key for _, key, _ in told(source)] == ["image_info_test2014.json COCO_test2014_000000000014.jpg"]


def test_an_annotation_of_an_unknown_image_and_an_image_without_are_named(root: Path) -> None:
    path = root / "coco" / "annotations" / "captions_val2014.json"
    unknown = [{"id": n, "image_id": 555555, "caption": "Whose?"} for n in range(150)]
    changed(path, annotations=lambda rows: unknown + [row for row in rows if row["image_id"] != 73])
    source = open_source("coco:val2014")
    assert [source[index].image_id for index in range(len(source))] == ["42", "133"]
    found = told(source)
    assert found[0] == ("bad-row", f"{path.name}[0]", 'no image under "images" has its image_id, 555555')
    assert len(found) == 151
    assert found[150] == ("no-text", f"{path.name} image 73", "no annotation has its image_id, 73")
    written = open_source("coco:val2014?need_texts=false")  # as when captions are to be written
    assert [written[index].image_id for index in range(len(written))] == ["42", "133", "73"]


def test_two_annotations_of_a_question_are_named_and_the_first_counts(root: Path) -> None:
    path = root / "vqav2" / "v2_mscoco_val2014_annotations.json"
    second = {"question_id": 42000, "image_id": 42, "answers": [{"answer": "other", "answer_id": 1}]}
    changed(path, annotations=lambda rows: [*rows, second])
    source = open_questions("vqav2:val")
    assert asked_of(source[0].meta).given[0].texts == miniature.TEN_ANSWERS
    ((cause, _, detail),) = told(source)
    assert (cause, detail) == ("bad-row", "question 42000 has an annotation already, which is used")
