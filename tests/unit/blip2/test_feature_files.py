"""Cached features on disk: what storage changes, several crops of an image, damage, full disks, and reading."""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from openblip.cli.progress import progress
from openblip.core.errors import UserError
from openblip.data.sources.base import Source
from openblip.data.sources.open import open_source
from openblip.data.stream import Loader
from openblip.data.transforms import evaluation_transform
from openblip.models.configs import TowerConfig, VisionConfig
from openblip.models.tower import FrozenTower, make_tower
from openblip.tasks import feature_cache
from openblip.tasks.feature_cache import DrawCrop, FeatureCache, describe_tower
from openblip.tasks.feature_files import (
    ShardHead,
    ShardWriter,
    Span,
    Store,
    bytes_of_image,
    open_shard,
    shard_files,
)
from openblip.tasks.features import Cached, Crops, cache_features

WIDTH, TOKENS, SIDE = 24, 17, 32


@pytest.fixture(scope="module")
def tower() -> FrozenTower:
    torch.manual_seed(0)
    vision = VisionConfig(width=WIDTH, depth=1, num_heads=2, patch_size=8, image_size=SIDE)
    return make_tower(TowerConfig(source="own", own=vision, drop_layers=0))


def write_photos(folder: Path, names: list[str]) -> Source:
    folder.mkdir()
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a dog")
    return open_source(str(folder))


@pytest.fixture
def photos(tmp_path: Path) -> Source:
    return write_photos(tmp_path / "photos", list("abcdefgh"))


def fill(source: Source, tower: FrozenTower, out: Path, *, images: int = 4, **options: Any) -> Cached:
    """Shards of `images` images."""
    mb = (images + 0.5) * bytes_of_image((1, TOKENS, WIDTH), "float32") / 1e6
    return cache_features([source], tower, out, **{"num_workers": 0, "batch_size": 2, "shard_mb": mb} | options)


def read(out: Path, tower: FrozenTower, keys: list[str], crop: int = 0) -> Tensor:
    cache = FeatureCache.open([out], describe_tower(tower))
    return cache.read([{"feature_row": key} for key in keys], torch.full((len(keys),), crop))


def of_a_tower(seed: int = 0) -> Tensor:
    """Values [4, 1, 257, 64] in which some channels and some tokens are much larger, as in large towers."""
    values = torch.randn(4, 1, 257, 64, generator=torch.Generator().manual_seed(seed))
    values[..., 5] *= 40
    values[:, :, 7] *= 15
    return values


@pytest.mark.parametrize(
    ("store", "most", "least"),
    # Half of the last bit of 11 and of 8, relative; of int8 values of up to three times their spread in 127 steps:
    # 3 / 127 / sqrt(12) on average, in the worst token a half more.
    [
        ("float32", 0.0, 1 - 1e-6),
        ("float16", 2**-11, 1 - 1e-6),
        ("bfloat16", 2**-8, 1 - 1e-5),
        ("int8", 0.007, 0.9999),
    ],
)
def test_what_storage_changes(store: Store, most: float, least: float, tmp_path: Path) -> None:
    values = of_a_tower()
    with ShardWriter(tmp_path / "features-0.safetensors", store, (1, 257, 64)) as shard:
        shard.add(["a", "b"], values[:2])
        shard.add(["c", "d"], values[2:])
        shard.finish(Span(0, 4), "x")
    rows = open_shard(tmp_path / "features-0.safetensors")
    found = torch.stack([rows[number, 0].float() for number in range(4)])[:, None]
    # Of every token by itself, the small ones too.
    changed = (found - values).norm(dim=-1) / values.norm(dim=-1)
    assert changed.max() <= 1.5 * most
    assert (changed.square().mean().sqrt() > 0.1 * most) == (store != "float32")
    size = (tmp_path / "features-0.safetensors").stat().st_size
    assert size <= 4096 + 4 * bytes_of_image((1, 257, 64), store) + 64
    assert torch.cosine_similarity(found, values, dim=-1).min() >= least


