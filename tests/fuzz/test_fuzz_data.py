"""Captions files, tars, parquet and texts, cut, damaged or of other kinds: a sentence, or counted samples."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mangled import OTHERS, mangled, time_limit
from PIL import Image

from openblip.core.errors import UserError
from openblip.data.image_inputs import find_image_inputs
from openblip.data.images import decode_image
from openblip.data.sample import BrokenSample
from openblip.data.sources import open_source

NUM_IMAGES = 6


def image(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows(inside: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": image(n), "path": f"{n}.png"} if inside else f"{n}.png",
            "caption": [f"text {n} é", "another, with a comma"] if inside else f'text {n} é, "quoted"\nline',
            "image_id": n // 2,
        }
        for n in range(NUM_IMAGES)
    ]


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def table(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(rows()[0])
    plain = delimiter == "\t"  # in .tsv files no value has lines of its own
    writer.writerows([row["image"], f"text {n}" if plain else row["caption"], n] for n, row in enumerate(rows()))
    return text.getvalue().encode()


def parquet(inside: bool) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(inside)), buffer)
    return buffer.getvalue()


def whole(kind: str) -> bytes:
    if kind == "tar":
        members = {}
        for n in range(NUM_IMAGES):
            members[f"{'long/' * 30}{n}.png"] = image(n)
            members[f"{'long/' * 30}{n}.txt"] = f"text {n} é".encode()
            members[f"{'long/' * 30}{n}.json"] = json.dumps({"url": "a", "n": n}).encode()
        return tar_of(members)
    if kind == "coco.json":
        images = [{"id": n, "file_name": f"{n}.png"} for n in range(NUM_IMAGES)]
        texts = [{"id": n, "image_id": n, "caption": f"text {n}"} for n in range(NUM_IMAGES)]
        return json.dumps({"images": images, "annotations": texts}).encode()
    made = {
        "csv": lambda: table(","),
        "tsv": lambda: table("\t"),
        "jsonl": lambda: "\n".join(map(json.dumps, rows())).encode(),
        "json": lambda: json.dumps(rows(), indent=1).encode(),
        "parquet": lambda: parquet(inside=False),
        "inside.parquet": lambda: parquet(inside=True),
        "txt": lambda: b"a text\nanother text\n",
    }
    return made[kind]()


def read(path: Path) -> tuple[int, list[BrokenSample]]:
    """Images with texts that could be read, and what could not."""
    source = open_source(str(path))
    source.describe()
    assert len(source.text_counts()) == len(source)
    good, broken = 0, list(source.bad_rows)
    for index in range(len(source)):
        try:
            sample = source[index]
            assert sample.key
            assert all(isinstance(text, str) for text in sample.texts)
            decode_image(sample)
            good += 1
        except BrokenSample as error:
            broken.append(error)
    return good, broken


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "jsonl", "json", "coco.json", "parquet", "inside.parquet", "tar", "txt"]
)
def test_data(kind: str, tmp_path: Path) -> None:
    for n in range(NUM_IMAGES):
        (tmp_path / f"{n}.png").write_bytes(image(n))
    data = whole(kind)
    path = tmp_path / f"data.{kind}"
    place = path
    if kind == "txt":  # the texts of an image in a folder
        path, place = tmp_path / "0.txt", tmp_path
    messages, num_good, num_broken = list[str](), 0, 0
    path.write_bytes(data)
    assert read(place)[0] >= NUM_IMAGES // 2
    for content in (*mangled(data, 120, seed=kind), *OTHERS.values()):
        path.write_bytes(content)
        with time_limit(content[:60]):
            try:
                good, broken = read(place)
            except UserError as error:
                messages.append(str(error))
                continue
        num_good, num_broken = num_good + good, num_broken + len(broken)
        assert good or broken
        assert [one for one in broken if not one.detail or "\n" in one.detail] == []
    assert num_good
    assert num_broken
    assert messages or kind == "txt"
    assert [text for text in messages if "\n" in text or str(place) not in text] == []


def test_tars_to_use(tmp_path: Path) -> None:
    """The way of `caption`: a damaged tar is one sentence, a damaged image in it a broken image."""
    data, messages = whole("tar"), list[str]()
    path = tmp_path / "data.tar"
    for content in (*mangled(data, 120, seed="use"), *OTHERS.values()):
        path.write_bytes(content)
        with time_limit(content[:60]):
            try:
                images = find_image_inputs([path])
            except UserError as error:
                messages.append(str(error))
                continue
            for image in images:
                try:
                    image.decode()
                except BrokenSample as broken:
                    assert broken.key == image.name  # noqa: PT017
    assert messages
    assert [text for text in messages if "\n" in text or str(path) not in text] == []
