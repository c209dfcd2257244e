"""The experiment on easyvqa on images made up in its layout, and on the real ones where they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openblip.core.errors import UserError
from openblip.data.sources.questions import open_questions
from openblip.experiments.real import find_data
from openblip.experiments.real.easyvqa import (
    QUICK,
    SETTINGS,
    _guessing,
    run,
    run_config,
    sources,
    table,
    write_rows,
)

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of one colour, two questions about each; the colour of image n is that of its number."""
    names = list(COLOURS)
    for folder, count in (("train", 20), ("test", 8)):
        (tmp_path / "easyvqa" / folder / "images").mkdir(parents=True)
        asked = []
        for number in range(count):
            name = names[number % 2]
            pixels = np.full((64, 64, 3), COLOURS[name], np.uint8)
            Image.fromarray(pixels).save(tmp_path / "easyvqa" / folder / "images" / f"{number}.png")
            asked += [["what color is it?", name, number], ["is it red?", "yes" if name == "red" else "no", number]]
        (tmp_path / "easyvqa" / folder / "questions.json").write_text(json.dumps(asked))
    return tmp_path / "easyvqa"


def test_a_tenth_of_the_training_images_is_held_out(data: Path, tmp_path: Path) -> None:
    write_rows(data, tmp_path / "easyvqa.jsonl")
    sizes = {}
    for held_out in (False, True):
        for train in (False, True):
            settings = replace(QUICK, held_out=held_out)
            opened = [open_questions(source) for source in sources(data, tmp_path, settings, train=train)]
            sizes[held_out, train] = sum(len(source) for source in opened)
            assert all(len(source[0].texts) == 2 for source in opened)
    assert sizes == {(False, True): 20, (False, False): 8, (True, True): 18, (True, False): 2}


def test_the_whole_experiment_on_made_up_images(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("easyvqa", data, out, 1, QUICK, show=False)
    test = result["test"]
    assert test["questions"]["seeds"] == [16.0]
    for way in ("generated", "ranked"):
        own, colour = test[f"accuracy_{way}, yes or no"]["mean"], test[f"accuracy_{way}, colour"]["mean"]
        assert test[f"accuracy_{way}"]["mean"] == pytest.approx((own + colour) / 2, abs=1e-4)
    assert result["steps"] == [QUICK.steps]
    assert "accuracy_ranked, another image" in table(result)
    weights = (out / "seed-0" / "model" / "model.safetensors").stat().st_mtime_ns
    assert run("easyvqa", data, out, 1, QUICK, show=False)["test"] == test
    assert (out / "seed-0" / "model" / "model.safetensors").stat().st_mtime_ns == weights, "not trained again"
    with pytest.raises(UserError, match=r"other settings \(steps: 4 -> 5\)"):
        run("easyvqa", data, out, 1, replace(QUICK, steps=5), show=False)


def test_a_seed_changes_the_seed_alone(tmp_path: Path) -> None:
    settings = SETTINGS["easyvqa"]
    one, two = (run_config(Path("d"), tmp_path, seed, settings) for seed in (0, 1))
    assert one != two
    assert replace(two, train=replace(two.train, seed=0)) == one


def test_guessing_is_what_is_known_of_the_data() -> None:
    try:
        data = find_data("easyvqa")
    except UserError as error:
        pytest.skip(str(error))
    found = _guessing(data)
    assert found["always the most frequent answer"] == pytest.approx(0.373, abs=5e-4)
    assert found["the question's most frequent answer"] == pytest.approx(0.670, abs=5e-4)