@pytest.mark.parametrize("store", ["float16", "bfloat16", "int8"])
def test_what_storage_changes_is_reported_and_read_in_the_towers_dtype(
    store: Store, photos: Source, tower: FrozenTower, tmp_path: Path
) -> None:
    fill(photos, tower, tmp_path / "whole")
    done = fill(photos, tower, tmp_path / "f", store=store)
    keys = [f"{name}.png" for name in "hgfedcba"]
    wanted, found = read(tmp_path / "whole", tower, keys), read(tmp_path / "f", tower, keys)
    assert found.dtype == wanted.dtype == torch.float32
    relative = ((found - wanted).norm() / wanted.norm()).item()
    assert done.error.relative == pytest.approx(relative, rel=0.01)
    cosine = torch.cosine_similarity(found, wanted, dim=-1).mean().item()
    assert done.error.cosine == pytest.approx(cosine, abs=1e-5)
    assert done.error.tokens == 8 * TOKENS
    assert relative < 0.01
    with pytest.raises(UserError, match=f"its store is {store}, not float32; choose a new folder"):
        fill(photos, tower, tmp_path / "f")


def test_values_without_any_size(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "features-0.safetensors", "int8", (1, 3, 5)) as shard:
        shard.add(["a"], torch.zeros(1, 1, 3, 5))
        shard.finish(Span(0, 1), "x")
    assert torch.equal(open_shard(tmp_path / "features-0.safetensors")[0, 0], torch.zeros(3, 5))


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    values = torch.full((1, 1, 3, 5), 7e4)
    with (
        pytest.raises(UserError, match=r"values up to 7e\+04 cannot be stored as float16; choose bfloat16"),
        ShardWriter(tmp_path / "features-0.safetensors", "float16", (1, 3, 5)) as shard,
    ):
        shard.add(["a"], values)
    assert not list(tmp_path.iterdir())


def test_a_shard_is_a_safetensors_file(photos: Source, tower: FrozenTower, tmp_path: Path) -> None:
    """Whoever reads it elsewhere finds what it names."""
    fill(photos, tower, tmp_path / "f", store="int8", shard_mb=64)
    (file,) = shard_files(tmp_path / "f")
    with safe_open(file, "np") as opened:
        assert opened.get_tensor("features").shape == (8, 1, TOKENS, WIDTH)
        assert opened.get_tensor("scales").shape == (8, 1, TOKENS + WIDTH)
        assert opened.metadata()["last"] == "8"


def test_the_first_crop_is_the_whole_image(photos: Source, tower: FrozenTower, tmp_path: Path) -> None:
    fill(photos, tower, tmp_path / "f", crops=Crops(count=3))
    keys = [f"{name}.png" for name in "abcdefgh"]
    transform = evaluation_transform((SIDE, SIDE))
    pixels = [
        transform(Image.open(tmp_path / "photos" / key).convert("RGB"), np.random.default_rng(0)) for key in keys
    ]
    wanted = tower(tower.normalize(torch.stack(pixels)))
    cache = FeatureCache.open([tmp_path / "f"], describe_tower(tower))
    assert torch.allclose(cache.read([{"feature_row": key} for key in keys]), wanted, atol=1e-5)
    assert not torch.allclose(read(tmp_path / "f", tower, keys, 1), wanted, atol=1e-2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_crop_depends_on_seed_key_and_number_alone(
    workers: int, photos: Source, tower: FrozenTower, tmp_path: Path
) -> None:
    """Another batch size, other images before it, more crops: it is the same one."""
    fill(photos, tower, tmp_path / "f", crops=Crops(count=3), num_workers=workers)
    some = write_photos(tmp_path / "some", ["x", "h", "c"])
    for name in "hc":
        (tmp_path / "some" / f"{name}.png").write_bytes((tmp_path / "photos" / f"{name}.png").read_bytes())
    fill(some, tower, tmp_path / "g", crops=Crops(count=4), batch_size=16)
    fill(some, tower, tmp_path / "other", crops=Crops(count=3, seed=1))
    for crop in range(3):
        mine, same, other = (read(tmp_path / out, tower, ["c.png", "h.png"], crop) for out in ("f", "g", "other"))
        # Batches of other sizes may be multiplied by other kernels.
        assert torch.allclose(mine, same, atol=1e-5)
        assert torch.allclose(mine, other, atol=1e-5) == (crop == 0)
    assert not torch.allclose(read(tmp_path / "f", tower, ["c.png"], 1), read(tmp_path / "f", tower, ["c.png"], 2))
    with pytest.raises(UserError, match="its seed of crops is 0, not 2; choose a new folder"):
        fill(photos, tower, tmp_path / "f", crops=Crops(count=3, seed=2))


def test_training_draws_crops_by_the_runs_seed(photos: Source, tower: FrozenTower, tmp_path: Path) -> None:
    fill(photos, tower, tmp_path / "f", crops=Crops(count=3))
    cache = FeatureCache.open([tmp_path / "f"], describe_tower(tower))

    def epochs(seed: int, workers: int = 0) -> Tensor:
        loader = Loader([cache.source(photos)], DrawCrop(), 4, seed=seed, num_workers=workers)
        batches = [batch for _ in range(3) for batch in loader]
        loader.close()
        return torch.stack([cache.read(batch.meta, batch.images) for batch in batches])

    drawn = epochs(1)
    assert torch.equal(drawn, epochs(1, workers=1))
    assert not torch.equal(drawn, epochs(2))
    keys = [f"{name}.png" for name in "abcdefgh"]
    every = torch.stack([read(tmp_path / "f", tower, keys, crop) for crop in range(3)])
    found = {
        next(crop for crop in range(3) for row in every[crop] if torch.equal(row, features))
        for features in drawn.flatten(0, 1)
    }
    assert found == {0, 1, 2}


def test_a_shard_is_opened_once(photos: Source, tower: FrozenTower, tmp_path: Path, monkeypatch: Any) -> None:
    fill(photos, tower, tmp_path / "f")
    opened: list[Path] = []
    monkeypatch.setattr(feature_cache, "open_shard", lambda path: (opened.append(path), open_shard(path))[1])
    cache = FeatureCache.open([tmp_path / "f"], describe_tower(tower))
    for _ in range(3):
        cache.read([{"feature_row": f"{name}.png"} for name in "ahbg"])
    assert opened == shard_files(tmp_path / "f")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        lambda data: data[:2000],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        lambda data: data.replace(b'"inputs"', b'"INPUTS"'),
    ],
)
def test_a_damaged_shard(
    damage: Callable[[bytes], bytes], photos: Source, tower: FrozenTower, tmp_path: Path
) -> None:
    """Training names it; caching makes it anew."""
    fill(photos, tower, tmp_path / "f")
    whole, file = read(tmp_path / "f", tower, ["a.png"]), shard_files(tmp_path / "f")[0]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=rf"the features in {file} cannot be read \(.*\); run cache-features again"):
        read(tmp_path / "f", tower, ["a.png"])
    assert fill(photos, tower, tmp_path / "f").computed == 4
    assert torch.equal(read(tmp_path / "f", tower, ["a.png"]), whole)


