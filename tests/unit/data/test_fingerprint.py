"""Data are distinguished from others of the same size; data that were only copied, touched or written anew are the
same."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from loaders import PLAIN
from PIL import Image

from openblip.core.errors import UserError
from openblip.data.sources import Source, digest, open_source
from openblip.data.sources.digest import Digest, spread
from openblip.data.sources.questions import open_questions
from openblip.data.stream import Loader
from openblip.tasks.evaluation import FirstSamples

COUNT = 12
CHANGED = 7
"""the sample that changes"""
Sample = tuple[str, str, bytes, str]
"""name, text, image, id"""
Row = tuple[str, str, str]
"""path, text, id"""


def image(number: int, side: int = 24) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def samples(change: str) -> list[Sample]:
    """Twelve samples; the eighth is otherwise, in a text or a name of the same length, an id or an image's size."""
    found = []
    for number in range(COUNT):
        other = number == CHANGED
        name = "other" if other and change == "name" else f"img{number:02d}"
        text = f"a cat {number:02d}" if other and change == "text" else f"a dog {number:02d}"
        side = 30 if other and change == "image" else 24
        found.append((name, text, image(number, side), "other" if other and change == "id" else f"id{number}"))
    return found


def rows(made: list[Sample]) -> list[Row]:
    """Two for each image."""
    return [(f"{name}.png", text + more, own) for name, text, _, own in made for more in ("", " again")]


def write_images(folder: Path, made: list[Sample]) -> None:
    folder.mkdir(parents=True)
    for name, _, data, _ in made:
        (folder / f"{name}.png").write_bytes(data)


def as_folder(folder: Path, made: list[Sample]) -> str:
    write_images(folder, made)
    for name, text, _, _ in made:
        (folder / f"{name}.txt").write_text(text)
    return str(folder)


def as_jsonl(folder: Path, made: list[Sample]) -> str:
    write_images(folder, made)
    named = ({"image": path, "caption": text, "image_id": own} for path, text, own in rows(made))
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    return str(folder / "captions.jsonl")


def as_csv(folder: Path, made: list[Sample]) -> str:
    write_images(folder, made)
    with open(folder / "captions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "image_id"])
        writer.writerows(rows(made))
    return str(folder / "captions.csv")


def as_parquet(folder: Path, made: list[Sample]) -> str:
    write_images(folder, made)
    paths, texts, ids = zip(*rows(made), strict=True)
    columns = {"image": list(paths), "caption": list(texts), "image_id": list(ids)}
    parquet.write_table(pa.table(columns), folder / "captions.parquet")
    return str(folder / "captions.parquet")


def as_parquet_inside(folder: Path, made: list[Sample]) -> str:
    folder.mkdir(parents=True)
    images = [{"bytes": data, "path": f"{name}.png"} for name, _, data, _ in made]
    columns = {"image": images, "caption": [m[1] for m in made]}
    parquet.write_table(pa.table(columns), folder / "captions.parquet", row_group_size=4)
    return str(folder / "captions.parquet")


def as_tars(folder: Path, made: list[Sample]) -> str:
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, len(made), 5)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for name, text, data, _ in made[first : first + 5]:
                for ending, content in (("png", data), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder)


def as_saved_dataset(folder: Path, made: list[Sample]) -> str:
    datasets = pytest.importorskip("datasets")
    folder.mkdir(parents=True)
    images = [{"bytes": data, "path": f"{name}.png"} for name, _, data, _ in made]
    columns = {"image": images, "caption": [m[1] for m in made]}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    data.save_to_disk(folder / "saved")
    return str(folder / "saved")


