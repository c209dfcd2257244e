"""Cached features of data that have changed: changed shards are made anew, nothing stands for a broken image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_blip2 import PIXELS

from openblip.checkpoints.blip2_parts import open_tower
from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sources.open import open_source
from openblip.models.blip import Blip, blip_config
from openblip.models.configs import as_tower
from openblip.models.tower import FrozenTower
from openblip.tasks.feature_cache import FeatureCache, describe_tower
from openblip.tasks.feature_files import shard_files
from openblip.tasks.features import Cached, cache_features

BYTES = 17 * 64 * 4
"""of the features of an image"""


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> FrozenTower:
    folder = tmp_path_factory.mktemp("blip") / "model"
    tokenizer = TextTokenizer.train(["a red circle left of a blue square"], vocab_size=60)
    torch.manual_seed(0)
    save_model(
        folder,
        StoredModel(Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=PIXELS)), tokenizer),
    )
    return open_tower(as_tower(f"openblip:{folder}"))


def paint(file: Path, number: int, side: int = 40) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images with texts: shards of 4, 4 and 2."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        paint(folder / f"{number}.png", number)
        (folder / f"{number}.txt").write_text("a dog")
    return folder


def fill(photos: Path, tower: FrozenTower, out: Path) -> Cached:
    """Shards of four images, each in two batches."""
    source = open_source(str(photos))
    return cache_features([source], tower, out, num_workers=0, shard_mb=4.5 * BYTES / 1e6, batch_size=2)


def read(out: Path, tower: FrozenTower) -> dict[str, torch.Tensor]:
    cache = FeatureCache.open([out], describe_tower(tower))
    return {key: cache.read([{"feature_row": key}])[0] for key in cache.rows}


def add(photos: Path) -> None:
    paint(photos / "91.png", 91)
    (photos / "91.txt").write_text("a dog")


def replace(photos: Path) -> None:
    paint(photos / "5.png", 77, side=44)


def remove(photos: Path) -> None:
    for number in (8, 9):
        (photos / f"{number}.png").unlink()


def spoil(photos: Path) -> None:
    (photos / "0.png").write_bytes(b"")


def change_texts(photos: Path) -> None:
    (photos / "3.txt").write_text("a cat")


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (add, 1),
        (replace, 4),
        (remove, 0),
        (spoil, 4),
        (change_texts, 0),
    ],
)
def test_features_are_those_of_the_data_as_they_are(
    change: Callable[[Path], None],
    anew: int,
    photos: Path,
    tower: FrozenTower,
    tmp_path: Path,
) -> None:
    assert fill(photos, tower, tmp_path / "f").computed == 10
    assert len(shard_files(tmp_path / "f")) == 3
    change(photos)
    assert fill(photos, tower, tmp_path / "f").computed == anew
    fill(photos, tower, tmp_path / "new")
    found, wanted = read(tmp_path / "f", tower), read(tmp_path / "new", tower)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert fill(photos, tower, tmp_path / "f").computed == 0


def test_nothing_stands_for_a_broken_image(photos: Path, tower: FrozenTower, tmp_path: Path) -> None:
    whole = (photos / "1.png").read_bytes()
    for number in (1, 8, 9):  # the last two are a shard of their own
        (photos / f"{number}.png").write_bytes(b"<html>")
    done = fill(photos, tower, tmp_path / "f")
    assert (done.images, done.left_out) == (7, 3)
    found = read(tmp_path / "f", tower)
    assert sorted(found) == [f"{n}.png" for n in (0, 2, 3, 4, 5, 6, 7)]
    listed = [json.loads(line)["key"] for line in (tmp_path / "f" / "skipped.jsonl").read_text().splitlines()]
    assert listed == ["1.png", "8.png", "9.png"]
    (photos / "1.png").write_bytes(whole)
    assert fill(photos, tower, tmp_path / "f").computed == 4
    assert "1.png" in read(tmp_path / "f", tower)


def test_no_image_at_all_is_an_error(photos: Path, tower: FrozenTower, tmp_path: Path) -> None:
    for file in photos.glob("*.png"):
        file.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"no image of .*photos can be read; .*skipped\.jsonl"):
        fill(photos, tower, tmp_path / "f")


def test_training_from_features_goes_on_without_the_images(
    photos: Path, tower: FrozenTower, tmp_path: Path
) -> None:
    """Features may travel where images do not; the texts still count."""
    table = photos / "captions.jsonl"
    rows = [json.dumps({"image": f"{n}.png", "caption": f"dog {n}"}) for n in range(10)]
    table.write_text("\n".join(rows))
    cache_features([open_source(str(table))], tower, tmp_path / "f", num_workers=0)
    cache = FeatureCache.open([tmp_path / "f"], describe_tower(tower))
    mark = cache.source(open_source(str(table))).fingerprint()
    for file in photos.glob("*.png"):
        file.unlink()
    assert cache.source(open_source(str(table))).fingerprint() == mark
    table.write_text("\n".join(rows).replace("dog 4", "cat 4"))
    assert cache.source(open_source(str(table))).fingerprint() != mark


def test_a_folder_of_another_version_is_refused(photos: Path, tower: FrozenTower, tmp_path: Path) -> None:
    fill(photos, tower, tmp_path / "f")
    described = json.loads((tmp_path / "f" / "cache.json").read_text())
    (tmp_path / "f" / "cache.json").write_text(json.dumps(described | {"format": "openblip-features"}))
    for read_it in (lambda: fill(photos, tower, tmp_path / "f"), lambda: read(tmp_path / "f", tower)):
        with pytest.raises(UserError, match=r"cache\.json is of another version .* remove the folder"):
            read_it()