@pytest.mark.parametrize("store", ["float32", "int8"])
def test_values_that_changed_on_disk(store: Store, photos: Source, tower: FrozenTower, tmp_path: Path) -> None:
    """Zeros over features are values too; caching on finds them by the checksum, which older shards have not."""
    fill(photos, tower, tmp_path / "f", store=store)
    file = shard_files(tmp_path / "f")[0]
    data = file.read_bytes()
    file.write_bytes(data[:5000] + bytes(200) + data[5200:])
    assert not ShardHead.read(file).is_whole()
    first = len(ShardHead.read(file).keys)
    assert fill(photos, tower, tmp_path / "f", store=store).computed == first
    assert file.read_bytes() == data
    old = data.replace(b'"crc32"', b'"older"')
    file.write_bytes(old)
    assert fill(photos, tower, tmp_path / "f", store=store).computed == 0
    assert file.read_bytes() == old
    assert torch.isfinite(read(tmp_path / "f", tower, ["a.png"])).all()


def test_a_shard_that_goes_while_training(photos: Source, tower: FrozenTower, tmp_path: Path) -> None:
    fill(photos, tower, tmp_path / "f")
    cache = FeatureCache.open([tmp_path / "f"], describe_tower(tower))
    file = shard_files(tmp_path / "f")[1]
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name} cannot be read"):
        cache.read([{"feature_row": "h.png"}])


