"""The training set that CapFilt leaves, as a reader of it finds it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from capfilt_small import config, contents, make_image, output, rows_of, run, text_of, write_folder

from openblip.bootstrap.models import open_models
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import decide_again
from openblip.data.sinks.sets import LAYOUTS, Layout, free_names
from openblip.data.source_config import parse_spec
from openblip.data.sources.open import open_source

Models = tuple[str, str, str]


@pytest.fixture(autouse=True)
def opened_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_models("", models[1])
    monkeypatch.setattr("openblip.bootstrap.run.open_models", lambda *_, **__: opened)


def write_web(folder: Path) -> Path:
    """A table whose captions stand under "alt", beside others that nobody has judged."""
    folder.mkdir()
    lines = []
    for number in range(3):
        (folder / f"{number}.png").write_bytes(make_image(number))
        row = {"image": f"{number}.png", "alt": text_of(number), "caption": "not judged", "split": "x", "url": "u"}
        lines.append(json.dumps(row) + "\n")
    (folder / "web.jsonl").write_text("".join(lines))
    return folder / "web.jsonl"


@pytest.mark.parametrize("layout", ["jsonl", "tars", "parquet"])
def test_other_columns_do_not_stand_for_the_texts(layout: str, models: Models, tmp_path: Path) -> None:
    web = write_web(tmp_path / "web")
    source = parse_spec(f"{web}?text_column=alt&meta_columns=caption,image,split,url")
    settings = replace(config(models, web, captioner=""), source=source)
    assert run(settings, tmp_path / "clean", output(layout, threshold=0.0)).images == 3
    opened = open_source(str(tmp_path / "clean"))
    assert [opened[n].texts for n in range(3)] == [(text_of(n),) for n in range(3)]
    image = opened[0].image
    assert (image.read_bytes() if isinstance(image, Path) else image) == make_image(0)
    names = "meta_caption,meta_split,url" if layout != "parquet" else "record"
    meta = open_source(f"{tmp_path / 'clean'}?meta_columns={names}")[0].meta
    found = json.loads(meta["record"]) if layout == "parquet" else meta
    assert [found[name] for name in ("meta_caption", "meta_split", "url")] == ["not judged", "x", "u"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_times_and_bytes_in_other_columns(layout: Layout, models: Models, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    when = datetime(2020, 1, 2)
    rows = {"image": [make_image(0)], "caption": ["a"], "when": [when], "blob": [b"\xff"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "hub"))
    source = parse_spec(f"{tmp_path / 'hub'}?meta_columns=when,blob")
    settings = replace(config(models, tmp_path, captioner=""), source=source)
    assert run(settings, tmp_path / "clean", output(layout, threshold=0.0)).images == 1
    assert rows_of(tmp_path / "clean")[0].meta == {"when": "2020-01-02 00:00:00", "blob": "b'\\xff'"}
    before = contents(tmp_path / "clean")
    decide_again(tmp_path / "clean", output(layout, threshold=0.0))
    assert contents(tmp_path / "clean") == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_that_begins_as_a_pointer_of_git_lfs(layout: Layout, models: Models, tmp_path: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1"
    web = write_folder(tmp_path / "web", 2)
    (web / "web.jsonl").write_text(json.dumps({"image": "000.png", "caption": text}) + "\n")
    settings = config(models, web / "web.jsonl", captioner="")
    run(settings, tmp_path / "clean", output(layout, threshold=0.0))
    assert open_source(str(tmp_path / "clean"))[0].texts == (text,)


def test_names_that_are_free_stay() -> None:
    meta = {"url": 1, "Caption": 2, "meta_Caption": 3, "key": 4, "itm": 5}
    assert free_names(meta, ["itm"]) == {
        "url": 1, "meta_meta_Caption": 2, "meta_Caption": 3, "meta_key": 4, "meta_itm": 5,
    }  # fmt: skip


def test_names_that_are_not_utf8_are_decided_on_again(models: Models, tmp_path: Path) -> None:
    web = write_folder(tmp_path / "web", 2)
    stem = os.fsencode(web) + b"/caf\xe9"
    Path(os.fsdecode(stem + b".png")).write_bytes(make_image(9))
    Path(os.fsdecode(stem + b".txt")).write_text("two dogs\n")
    settings, made = config(models, web, captioner=""), output("jsonl", threshold=0.0)
    assert run(settings, tmp_path / "clean", made).images == 3
    before = contents(tmp_path / "clean")
    assert run(settings, tmp_path / "clean", output("jsonl", threshold=0.1)).new_chunks == 1
    assert decide_again(tmp_path / "clean", made).images == 3
    assert contents(tmp_path / "clean") == before, "the set depends on whether the rows come from a table"
    assert rows_of(tmp_path / "clean")[-1].key == "caf\\udce9.png"
    assert Places(tmp_path / "clean").totals.exists()
