"""What the jobs train on: a small world in every layout that is read, and settings that keep a model small."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TRAIN = ("train", "small-pretrain")
NANO = ("--model", "nano", "--set", "image_size=32", "--set", "batch_size=8")
SMALL = ("--set", "image_size=32", "--set", "batch_size=8", "--set", "num_workers=0")


@dataclass(frozen=True)
class World:
    """48 images of the scene world with three true captions each, in every layout that is read."""

    folder: Path

    @property
    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / "captions.jsonl").read_text().splitlines()]

    @property
    def images(self) -> list[str]:
        return sorted(str(path) for path in (self.folder / "images").iterdir())

    @property
    def texts(self) -> list[str]:
        return [record["captions"][0] for record in self.records]  # type: ignore[index]

    def as_folder(self, target: Path, count: int | None = None) -> Path:
        """Images, all or the first few, with .txt beside them."""
        target.mkdir()
        for record in self.records[:count]:
            image = shutil.copy(self.folder / str(record["image"]), target)
            Path(image).with_suffix(".txt").write_text("\n".join(record["captions"]) + "\n")  # type: ignore[arg-type]
        return target

    def as_csv(self, target: Path) -> Path:
        """A captions file that names the images by absolute paths' relatives."""
        with open(target, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "caption"))
            writer.writerows((record["image"], text) for record, text in zip(self.records, self.texts, strict=True))
        return target

    def as_tar(self, target: Path) -> Path:
        """A tar as img2dataset writes it."""
        with tarfile.open(target, "w") as tar:
            for number, (record, text) in enumerate(zip(self.records, self.texts, strict=True)):
                png = (self.folder / str(record["image"])).read_bytes()
                for suffix, data in (("png", png), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        return target


def same_numbers(records: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Hold what two copies of a model print to each other.

    Numbers are printed with six decimals, and a file's weights lie elsewhere in memory than another's, so that a
    product may begin its sum at another place: the last digits differ with the computer.
    """
    assert len(records) == len(expected)
    for ours, theirs in zip(records, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for kind in ("captions", "matches"):
            for found, wanted in zip(ours.pop(kind, []), theirs.get(kind, []), strict=True):
                assert found == {
                    name: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
                    for name, value in wanted.items()
                }
        assert ours == {name: value for name, value in theirs.items() if name not in ("captions", "matches")}