def test_a_full_disk(photos: Source, tower: FrozenTower, tmp_path: Path, monkeypatch: Any) -> None:
    """The sentence says so, and what is whole stays."""
    whole = fill(photos, tower, tmp_path / "whole")

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 4096 + bytes_of_image((1, TOKENS, WIDTH), "float32"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def opening(path: Path, mode: str) -> Any:
        return (Full if "000004" in path.name else io.FileIO)(path, mode)

    monkeypatch.setattr("openblip.tasks.feature_files.open", opening, raising=False)
    with pytest.raises(UserError, match=r"the disk is full: .*features-000000004.* run the same command again"):
        fill(photos, tower, tmp_path / "f")
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / "f").glob("*features*")] == ["features-000000000.safetensors"]
    again = fill(photos, tower, tmp_path / "f")
    assert (again.computed, again.images) == (4, whole.images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": {"pixels": [64, 64]}}, r"its pixels is \[32, 32\], not \[64, 64\]"),
        ({"input": {"mean": [0.5, 0.5, 0.5]}}, r"its mean is .*, not \[0.5, 0.5, 0.5\]"),
        ({"dtype": "bfloat16"}, "its dtype is float32, not bfloat16; cache them again with --dtype bfloat16"),
        ({"drop_layers": 1}, "its drop_layers is 0, not 1"),
        ({"fingerprint": "0" * 32}, r"another vision tower \(own, fingerprint .*, this one's is 00000000\)"),
    ],
)
def test_features_of_another_tower_or_input_are_refused(
    change: dict[str, Any], words: str, photos: Source, tower: FrozenTower, tmp_path: Path
) -> None:
    fill(photos, tower, tmp_path / "f")
    mine = describe_tower(tower)
    other = {name: value | change.get(name, {}) if name == "input" else change.get(name, value)
             for name, value in mine.items()}  # fmt: skip
    advice = "" if "again" in words else "; cache them again"
    with pytest.raises(UserError, match=f"{words}{advice}$"):
        FeatureCache.open([tmp_path / "f"], other)


def test_several_sources(tower: FrozenTower, tmp_path: Path) -> None:
    one, two = write_photos(tmp_path / "one", list("abc")), write_photos(tmp_path / "two", list("de"))
    options = {"num_workers": 0, "batch_size": 2}
    assert cache_features([one], tower, tmp_path / "f", **options).computed == 3
    found = cache_features([one, two], tower, tmp_path / "f", **options)
    assert (found.computed, found.images) == (2, 5)
    assert len(read(tmp_path / "f", tower, [f"{name}.png" for name in "abcde"])) == 5
    # In another order other places are meant, and all are computed again.
    assert cache_features([two, one], tower, tmp_path / "f", **options).computed == 5
    same = write_photos(tmp_path / "same", list("xa"))
    with pytest.raises(UserError, match=r'two images have the key "a.png"'):
        cache_features([two, one, same], tower, tmp_path / "f", **options)


def test_shards_are_bounded_by_bytes(photos: Source, tower: FrozenTower, tmp_path: Path) -> None:
    each = bytes_of_image((2, TOKENS, WIDTH), "int8")
    options = {"store": "int8", "crops": Crops(count=2), "batch_size": 4, "num_workers": 0}
    cache_features([photos], tower, tmp_path / "f", shard_mb=5.9 * each / 1e6, **options)
    files = shard_files(tmp_path / "f")
    assert [int(file.stem.partition("-")[2]) for file in files] == [0, 4]  # whole batches of two images
    assert all(file.stat().st_size < 4096 + 4 * each + 200 for file in files)
    cache_features([photos], tower, tmp_path / "g", shard_mb=0.0001, **options)
    assert len(shard_files(tmp_path / "g")) == 4  # one batch each


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda: {"crops": Crops(count=0)}, "count the whole image too, and cannot be 0"),
        (lambda: {"crops": Crops(count=2, scale=(0.5, 2))}, "must rise within 0 to 1, not from 0.5 to 2"),
        (lambda: {"crops": Crops(seed=-1)}, "seed of crops cannot be negative"),
        (lambda: {"batch_size": 0}, "batch_size must be at least 1"),
        (lambda: {"num_workers": -1}, "num_workers not negative"),
        (lambda: {"shard_mb": 0.0}, "shard_mb .* cannot be 0"),
        (lambda: {"shard_mb": math.nan}, "shard_mb .* cannot be nan"),
        (lambda: {"shard_mb": math.inf}, "shard_mb .* cannot be inf"),
    ],
)
def test_options_that_cannot_be(
    options: Callable[[], dict[str, Any]], words: str, photos: Source, tower: FrozenTower, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        fill(photos, tower, tmp_path / "f", **options())


def test_progress_is_told_from_the_first_batch_on(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(100, done=20, lines=True) as show:
        for done in range(30, 101, 10):
            show(done)
    first, last = capsys.readouterr().err.splitlines()  # ten seconds lie between others
    assert first.startswith("openblip: 30 of 100 images, ")
    assert " images/s, 0:00:00 left" in first
    assert last.startswith("openblip: 100 of 100 images, ")
