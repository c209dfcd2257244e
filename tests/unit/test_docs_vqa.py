"""docs/vqa.md: its rows are read as it says, its settings exist, its figures are those measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.core.config import override, to_dict
from openblip.data.cards import CARDS
from openblip.data.cards.answers import ANSWER_LIST
from openblip.data.sources.questions import answers_of, open_questions
from openblip.recipes.blip import vqa_finetune

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "vqa.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"000{number}.jpg")
    for number, rows in enumerate(blocks("json")):
        (tmp_path / f"questions{number or ''}.jsonl").write_text(rows)
    return tmp_path / "questions.jsonl"


def test_its_rows_are_read_as_it_says(
    questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, dict[str, float]] = {}
    for file in sorted(questions.parent.glob("*.jsonl")):
        source = open_questions(str(file))
        assert not source.bad_rows
        for index in range(len(source)):
            found |= {question: given.merged for question, given in answers_of(source[index].meta).items()}
    assert found == {
        "what color is the bus?": {"red": 1.0},
        "is it raining?": pytest.approx({"no": 2 / 3, "yes": 1 / 3}),
        "what are these?": {"birds": 0.8, "gulls": 0.2},
        "how many are there?": {"two": 1.0, "2": 0.5},
        "what is this?": {"a dog": 1.0},
        "where?": {"beach": 1.0},
    }
    monkeypatch.chdir(questions.parent)
    (code,) = blocks("python")
    exec(compile(code, "docs/vqa.md", "exec"), {})
    assert "what color is the bus? {'red': 1.0}" in capsys.readouterr().out


def test_its_settings_exist_with_their_defaults() -> None:
    config = vqa_finetune(("questions.jsonl",), model="base")
    rows = re.findall(r"^\| `answering\.(\w+)` \| ?([\w.]*) \|", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in rows} == to_dict(config.answering).keys()
    for name, default in rows:
        value = to_dict(config.answering)[name]
        assert str(value) == default
        assert override(config, [f"answering.{name}={value}"]) == config


def test_its_figures_are_those_measured() -> None:
    for name in set(re.findall(r"`benchmarks/results/([\w-]+\.json)`", PAGE)):
        result: dict[str, Any] = json.loads((REPO / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
        assert result["command"] in PAGE
        rows = re.findall(r"^\| `(accuracy_[^`]+)` \| ([\d.]+) \| ([\d., ]+) \|$", PAGE, flags=re.MULTILINE)
        assert len(rows) >= 4
        for measure, mean, each in rows:
            found = result["test"][measure]
            assert mean == f"{found['mean']:.4f}"
            assert each.split(", ") == [f"{value:.4f}" for value in found["seeds"]]


def test_the_table_of_rules_names_the_datasets() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \| ", PAGE, flags=re.MULTILINE))
    shown = {"vqav2": "VQAv2", "okvqa": "OK-VQA", "aokvqa": "A-OKVQA", "gqa": "GQA"}
    shown |= {"msrvttqa": "MSRVTT-QA", "msvdqa": "MSVD-QA"}
    for card in CARDS.values():
        if card.rule:
            assert shown[card.name] in rows[card.rule].split(", ")
    assert ANSWER_LIST in PAGE
    assert ANSWER_LIST in CARDS["vqav2"].note
