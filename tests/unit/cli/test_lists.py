"""Lists of answers and texts as people save them: byte-order marks, "\\r\\n", odd characters."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from openblip.cli.results import read_lines, sink
from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.data.sinks import read_rows
from openblip.data.sources import open_source
from openblip.recipes.small import small_vqa
from openblip.tasks.answering import answer_list

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234\n"
ANSWERS = ["red", "two\u2028parts", "naïve", "a\x0bb"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_answers_are_the_same_however_saved(encoding: str, end: str, tmp_path: Path) -> None:
    """A mark taken for a part of the first answer made the ranked accuracy 0."""
    file = tmp_path / "answers.txt"
    file.write_bytes(end.join([*ANSWERS, "", " red "]).encode(encoding))
    assert read_lines(file, "answers") == [*ANSWERS, "red"]
    config = override(small_vqa(("world:train",)), [f"answering.answers={file}"])
    assert answer_list(config, [], tmp_path) == ANSWERS


def test_a_list_in_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "answers.txt"
    file.write_bytes("red\nna\u00efve\n".encode("latin-1"))
    config = override(small_vqa(("world:train",)), [f"answering.answers={file}"])
    for read in (lambda: read_lines(file, "answers"), lambda: answer_list(config, [], tmp_path)):
        with pytest.raises(UserError, match=r"answers\.txt is not UTF-8 text: byte 6 \(0xef\)"):
            read()


def test_results_hold_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    with sink(tmp_path / "out.jsonl") as write:
        write(name, {"image": name})
        write("b", {"image": "naïve.png"})
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["image"] for line in lines] == [name, "naïve.png"]
    assert os.fsencode(json.loads(lines[0])["image"]) == b"caf\xe9.png"


def test_results_as_a_table_are_whole_or_not_there(tmp_path: Path) -> None:
    schema = {"image": "string", "score": "float"}
    with sink(tmp_path / "out.parquet", schema) as write:
        write("a", {"image": os.fsdecode(b"caf\xe9.png"), "score": 0.5})
        write("b", {"image": "b.png"})
    assert read_rows(tmp_path / "out.parquet") == [
        {"image": "caf\\udce9.png", "score": 0.5},
        {"image": "b.png", "score": None},
    ]

    def stopped() -> None:
        with sink(tmp_path / "cut.parquet", schema) as write:
            write("a", {"image": "a.png"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with (
        pytest.raises(UserError, match=r"these results are no table; give a \.jsonl file"),
        sink(tmp_path / "no.parquet"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_of_answers(indent: int | None, tmp_path: Path) -> None:
    """BLIP's answer_list.json was one answer, and the ranked accuracy 0."""
    file = tmp_path / "answer_list.json"
    file.write_text("\ufeff" + json.dumps([*ANSWERS, " ", 2], indent=indent), encoding="utf-8")
    assert read_lines(file, "answers") == [*ANSWERS, "2"]
    config = override(small_vqa(("world:train",)), [f"answering.answers={file}"])
    assert answer_list(config, [], tmp_path) == [*ANSWERS, "2"]
    file.write_text("[a] red\n{b}\n")
    assert read_lines(file, "answers") == ["[a] red", "{b}"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LFS, "git-lfs pointer"),
        ("<!DOCTYPE html>\n<html></html>", "HTML page"),
        ('{"red": 0}', "no list of texts"),
        ('[{"answer": "red"}]', "no list of texts"),
    ],
)
def test_what_is_no_list_is_reported(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.txt"
    file.write_text(text)
    config = override(small_vqa(("world:train",)), [f"answering.answers={file}"])
    for read in (lambda: read_lines(file, "answers"), lambda: answer_list(config, [], tmp_path)):
        with pytest.raises(UserError, match=says):
            read()


def test_a_pointer_in_place_of_a_caption_is_reported(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text(LFS)
    with pytest.raises(BrokenSample, match=r"bad-text.*git-lfs pointer"):
        open_source(str(tmp_path))[0]
