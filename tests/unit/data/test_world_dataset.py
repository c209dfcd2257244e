"""The world as a source and on disk: the same samples, read back by the sources that read any other data."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openblip.core.errors import UserError
from openblip.data.images import decode_image
from openblip.data.sample import stable_id
from openblip.data.sources import open_source
from openblip.data.sources.base import PairsSource
from openblip.data.sources.questions import given_answers, open_questions
from openblip.data.world import dataset
from openblip.data.world.dataset import WorldConfig, WorldSource, open_world, scene_from_meta, write_world
from openblip.data.world.noise import NoiseConfig
from openblip.data.world.questions import Question, check_answer
from openblip.data.world.scene import HELD_OUT, VERSION, scene_to_dict
from openblip.data.world.truth import judge
from openblip.tasks.vocabulary import texts_of_images, training_texts


def test_samples_are_repeatable_and_hold_everything() -> None:
    source = WorldSource(
        split="val", num_samples=20, seed=5, text="both", captions_per_image=2, questions_per_image=3
    )
    assert len(source) == 20
    for index in (0, 7, 19):
        sample, again = source[index], WorldSource(source.config)[index]
        np.testing.assert_array_equal(sample.image, again.image)
        assert (sample.texts, sample.meta, sample.key) == (again.texts, again.meta, again.key)
        assert sample.image.shape == (64, 64, 3)
        assert len(sample.texts) == len(sample.meta["noise"]) == 3
        assert sample.meta["noise"][1:] == ["human", "human"]
        scene = scene_from_meta(sample.meta)
        assert scene == source.scene(index)
        assert all(judge(text, scene).true for text in sample.texts[1:])
        assert len(sample.meta["questions"]) == 3
        for data in sample.meta["questions"]:
            question = Question.from_dict(data)
            assert check_answer(question, question.answer)
        json.dumps(sample.meta)
        np.testing.assert_array_equal(source.image(index), sample.image)
        assert source.without_drawing(index) == replace(sample, images=())
    assert source[-1].key == source[19].key
    assert len({source[i].key for i in range(20)}) == 20
    with pytest.raises(IndexError):
        source[20]


def test_who_reads_only_words_paints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = "world:train?n=5&captions_per_image=2"
    words = list(training_texts([open_world(spec)], clean="none", limit=100))
    pairs, asked = PairsSource(open_world(spec)), open_questions(spec)
    whole = [[replace(source[index], images=()) for index in range(len(source))] for source in (pairs, asked)]
    answers = list(given_answers(asked, limit=100))
    assert len(words) == len(pairs) == 10
    assert answers

    def draw(*words: object, **options: object) -> None:
        raise AssertionError("an image was drawn")

    monkeypatch.setattr(dataset, "draw_scene", draw)
    assert list(training_texts([open_world(spec)], clean="none", limit=100)) == words
    assert texts_of_images([open_world(spec)], clean="none").keys() == {stable_id(one.image_id) for one in whole[0]}
    pairs, asked = PairsSource(open_world(spec)), open_questions(spec)
    assert [[source.without_drawing(index) for index in range(len(source))] for source in (pairs, asked)] == whole
    assert list(given_answers(asked, limit=100)) == answers


def test_texts_and_size_change_nothing_else() -> None:
    plain, other = WorldSource(num_samples=5), WorldSource(num_samples=9, text="web", length="short", size=96)
    assert plain.scene(3) == other.scene(3)
    assert plain[3].key == other[3].key
    more = WorldSource(num_samples=5, captions_per_image=6)
    assert more[2].texts[:3] == plain[2].texts
    np.testing.assert_array_equal(more[2].image, plain[2].image)


def test_train_never_holds_a_held_out_pair_and_novel_always() -> None:
    def pairs(text: str) -> bool:
        return any(f" {colour} {shape}" in f" {text}" for shape, colour in HELD_OUT)

    train = WorldSource(num_samples=300, text="both", noise={"half_true": 0.4})
    for index in range(300):
        scene = train.scene(index)
        assert not any((item.shape, item.colour) in HELD_OUT for item in scene.objects)
    assert not any(pairs(text) for index in range(100) for text in train[index].texts)
    novel = WorldSource(split="novel", num_samples=40)
    assert all(pairs(text) for index in range(40) for text in novel[index].texts)


def test_the_world_stays_as_it_is() -> None:
    """If this fails, the same seed gives other samples: raise VERSION, and say so in the changelog."""
    assert VERSION == 1
    source = WorldSource(num_samples=12, text="both", questions_per_image=2)
    texts = [source[i].texts for i in range(12)] + [
        q["text"] for i in range(12) for q in source[i].meta["questions"]
    ]
    scenes = [
        [(o["shape"], o["colour"], round(o["x"], 6)) for o in scene_to_dict(source.scene(i))["objects"]]
        for i in range(12)
    ]
    digest = hashlib.sha256(json.dumps([texts, scenes]).encode()).hexdigest()
    assert digest[:16] == "110a5322af6ded10"


def test_settings_are_checked() -> None:
    expected = WorldConfig(split="test", num_samples=7, text="web", noise=NoiseConfig(half_true=0.5))
    assert open_world("world:test?n=7&text=web&noise.half_true=0.5").config == expected
    for spec, message in {
        "tset": 'did you mean "test"',
        "test?num_sample=3": 'did you mean "num_samples"',
        "test?n=0": "at least 1",
        "test?n=many": "must be a whole number",
        "test?size=8": "32 to 1024",
        "test?noise.half_true=2": "more than 1",
        "test?disturb=2.0": "between 0 and 1",
        "test?max_objects=0": "1 to 4 objects",
        "test?captions_per_image=0": "at least 1",
    }.items():
        with pytest.raises(UserError, match=message):
            open_source("world:" + spec)
    with pytest.raises(UserError, match="synthetic world"):
        scene_from_meta({"caption": "a cat"})
    assert open_source("world:novel?n=3").describe()["split"] == "novel"


@pytest.mark.parametrize("layout", ["tars", "jsonl"])
def test_written_worlds_are_read_back(tmp_path: Path, layout: str) -> None:
    config = WorldConfig(num_samples=25, seed=9, text="both", captions_per_image=2)
    calls: list[tuple[int, int]] = []
    folder = write_world(
        tmp_path / "w", config, layout=layout, samples_per_tar=10, progress=lambda *c: calls.append(c)
    )
    assert calls == [(25, 25)]
    names = {path.name for path in folder.iterdir()}
    if layout == "tars":
        assert names == {"000000.tar", "000001.tar", "000002.tar", "world.json"}
    else:
        assert names == {"images", "captions.jsonl", "world.json"}
    manifest = json.loads((folder / "world.json").read_text())
    assert manifest["config"]["seed"] == 9
    assert manifest["world_version"] == VERSION
    assert "numpy" in manifest["versions"]
    spec = f"{folder}?meta_columns=scene,noise" + ("&text_column=captions" if layout == "tars" else "")
    read, source = open_source(spec), WorldSource(config)
    assert len(read) == 25
    for index in (0, 12, 24):
        sample, original = read[index], source[index]
        np.testing.assert_array_equal(np.asarray(decode_image(sample)), original.image)
        assert sample.texts == original.texts
        assert scene_from_meta(sample.meta) == source.scene(index)
        assert list(sample.meta["noise"]) == original.meta["noise"]


def test_written_worlds_are_equal_byte_by_byte_and_appear_whole(tmp_path: Path) -> None:
    config = WorldConfig(num_samples=6, text="web")
    first, second = (write_world(tmp_path / name, config) for name in ("a", "b"))
    assert (first / "000000.tar").read_bytes() == (second / "000000.tar").read_bytes()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "c", config, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(UserError, match='not "zip"'):
        write_world(tmp_path / "d", config, layout="zip")  # type: ignore[arg-type]


def test_several_processes_draw_the_same_bytes(tmp_path: Path) -> None:
    config = WorldConfig(num_samples=11, size=32)
    for name, processes in (("one", 1), ("three", 3)):
        write_world(tmp_path / name, config, samples_per_tar=2, num_processes=processes)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 7
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_a_process_that_cannot_write_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = dataset._add_to_tar

    def full(tar: Any, sample: Any, number: int, position: int) -> None:
        if number == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a tar")
        write(tar, sample, number, position)

    monkeypatch.setattr(dataset, "_add_to_tar", full)
    with pytest.raises((UserError, OSError), match=r"full|space"):
        write_world(tmp_path / "w", WorldConfig(num_samples=6, size=32), samples_per_tar=2, num_processes=2)
    assert not list(tmp_path.iterdir())
