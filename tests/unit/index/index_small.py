"""Small models of both families, a folder of images, places for an index, a model that counts what it encodes."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import small
import small_blip2
import torch
from torch import Tensor

from openblip.checkpoints.store import StoredModel
from openblip.index import building
from openblip.index.building import Changes, create
from openblip.index.entries import Place
from openblip.index.image_index import ImageIndex
from openblip.tasks.predictor import Predictor
from openblip.tasks.registry import adapt


class Counting(Predictor):
    """Counts the images that go through the vision tower."""

    encoded = 0

    def encode(self, batch: Any) -> Tensor:
        self.encoded += len(batch)
        return super().encode(batch)


def make_predictor(family: str = "blip", seed: int = 0, **options: Any) -> Counting:
    maker: Any = small if family == "blip" else small_blip2
    return Counting(adapt(StoredModel(maker.model(seed=seed), maker.tokenizer(), {})), **options)


@pytest.fixture(scope="module", params=["blip", "blip2"])
def predictor(request: pytest.FixtureRequest) -> Counting:
    """Of each family."""
    return make_predictor(request.param, batch_size=4)


@pytest.fixture(scope="module")
def blip() -> Counting:
    return make_predictor(batch_size=4)


@pytest.fixture(params=["segments", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | str:
    """A new index: a folder, or the address of one in PostgreSQL."""
    if request.param == "segments":
        return tmp_path / "I"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return new_address(request.getfixturevalue("postgres"))


def new_address(url: str) -> str:
    """Of an index that is not there yet."""
    return f"{url}#test_{next(_NUMBERS)}"


_NUMBERS = count()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images, each with two captions."""
    folder = tmp_path / "photos"
    (folder / "new").mkdir(parents=True)
    for number in range(10):
        path = folder / ("new" if number >= 6 else "") / f"{number}.png"
        small.make_image(number, side=40).save(path)
        path.with_suffix(".txt").write_text(f"{small.TEXTS[number % 8]}\nnumber {number}\n")
    return folder


def build(where: Path | str, predictor: Predictor, *specs: Path | str) -> tuple[ImageIndex, Changes]:
    """A new index, or the one that is there, brought up to date with each place; what the last one changed."""
    create(where, predictor, "runs/first/model")
    index = ImageIndex.open(where, predictor)
    return index, [update(index, spec) for spec in specs][-1]


def update(index: ImageIndex, spec: Path | str) -> Changes:
    return building.update(index, Place(str(spec)))


def exact(index: ImageIndex, predictor: Predictor, paths: list[str]) -> Tensor:
    """Vectors [B, Q, E] of images as the model gives them."""
    vectors = predictor.embed_images(paths)
    return vectors.reshape(len(paths), *index.store.shape).to(torch.float16).float()
