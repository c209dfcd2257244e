"""Questions with answers from each layout of data, in the stream with its position, and rows that are wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loaders import PLAIN
from make_data import encoded, make_image

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.data.sources import open_source
from openblip.data.sources.answers import by_question, question_texts, read_questions
from openblip.data.sources.questions import answers_of, given_answers, open_questions
from openblip.data.stream import Loader
from openblip.data.world.dataset import WorldConfig, write_world

NAMES = {"question": "question", "answer": "answers", "weight": "weights"}
ROWS: list[dict[str, Any]] = [
    {"image": "images/0.png", "question": "which?", "answer": "zero"},
    {"image": "images/1.png", "question": "which?", "answer": ["one", "one", "two", "one"]},
    {"image": "images/0.png", "question": "is it red?", "answer": ["no"]},
    {"image": "images/2.png", "question": "which?", "answer": {"two": 0.5, "three": 0.25}},
    {"image": "images/0.png", "question": "how many?", "answer": 1},
]


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def merged(source: Any, index: int) -> dict[str, dict[str, float]]:
    sample = source[index]
    answers = answers_of(sample.meta)
    assert set(sample.texts) == answers.keys()
    return {question: answers[question].merged for question in sample.texts}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"answers": "red"}, {"red": 1.0}),
        ({"answers": ["red", " red", "pink", ""]}, {"red": 0.5, "pink": 0.25}),
        ({"answers": ["2", 2, 2.0]}, {"2": 1.0}),
        ({"answers": ["red", "pink"], "weights": [0.9, 0.3]}, {"red": 0.9, "pink": 0.3}),
        ({"answers": "red", "weights": 0.2}, {"red": 0.2}),
        ({"answers": {"red": 2, "pink": 1}}, {"red": 2.0, "pink": 1.0}),
        ({"answers": [{"answer": "red", "answer_id": 1}, {"answer": "pink"}]}, {"red": 0.5, "pink": 0.5}),
        ({"answers": '["red", "pink"]'}, {"red": 0.5, "pink": 0.5}),
        ({"answers": "[maybe"}, {"[maybe": 1.0}),
        ({"answers": 3}, {"3": 1.0}),
        ({"answers": True}, {"yes": 1.0}),
    ],
)
def test_answers_are_read_however_they_are_written(row: dict[str, Any], expected: dict[str, float]) -> None:
    questions, given = read_questions(question_texts({"question": " what? ", **row}, NAMES, "line 1"))
    assert questions == ("what?",)
    assert given[0].merged == pytest.approx(expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "", "answers": "red"}, 'no question under "question"'),
        ({"answers": "red"}, 'no question under "question"'),
        ({"question": "what?"}, 'no answer under "answers"'),
        ({"question": "what?", "answers": ["", " "]}, 'no answer under "answers"'),
        ({"question": "what?", "answers": None}, 'no answer under "answers"'),
        ({"question": "what?", "answers": ["a", None]}, "an answer is null"),
        ({"question": "what?", "answers": [{"answer": None}]}, "an answer is null"),
        ({"question": "what?", "answers": ["a", "b"], "weights": [1]}, "the weights of 2 answers are"),
        ({"question": "what?", "answers": ["a"], "weights": [-1]}, "the weights of 1 answers are"),
        ({"question": "what?", "answers": {"a": "much"}}, "the weights of 1 answers are"),
    ],
)
def test_rows_that_ask_or_answer_nothing_are_reported(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BrokenSample, match="line 1") as caught:
        question_texts(row, NAMES, "line 1")
    assert caught.value.cause == "bad-row"
    assert message in caught.value.detail


def test_a_question_asked_twice_of_an_image_counts_twice_with_all_answers() -> None:
    rows = [{"question": "what?", "answers": text} for text in ("a", "b", "a")]
    questions, given = read_questions(text for row in rows for text in question_texts(row, NAMES, ""))
    assert questions == ("what?",) * 3
    assert by_question(questions, given)["what?"].merged == pytest.approx({"a": 2 / 3, "b": 1 / 3})


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "nested", "inside"])
def test_every_layout_gives_the_same_questions(image_folder: Path, tmp_path: Path, kind: str) -> None:
    rows = [{**row, "answer": json.dumps(row["answer"]) if kind in ("csv", "parquet", "inside") and
             not isinstance(row["answer"], str) else row["answer"]} for row in ROWS]  # fmt: skip
    path = tmp_path / f"vqa.{kind}"
    if kind == "jsonl":
        written(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "question", "answer"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{k: str(v) for k, v in row.items()} for row in rows]), path)
    elif kind == "inside":
        path = tmp_path / "inside.parquet"
        table = [{**row, "answer": str(row["answer"]), "image_id": row["image"],
                  "image": (tmp_path / row["image"]).read_bytes()} for row in rows]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(table), path)
    else:
        images = dict.fromkeys(row["image"] for row in rows)
        own = {image: [{k: row[k] for k in ("question", "answer")} for row in rows if row["image"] == image]
               for image in images}  # fmt: skip
        path = written(tmp_path / "nested.jsonl", [{"image": i, "questions": q} for i, q in own.items()])
    source = open_questions(str(path))
    assert len(source) == 3
    assert merged(source, 0) == {"which?": {"zero": 1.0}, "is it red?": {"no": 1.0}, "how many?": {"1": 1.0}}
    assert merged(source, 1) == {"which?": {"one": 0.75, "two": 0.25}}
    assert merged(source, 2) == {"which?": {"two": 0.5, "three": 0.25}}
    assert source.text_counts().tolist() == [3, 1, 1]
    assert sorted(given_answers(source, limit=2)) == ["1", "no", "three", "two", "zero"]


def test_samples_of_so_many_questions(image_folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "vqa.jsonl", ROWS)
    alone = open_questions(f"{path}?pairs=true")
    assert [alone[i].texts for i in range(5)] == [
        ("which?",),
        ("is it red?",),
        ("how many?",),
        ("which?",),
        ("which?",),
    ]
    assert [alone[i].image_id for i in range(5)] == ["images/0.png"] * 3 + ["images/1.png", "images/2.png"]
    assert answers_of(alone[1].meta)["is it red?"].texts == ("no",)
    two = open_questions(f"{path}?max_questions=2")
    assert [two[i].texts for i in range(4)] == [("which?", "is it red?"), ("how many?",), ("which?",), ("which?",)]
    with pytest.raises(UserError, match=r"max_questions of source .* cannot be negative"):
        open_questions(f"{path}?max_questions=-1")
    with pytest.raises(UserError, match=r'"max_questions" must be a whole number, not .few.'):
        open_questions(f"{path}?max_questions=few")


def test_columns_that_are_missing_are_named(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"captions\.jsonl holds captions .* no questions.* with text_column"):
        open_questions(str(written(tmp_path / "captions.jsonl", [{"image": "images/0.png", "caption": "a dog"}])))
    with pytest.raises(UserError, match=r"vqa\.jsonl has no answer column.* with answer_column"):
        open_questions(str(written(tmp_path / "vqa.jsonl", [{"image": "images/0.png", "question": "what?"}])))
    path = written(tmp_path / "own.jsonl", [{"image": "images/0.png", "asked": "what?", "said": "zero"}])
    assert merged(open_questions(f"{path}?text_column=asked&answer_column=said"), 0) == {"what?": {"zero": 1.0}}
    with pytest.raises(UserError, match="holds no questions with answers"):
        answers_of(open_source(f"{path}?text_column=asked")[0].meta)


def test_broken_rows_and_images_are_counted_and_the_rest_is_read(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "1.png").write_bytes(encoded(make_image(1))[:60])
    path = written(tmp_path / "vqa.jsonl", [*ROWS, {"image": "images/3.png", "question": "which?"}, ["no"]])
    loader = Loader([open_questions(str(path))], PLAIN, 3, text_mode="all", clean="none", max_words=None, seed=1)
    (batch,) = list(loader)
    assert loader.skipped.counts == {"bad-row": 2, "truncated": 1}
    assert len(batch) == 3
    asked = [(batch.keys[row], text) for row, text in zip(batch.image_index.tolist(), batch.texts, strict=True)]
    for key, text in asked:
        assert key != "images/1.png"
        assert text in answers_of(batch.meta[batch.keys.index(key)])


@pytest.mark.parametrize("spec", ["vqa.jsonl", "vqa.jsonl?pairs=true", "world:train?n=5&size=32"])
def test_the_stream_goes_on_where_it_stopped(image_folder: Path, tmp_path: Path, spec: str) -> None:
    written(tmp_path / "vqa.jsonl", ROWS)
    spec = spec if spec.startswith("world:") else str(tmp_path / spec)

    def make() -> Loader:
        return Loader([open_questions(spec)], PLAIN, 1, text_mode="all", clean="none", max_words=None, seed=3)

    def told(batch: Any) -> Any:
        return batch.texts, [answers_of(meta) for meta in batch.meta], batch.images.tolist()

    whole = make()
    expected = [told(batch) for _ in range(2) for batch in whole]
    first = make()
    reading = iter(first)
    found = [told(next(reading)) for _ in range(2)]
    saved = json.loads(json.dumps(first.state_dict()))
    reading.close()
    second = make()
    second.load_state_dict(saved)
    found += [told(batch) for batch in second]
    found += [told(batch) for batch in second]
    assert found == expected


def test_the_world_asks_and_its_files_do(tmp_path: Path) -> None:
    source = open_questions("world:train?n=3&size=32")
    assert source.describe()["questions_per_image"] == 4
    write_world(tmp_path / "w", WorldConfig(num_samples=3, size=32, questions_per_image=4), layout="jsonl")
    stored = open_questions(str(tmp_path / "w" / "captions.jsonl"))
    for index in range(3):
        assert merged(source, index) == merged(stored, index)
        assert len(source[index].texts) == 4
        usual = {question["text"]: {question["answer"]: 1.0} for question in source[index].meta["questions"]}
        assert merged(source, index) == usual
    assert open_questions("world:train?n=3&size=32&questions_per_image=2").describe()["questions_per_image"] == 2
