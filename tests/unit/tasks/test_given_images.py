"""Images as people hand them over: open files, file:// URLs, names that are not UTF-8; what is left out is told."""

from __future__ import annotations

import io
import json
import os
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small
import torch

from openblip.bootstrap.table import Row, read_table, write_table
from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli import use
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.files import read_jsonl
from openblip.data.image_inputs import as_image_inputs, find_image_inputs
from openblip.data.sinks.sets import LAYOUTS, Pair, merge_parts, write_shard
from openblip.data.sources import open_source
from openblip.data.stream import Loader
from openblip.data.transforms import evaluation_transform
from openblip.generation.config import DecodeConfig
from openblip.tasks.predictor import Predictor

NAME = os.fsdecode(b"caf\xe9.png")
FEW = DecodeConfig(num_beams=2, max_new_tokens=6)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return small.predictor(small.model(), small.tokenizer(), batch_size=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, StoredModel(small.model(), small.tokenizer()))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images, one with a name that is not UTF-8, each with a text."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate(("a.png", NAME, "z.png")):
        small.make_image(number).save(tmp_path / "in" / name)
        (tmp_path / "in" / name.replace(".png", ".txt")).write_text(small.TEXTS[number])
    if b"caf\xe9.png" not in os.listdir(os.fsencode(tmp_path / "in")):
        pytest.skip("this file system keeps no such names")
    return tmp_path / "in"


