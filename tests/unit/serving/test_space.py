"""The Space in examples/space: its functions over small models, and its page where Gradio is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image
from serving_small import QUESTIONS, TEXTS, predictors

import openblip
from openblip.core.errors import UserError

SPACE = Path(__file__).resolve().parents[3] / "examples" / "space"


@pytest.fixture(scope="module")
def app() -> ModuleType:
    """app.py, imported by its path."""
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def demo(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Over a model that captions and matches, and one that answers."""
    made = predictors()
    monkeypatch.setattr(openblip, "load", made.__getitem__)
    return app.Demo(["blip", "vqa"])


IMAGE = Image.new("RGB", (40, 30), (200, 30, 30))


def test_its_functions_give_what_the_models_give(demo: Any) -> None:
    expected = predictors()
    assert {"caption", "answer", "match"} <= set(demo.models)
    written = demo.caption(IMAGE, False, 2.0).split("\n")
    assert len(written) == 2
    assert written[0] == expected["blip"].caption([IMAGE])[0][0].text
    assert len(demo.caption(IMAGE, True, 3).split("\n")) == 3
    ((answered,),) = expected["vqa"].answer([IMAGE], [QUESTIONS[0]])
    assert demo.answer(IMAGE, QUESTIONS[0]) == answered.answers[0].text
    matched = demo.match(IMAGE, f"{TEXTS[0]}\n\n {TEXTS[1]} \n{TEXTS[0]}")
    (matches,) = expected["blip"].match([IMAGE], list(TEXTS[:2]))
    assert matched == pytest.approx({one.text: one.itm_probability for one in matches}, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "inputs", "sentence"),
    [
        ("caption", (None, False, 1), "Choose an image first"),
        ("answer", (IMAGE, "  "), "Write a question"),
        ("match", (IMAGE, "\n"), "Write a text on each line"),
    ],
)
def test_mistakes_are_sentences(demo: Any, name: str, inputs: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        getattr(demo, name)(*inputs)


def test_its_page_has_a_tab_for_each_task(app: ModuleType, demo: Any) -> None:
    gradio = pytest.importorskip("gradio", reason="Gradio is not installed, and no extra brings it")
    page = app.build(demo)
    tabs = [block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)]
    assert tabs == ["Caption", "Ask", "Match"]


def test_the_card_of_the_space_names_its_files() -> None:
    _, header, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(header)
    assert card["sdk"] == "gradio"
    assert (SPACE / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60, "the hub refuses longer ones"
    assert "OPENBLIP_MODELS" in text
    needed = (SPACE / "requirements.txt").read_text(encoding="utf-8")
    assert "gradio" in needed
    assert "openblip" in needed