def as_questions(folder: Path, made: list[Sample]) -> str:
    write_images(folder, made)
    named = ({"image": path, "question": "what?", "answer": text} for path, text, _ in rows(made))
    (folder / "vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    return str(folder / "vqa.jsonl")


Write = Callable[[Path, list[Sample]], str]
ALL: dict[Write, tuple[str, ...]] = {
    as_folder: ("name", "text", "image"),
    as_jsonl: ("name", "text", "image", "id"),
    as_csv: ("name", "text", "image", "id"),
    as_parquet: ("name", "text", "image", "id"),
    as_parquet_inside: ("text", "image"),
    as_tars: ("name", "text", "image"),
    as_saved_dataset: ("text", "image"),
    as_questions: ("name", "text", "image"),
}
CASES = [(write, change) for write, changes in ALL.items() for change in changes]


def opened(write: Write, path: str, more: str = "") -> Source:
    return (open_questions if write is as_questions else open_source)(path + more)


@pytest.mark.parametrize(("write", "change"), CASES)
@pytest.mark.parametrize("more", ["", "?pairs=true"])
def test_a_change_of_equal_size_stops_a_resumed_run(write: Write, change: str, more: str, tmp_path: Path) -> None:
    def loader(folder: str, change: str) -> Loader:
        source = opened(write, write(tmp_path / folder, samples(change)), more)
        source.name = "the-data"
        return Loader(source, PLAIN, 2, text_mode="first")

    before = loader("before", "")
    next(iter(before))
    state = json.loads(json.dumps(before.state_dict()))
    loader("same", "").load_state_dict(state)
    with pytest.raises(UserError, match=r"^cannot resume: the data of the-data have changed .* a new run from"):
        loader("after", change).load_state_dict(state)


@pytest.mark.parametrize("write", ALL)
def test_touched_and_copied_data_are_the_same(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "data", samples(""))
    mark = opened(write, path).fingerprint()
    for file in (tmp_path / "data").rglob("*"):
        os.utime(file, (1, 1))
    assert opened(write, path).fingerprint() == mark
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere" / "copy")
    copied = path.replace(str(tmp_path / "data"), str(tmp_path / "elsewhere" / "copy"))
    assert opened(write, copied).fingerprint() == mark


def test_a_table_written_otherwise_is_the_same(tmp_path: Path) -> None:
    marks = {
        open_source(w(tmp_path / w.__name__, samples(""))).fingerprint() for w in (as_jsonl, as_csv, as_parquet)
    }
    assert len(marks) == 1


def said(source: Source, index: int) -> object:
    return source[index].texts, source[index].meta


@pytest.mark.parametrize("write", ALL)
def test_each_span_has_its_own(write: Write, tmp_path: Path) -> None:
    """What is before and behind a span does not change its fingerprint; what is in it does."""
    before = opened(write, write(tmp_path / "before", samples("")))
    after = opened(write, write(tmp_path / "after", samples("text")))
    grown = opened(write, write(tmp_path / "grown", [*samples(""), ("z", "a text", image(99), "z")]))
    place = next(index for index in range(len(before)) if said(before, index) != said(after, index))
    for start in range(0, len(before), 2):
        span = range(start, start + 2)
        mark = before.fingerprint(span)
        assert (after.fingerprint(span) != mark) == (place in span)
        assert grown.fingerprint(span) == mark
        assert FirstSamples(before, len(before)).fingerprint(span) == mark
    assert len({before.fingerprint(range(start, start + 1)) for start in range(COUNT)}) == COUNT


@pytest.mark.parametrize("write", ALL)
def test_images_alone(write: Write, tmp_path: Path) -> None:
    """Without texts only a change of the images counts, as for cached features."""
    before = opened(write, write(tmp_path / "before", samples("")))
    for change in ALL[write]:
        after = opened(write, write(tmp_path / change, samples(change)))
        same = after.fingerprint(texts=False) == before.fingerprint(texts=False)
        assert same == (change in ("text", "id"))


def test_the_drawn_world() -> None:
    marks = [open_source(f"world:{spec}").fingerprint() for spec in ("train?n=8", "train?n=8&seed=1", "val?n=8")]
    assert len(set(marks)) == 3
    assert open_source("world:train?n=8").fingerprint() == marks[0]


def test_images_that_are_not_there_are_reported(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "data", samples(""))
    mark = open_source(path).fingerprint()
    (tmp_path / "data" / "img03.png").unlink()
    assert open_source(path).fingerprint() != mark


def test_what_is_added_apart_does_not_run_together() -> None:
    def of(*columns: list[str | None]) -> str:
        made = Digest()
        for column in columns:
            made.strings(pa.array(column, pa.string()))
        return made.value()

    found = [of(["ab", "c"]), of(["a", "bc"]), of(["ab"], ["c"]), of(["abc"])]
    found += [of(["ab", "c", ""]), of(["ab", "c", None])]
    assert len(set(found)) == len(found)
    sliced = Digest()
    sliced.strings(pa.array(["x", "ab", "c", "y"]).slice(1, 2))
    chunked = Digest()
    chunked.strings(pa.chunked_array([["ab"], ["c"]]))
    assert sliced.value() == chunked.value() == of(["ab", "c"])


def test_a_span_is_read_evenly() -> None:
    assert list(spread(range(3, 13), 4)) == [3, 6, 9, 12]
    assert list(spread(range(3), 4)) == [0, 1, 2]
    assert list(spread(range(0), 4)) == []


def test_long_columns_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_source(as_jsonl(tmp_path / "before", samples("")))
    after = open_source(as_jsonl(tmp_path / "after", samples("text")))
    monkeypatch.setattr(digest.pieces, "__defaults__", (3,))
    assert before.fingerprint() != after.fingerprint()


def test_a_run_saved_without_fingerprints_resumes(tmp_path: Path) -> None:
    source = open_source(as_jsonl(tmp_path / "data", samples("")))
    loader = Loader(source, PLAIN, 2)
    next(iter(loader))
    state = loader.state_dict()
    del state["data"]
    again = Loader(source, PLAIN, 2)
    again.load_state_dict(state)
    assert again.state_dict()["delivered"] == 2