class Stream(io.RawIOBase):
    """Bytes that come once, as from a network."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        return self._data.readinto(buffer)  # type: ignore[arg-type]


def test_open_files_and_urls_are_images(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "an image.png"
    small.make_image(3).save(path)
    expected = predictor.embed_images(path)
    used = io.BytesIO()
    small.make_image(3).save(used, "PNG")  # its position is at the end, as after writing
    with open(path, "rb") as file, urllib.request.urlopen(path.as_uri()) as answer:
        given = [file, used, Stream(path.read_bytes()), answer, path.as_uri(), f"file://localhost{path}"]
        given += [bytearray(path.read_bytes()), memoryview(path.read_bytes()), os.fspath(path)]
        names = [image.name for image in as_image_inputs([file, used, path.as_uri()])]
        assert names == [str(path), "#1", str(path)]
        assert torch.equal(predictor.embed_images(file), expected), "one file is one image, not its lines"
        assert predictor.caption(file, FEW) == predictor.caption(path, FEW)
        torch.testing.assert_close(predictor.embed_images(given), expected.expand(len(given), -1))
    assert find_image_inputs([path.as_uri()])[0].name == str(path)


def test_what_is_no_image_file_is_reported(predictor: Predictor, tmp_path: Path) -> None:
    small.make_image(3).save(tmp_path / "a.png")
    for mode in ("utf-8", "latin-1"):
        with (
            open(tmp_path / "a.png", encoding=mode) as file,
            pytest.raises(UserError, match=r"open as text; open it for bytes: open\(.*a\.png', \"rb\"\)"),
        ):
            predictor.caption(file)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"https://a\.com/b\.png is a web address; download the image"):
        predictor.caption("https://a.com/b.png")
    with pytest.raises(UserError, match=r"gone\.png cannot be used \(missing\)"):
        predictor.caption((tmp_path / "gone.png").as_uri())


@pytest.mark.parametrize("text", ["", "   ", "!!!", "\n"])
def test_a_text_without_a_word_is_refused(predictor: Predictor, text: str) -> None:
    image = small.make_image(1)
    uses = [
        lambda: predictor.match(image, text),
        lambda: predictor.match(image, ["a dog", text]),
        lambda: predictor.embed_texts(text),
        lambda: predictor.retrieve_images([image], [text]),
    ]
    for use_it in uses:
        with pytest.raises(
            UserError, match=r'holds no word; give one such as "a red bus"|one of the texts is empty'
        ):
            use_it()
    if text:
        assert predictor.log_likelihood(image, ["a dog", text])


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, object]], str]:
    code = main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, [json.loads(line) for line in out.split("\n") if line], err


@pytest.fixture
def stdout_is_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use, "person", lambda: False)


@pytest.mark.usefixtures("stdout_is_a_pipe")
def test_names_that_are_not_utf_8_come_through_the_commands(
    folder: Path, model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(folder / name) for name in ("a.png", NAME, "z.png")]
    how = ("--model", model, "--device", "cpu")
    for command in (("caption", folder), ("match", folder, "--text", "two dogs"), ("embed", folder)):
        code, records, err = run(capfd, *command, *how)
        assert (code, [record["image"] for record in records]) == (0, names), err
    code, records, err = run(capfd, "retrieve", "two dogs", folder, *how)
    assert (code, sorted(record["item"] for record in records)) == (0, names), err  # type: ignore[type-var]
    out = folder.parent / "out.jsonl"
    assert run(capfd, "embed", folder, *how, "--out", out)[0] == 0
    assert [record["image"] for record in read_jsonl(out)] == names
    assert os.path.exists(read_jsonl(out)[1]["image"]), "what is read back is the file's name"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(map(os.fsencode, names)))))
    assert [record["image"] for record in run(capfd, "caption", "-", *how)[1]] == names
    (folder / NAME).write_bytes(b"")
    code, records, err = run(capfd, "caption", folder, *how)
    assert (code, len(records)) == (1, 2)
    assert "skipped" in err
    assert ".png (empty)" in err


@pytest.mark.usefixtures("stdout_is_a_pipe")
def test_images_that_are_left_out_are_told_and_change_the_exit_code(
    folder: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    how = ("--model", model, "--device", "cpu")
    (folder / "clip.mov").write_bytes(b"")
    code, records, err = run(capfd, "embed", folder, *how)
    assert (code, len(records)) == (0, 3)
    assert f"openblip: 1 .mov file left out ({folder}/clip.mov): a video; extract frames" in err
    for number in range(4):
        (folder / f"{number}.heic").write_bytes(b"")
    for command in (("embed", folder), ("retrieve", "two dogs", folder)):
        code, records, err = run(capfd, *command, *how)
        assert (code, len(records)) == (1, 3)
        assert "openblip: 4 .heic files left out (" in err
        assert "3 images done, 4 left out (" in err


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_keeps_names_that_are_not_utf_8(folder: Path, num_workers: int, tmp_path: Path) -> None:
    (folder / os.fsdecode(b"caf\xe8.png")).write_bytes(b"cut")
    loader = Loader(
        open_source(str(folder)),
        evaluation_transform(32),
        4,
        num_workers=num_workers,
        skip_log=tmp_path / "skipped.jsonl",
    )
    (batch,) = list(loader)
    loader.close()
    found = dict(zip(batch.keys, batch.texts, strict=True))
    assert found[NAME] == small.TEXTS[1]
    assert len(set(batch.image_ids.tolist())) == len(found)
    (record,) = read_jsonl(tmp_path / "skipped.jsonl")
    assert os.fsencode(record["key"]) == b"caf\xe8.png"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sets_of_names_that_are_not_utf_8_are_written(tmp_path: Path, layout: str) -> None:
    pair = Pair("0", small.make_image(0), ["a caption", "half \ud800"], NAME, {"key": NAME})
    (tmp_path / "parts").mkdir()
    write_shard(layout, tmp_path / "set", tmp_path / "parts", "000000", [pair])  # type: ignore[arg-type]
    if layout == "jsonl":
        merge_parts(tmp_path / "set", tmp_path / "parts")
        (record,) = read_jsonl(tmp_path / "set" / "captions.jsonl")
        assert record["key"] == NAME
    if layout == "parquet":
        (row,) = pq.read_table(tmp_path / "set" / "000000.parquet").to_pylist()
        assert row["image_id"] == "caf\\udce9.png"
        assert json.loads(row["record"]) == {"key": NAME}
    source = open_source(str(tmp_path / "set"))
    assert source[0].texts[0] == "a caption"


def test_tables_of_names_that_are_not_utf_8_are_written(tmp_path: Path) -> None:
    row = Row(key=NAME, index=0, part="p", image_id=NAME, status="ok", meta={"name": NAME})
    write_table(tmp_path / "t.parquet", [row, Row(key="b", index=1, part="p", status="ok")])
    found = read_table(tmp_path / "t.parquet")
    assert [one.key for one in found] == ["caf\\udce9.png", "b"]
    assert found[0].meta == {"name": NAME}


def test_pixels_of_such_files_are_theirs(folder: Path, predictor: Predictor) -> None:
    expected = predictor.embed_images(small.make_image(1))
    for given in (folder / NAME, str(folder / NAME), (folder / NAME).as_uri(), os.fspath(folder / NAME)):
        assert np.array_equal(predictor.embed_images(given), expected)
