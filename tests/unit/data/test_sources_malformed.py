"""Malformed files of every kind: one sentence that names the file, or counted samples; never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_data import encoded, make_image

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.data.sources import open_source
from openblip.data.sources.questions import open_questions

KINDS = [
    "csv",
    "tsv",
    "txt",
    "jsonl",
    "json",
    "coco.json",
    "karpathy.json",
    "vqa.json",
    "parquet",
    "inside.parquet",
    "tar",
]
STRANGE = [
    b"",
    b"\n\n\n",
    b"\0" * 700,
    b"\xff\xfe",
    b"\xff\xfe\0",
    b"[",
    b"{",
    b"[]",
    b"{}",
    b"null",
    b"[[[[",
    b'["a", 1, null, {}]',
    b'{"images": [1, null, {"id": []}], "annotations": [null, {"image_id": {}}]}',
    b'{"images": {"a": 1}, "annotations": 3}',
    b'{"images": [null, 1], "type": "captions"}',
    b'{"annotations": [null, [], {"caption": 1}]}',
    b'{"questions": [{"question_id": 1, "image_id": null, "question": 3}]}',
    b'{"image": {"path": {"path": 1}}, "caption": {"raw": [null, {"x": 1}]}, "image_id": [1]}',
    b'{"image": "a\\u0000b.png", "caption": "\\ud800"}',
    b"image,caption",
    b"image,caption\n" + b'"' * 4000,
    b"image\tcaption\timage\n" + b"\t\t\n" * 50,
    b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
    b"\x1f\x8b\x08",
    b"PAR1" + b"\0" * 40 + b"PAR1",
]


def whole(folder: Path, kind: str) -> bytes:
    rows = [{"image": f"images/{n}.png", "caption": f"picture {n} é", "image_id": n // 2} for n in range(12)]
    path = folder / f"whole.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "inside.parquet":
        pq.write_table(pa.Table.from_pylist([{**row, "image": {"bytes": encoded(make_image(n)), "path": None}}
                                             for n, row in enumerate(rows)]), path)  # fmt: skip
    elif kind in ("csv", "tsv", "txt"):
        delimiter = "," if kind == "csv" else "\t"
        lines = [list(rows[0]), *(map(str, row.values()) for row in rows)]
        path.write_text("\n".join(delimiter.join(line) for line in lines), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        content: Any = rows
        if kind == "coco.json":
            content = {"images": [{"id": n, "file_name": f"images/{n}.png"} for n in range(6)],
                       "annotations": [{"image_id": n, "caption": f"c{n}"} for n in range(6)]}  # fmt: skip
        elif kind == "karpathy.json":
            content = {
                "images": [{"filename": f"{n}.png", "cocoid": n, "sentences": [{"raw": "c"}]} for n in range(6)]
            }
        elif kind == "vqa.json":
            content = {"questions": [{"question_id": n, "image_id": n, "question": "?"} for n in range(6)]}
        path.write_text(json.dumps(content, indent=1))
    return path.read_bytes()


def malformed(data: bytes, count: int) -> list[bytes]:
    """`data` cut, overwritten, with bytes lost and doubled; drawn, but the same each time."""
    rng = np.random.default_rng(len(data))
    found = []
    for number in range(count):
        place, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
        noise = (
            rng.bytes(length)
            if number % 2
            else rng.choice(list(b'{}[]",:\t\n\0\\'), length).astype(np.uint8).tobytes()
        )
        found.append(
            (
                data[:place],
                data[:place] + noise + data[place + length :],
                data[:place] + data[place + length :],
                data[:place] + data[max(0, place - length) :],
            )[number // 2 % 4]
        )
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_files(image_folder: Path, tmp_path: Path, write_tar: Any, kind: str) -> None:
    data = write_tar("whole.tar", 0, 4).read_bytes() if kind == "tar" else whole(tmp_path, kind)
    path = tmp_path / "alone" / f"a.{kind.rpartition('.')[2]}"
    path.parent.mkdir()
    if kind == "vqa.json":  # the other file of the pair
        answers = [{"question_id": n, "image_id": n, "answers": [{"answer": "yes"}]} for n in range(6)]
        (path.parent / "annotations.json").write_text(json.dumps({"annotations": answers}))
    messages: list[str] = []
    counted: list[BrokenSample] = []
    num_read = 0
    for content in [*malformed(data, 120), *STRANGE]:
        path.write_bytes(content)
        for opened in (open_source, open_questions):
            try:
                source = opened(str(path))
            except UserError as error:
                messages.append(str(error))
                continue
            source.text_counts()
            source.describe()
            counted += source.bad_rows
            for index in range(len(source)):
                try:
                    sample = source[index]
                except BrokenSample as broken:
                    counted.append(broken)
                    continue
                assert sample.key
                assert sample.image_id
                num_read += 1
    assert [text for text in messages if "alone" not in text or "\n" in text] == []
    assert [broken for broken in counted if not broken.detail] == []
    assert len(messages) > len(STRANGE)
    assert num_read
