"""The experiment on NLVR on images made up in its layout, and what is read off their pixels."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from openblip.core.errors import UserError
from openblip.experiments.real.nlvr import (
    QUICK,
    SETTINGS,
    STAGES,
    Settings,
    orders_averaged,
    run,
    run_config,
    table,
)
from openblip.experiments.real.nlvr_data import SPLITS, items, write_data
from openblip.experiments.real.nlvr_statements import Item, Scene, describe

RGB = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}
TOWER = (Item("blue", "square", 40, 60, 60, 80), Item("black", "square", 40, 80, 60, 100))
LOOSE = (Item("yellow", "circle", 1, 30, 21, 50), Item("blue", "triangle", 50, 50, 80, 80))


def draw(found: tuple[Item, ...]) -> Image.Image:
    """A box with these items."""
    image = Image.new("RGB", (100, 100), (211, 211, 211))
    pen = ImageDraw.Draw(image)
    for item in found:
        left, top, right, bottom = item.left, item.top, item.right - 1, item.bottom - 1
        if item.shape == "circle":
            pen.ellipse((left, top, right, bottom), RGB[item.colour])
        elif item.shape == "square":
            pen.rectangle((left, top, right, bottom), RGB[item.colour])
        else:
            pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], RGB[item.colour])
    return image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two examples of six rows in each tar: three boxes between grey bars; half of the sentences are true."""
    folder = tmp_path / "nlvr"
    folder.mkdir()
    for tar in (name for names in SPLITS.values() for name in names):
        with tarfile.open(folder / f"{tar}.tar", "w") as archive:
            for example, boxes in enumerate(((TOWER, TOWER[1:], TOWER), (LOOSE, LOOSE[:1], LOOSE))):
                for order in range(6):
                    image = Image.new("RGB", (400, 100), (128, 128, 128))
                    for column, box in enumerate(boxes):
                        image.paste(draw(box), (150 * column, 0))
                    png = io.BytesIO()
                    image.save(png, "PNG")
                    told = {"sentence": "There is a tower", "label": ("true", "false")[example]}
                    record = json.dumps({**told, "identifier": f"{example}-0"}).encode()
                    for kind, content in (("png", png.getvalue()), ("json", record)):
                        member = tarfile.TarInfo(f"{example}-0-{order}.{kind}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
    return folder


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one file."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("box", [(), TOWER, LOOSE])
def test_items_are_read_off_the_pixels(box: tuple[Item, ...]) -> None:
    def order(item: Item) -> tuple[str, int]:
        return item.colour, item.left

    assert sorted(items(np.asarray(draw(box))), key=order) == sorted(box, key=order)


def test_a_caption_lists_the_items() -> None:
    assert describe((TOWER, ())) == "a tower of two blocks: black blue, and nothing"
    assert describe((LOOSE,)) == "a box with two items: a blue triangle and a yellow circle touching the edge"


def test_statements_are_true_of_their_boxes() -> None:
    said = {}
    for boxes in ((TOWER, TOWER[1:]), (LOOSE, LOOSE[:1])):
        scene = Scene(Random(0), boxes)
        said[boxes] = dict(scene.statement() for _ in range(20_000))
    towers, loose = said.values()
    assert towers["there is a tower with a blue block at the top"]
    assert not towers["there is a tower with a yellow block at the top"]
    assert towers["there is a blue block above a black block"]
    assert not towers["there is a black block above a blue block"]
    assert towers["there is a tower with exactly one block"]
    assert not towers["there is a tower with exactly three blocks"]
    assert loose["there are exactly two yellow circles"]
    assert not loose["there is exactly one yellow circle"]
    assert loose["there is a box with only yellow items"]
    assert not loose["there is a box with only blue items"]
    assert loose["there are 2 boxes with a yellow circle"]
    for found in said.values():
        assert 0.2 < sum(found.values()) / len(found) < 0.8


def test_only_training_images_are_described_and_words_do_not_give_the_label(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    write_data(data, folder)
    counts = {"train": 24, "dev": 12, "test": 12, "control": 12, "captions": 48}
    assert {name: len(rows(folder, name)) for name in counts} == counts
    said = rows(folder, "statements")
    described = {row["image"] for row in rows(folder, "captions")}
    described |= {name for row in said for name in row["images"]}
    assert {name.split("/")[0] for name in described} == set(SPLITS["train"])
    balance: Counter[str] = Counter()
    for row in said:
        balance[row["sentence"]] += 1 if row["label"] else -1
    assert max(map(abs, balance.values())) <= 1
    test, control = rows(folder, "test"), rows(folder, "control")
    assert [row["sentence"] for row in control] == [row["sentence"] for row in test]
    assert all(own["images"] != other["images"] for own, other in zip(test, control, strict=True))
    first, second = (np.asarray(Image.open(folder / name)) for name in test[0]["images"])
    assert first.shape == second.shape == (100, 200, 3)
    assert items(first[:, 100:]) == TOWER[1:]
    assert (second[:, 100:] == 128).all()


def test_the_orders_of_an_example_are_judged_together() -> None:
    given = [("a", True, 0.9), ("a", True, 0.4), ("b", False, 0.6), ("b", False, 0.3), ("c", True, 0.1)]
    records = [{"group": group, "label": label, "probability": value} for group, label, value in given]
    found = orders_averaged(records)
    assert found["accuracy"] == pytest.approx(4 / 5)
    assert found["consistency"] == pytest.approx(2 / 3)


def test_the_whole_experiment_on_made_up_images(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("nlvr", data, out, 1, QUICK, show=False)
    assert result["test"]["sentences"]["seeds"] == [12.0]
    assert result["guessing"] == {"always true": 0.5}
    assert {name: stage["steps"] for name, stage in result["stages"].items()} == {name: [4] for name in STAGES}
    assert "accuracy, another image" in table(result)
    found = {name: figure["mean"] for name, figure in result["test"].items()}
    assert found["accuracy, orders averaged"] == found["consistency, orders averaged"]
    weights = out / "seed-0" / STAGES[-1] / "model" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    (out / "seed-0" / "measured.json").unlink()
    assert run("nlvr", data, out, 1, QUICK, show=False)["test"] == result["test"]
    assert weights.stat().st_mtime_ns == written, "not trained again"
    with pytest.raises(UserError, match=r"other settings \(examples: 12 -> 13\)"):
        run("nlvr", data, out, 1, replace(QUICK, examples=13), show=False)


@pytest.mark.parametrize("stage", STAGES)
def test_a_seed_changes_the_seed_and_its_start_alone(stage: str, tmp_path: Path) -> None:
    settings: Settings = SETTINGS["nlvr"]
    one, two = (run_config(stage, tmp_path, seed, settings) for seed in (0, 1))
    assert one != two
    assert replace(two, model=one.model, train=replace(two.train, seed=0)) == one
