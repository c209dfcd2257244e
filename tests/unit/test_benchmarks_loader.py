"""The loader's benchmark: runs in its quick form with the right keys; images and peer are what they claim."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import loader
from benchmarks.__main__ import main
from benchmarks.harness import machine_slug
from benchmarks.photographs import photograph, write_tars
from benchmarks.plain_pipeline import OPERATIONS, TarPairs, clean, make_transform
from openblip.core.errors import MissingExtra
from openblip.data.clean import clean_caption
from openblip.data.transform_config import REFERENCE_OPS

KEYS = {
    *("case", "dtype", "ours_s", "peer_s", "ratio", "spread", "outputs_agree", "ours_peak_mb", "peer_peak_mb"),
    *("ours_images_s", "peer_images_s", "largest_difference", "tolerance", "repeats"),
}


@pytest.mark.slow
def test_quick_run_gives_the_object_of_the_design(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One case through the processes of both sides; the other's sides are compared below, without a clock."""
    monkeypatch.setattr(loader, "CASES", {"pre-training, 0 workers": ("pre-training", 0)})
    assert main(["compare", "loader", "--quick", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() >= {"name", "machine", "versions", "rows", "pixel_difference", "cpu_ms_per_image"}
    (row,) = result["rows"]
    assert row["case"] == "pre-training, 0 workers"
    assert row.keys() >= KEYS
    assert row["outputs_agree"]
    assert row["ours_images_s"] > 0
    assert result["cpu_ms_per_image"].keys() == {"pre-training"}
    assert result["pixel_difference"]["largest"] <= loader.LARGEST
    assert loader.FOLDER not in os.environ


def test_images_are_as_large_as_photographs() -> None:
    rng = np.random.default_rng(3)
    images = [photograph(rng) for _ in range(6)]
    sizes = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        sizes.append(len(buffer.getvalue()) / 1000)
        assert image.size == (500, 375)
        assert np.asarray(image).std(axis=(0, 1)).min() > 15
    assert min(sizes) > 35
    assert 40 < np.mean(sizes) < 60


def test_both_sides_read_the_same_and_a_difference_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tars(tmp_path, 2, 32, 3)
    found = loader.pixel_difference(tmp_path, 2)
    assert loader.agree(found)
    assert not loader.agree({**found, "largest": 3.0})
    assert not loader.agree({**found, "other_captions": 1})
    monkeypatch.setattr(loader, "our_transform", lambda kind: loader.ImageTransform(
        loader.ImageTransformConfig(image_size=224, crop_scale=(0.5, 0.6), flip=False, ops=())
    ))  # fmt: skip
    assert not loader.agree(loader.pixel_difference(tmp_path, 1))


def test_the_share_of_a_step_needs_a_stored_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "__file__", str(tmp_path / "loader.py"))
    assert loader.share_of_step(0.002) == {}
    (tmp_path / "results").mkdir()
    stored = {"rows": [{"dtype": "float32", "ours_s": 10.0}]}
    (tmp_path / "results" / f"blip-pretrain-{machine_slug()}.json").write_text(json.dumps(stored))
    share = loader.share_of_step(0.002)["share_of_training_step"]["float32"]
    assert share == pytest.approx(8 * 0.002 / (2 * 10.0 + 8 * 0.002), abs=1e-5)


def test_the_peer_is_the_papers_pipeline(tmp_path: Path) -> None:
    assert len(OPERATIONS) == len(REFERENCE_OPS)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for operation in OPERATIONS:
        assert operation(image, 1.0).size == image.size
    write_tars(tmp_path, 2, 4, 2)
    pairs = list(TarPairs(sorted(tmp_path.glob("*.tar")), make_transform("pre-training", 32)))
    assert [text for _, text in pairs] == [
        f"a photograph of things, number {place} of shard {shard}" for shard in range(2) for place in range(4)
    ]
    assert {tuple(tensor.shape) for tensor, _ in pairs} == {(3, 32, 32)}
    for text in ('A "Dog" (brown).', "  what?  is, this-thing  ", "x " * 40):
        assert clean(text) == clean_caption(text)


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    monkeypatch.delitem(sys.modules, "benchmarks.plain_pipeline")
    with pytest.raises(MissingExtra, match=r'pip install "openblip\[benchmarks\]"'):
        importlib.import_module("benchmarks.plain_pipeline")
