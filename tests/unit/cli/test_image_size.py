"""--image-size wherever a tower is named: features, training of BLIP-2 and BLIP, a start that has its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from openblip.checkpoints.store import open_model
from openblip.cli.features import cache_features
from openblip.cli.train import train
from openblip.core.errors import UserError

WORLD = "world:train?n=8"
SHORT = ("batch_size=4", "num_workers=0", "vocab_size=100", "train.trackers=[]", "max_length=12")
RUN = (*SHORT, "qformer.width=16", "qformer.depth=1", "qformer.inner_width=16")


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    """DINOv2 with a table for 64 pixels and a processor that makes 32."""
    folder = tmp_path_factory.mktemp("dino")
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(image_size=64, **sizes)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_center_crop": True, "crop_size": 32}))
    return f"hf:{folder}"


def test_features_and_training_agree(dino: str, tmp_path: Path) -> None:
    for size, tokens in ((None, 17), (48, 37)):
        features = tmp_path / f"features-{tokens}"
        cache_features((WORLD,), out=features, vision=dino, image_size=size, num_workers=0, device="cpu")
        described = json.loads((features / "cache.json").read_text())
        assert described["tower"]["input"]["pixels"] == [size or 32] * 2
        out = tmp_path / f"run-{tokens}"
        settings = (*RUN, f'features=["{features}"]')
        train("small-stage1", (WORLD,), out=out, vision=dino, image_size=size, model="nano", steps=1, set=settings)
        tower = open_model(out / "model").model.vision
        assert (tower.pixels, tower.first + tower.grid[0] * tower.grid[1]) == ((size or 32,) * 2, tokens)
    started: dict[str, Any] = {"model": str(tmp_path / "run-37" / "model"), "steps": 1, "set": SHORT}
    train("small-stage1", (WORLD,), out=tmp_path / "other", image_size=32, **started)
    assert open_model(tmp_path / "other" / "model").model.vision.pixels == (32, 32)
    train("small-stage1", (WORLD,), out=tmp_path / "same", image_size=48, **started)
    assert open_model(tmp_path / "same" / "model").model.vision.pixels == (48, 48)
    with pytest.raises(UserError, match="leave --image-size out"):
        cache_features((WORLD,), out=tmp_path / "f", model=started["model"], image_size=48)
    with pytest.raises(UserError, match="leave --dtype out"):
        cache_features((WORLD,), out=tmp_path / "f", model=started["model"], dtype="bfloat16")


def test_blip_reads_images_of_the_size_too(tmp_path: Path) -> None:
    train("small-pretrain", (WORLD,), out=tmp_path / "run", model="nano", image_size=32, steps=1, set=SHORT)
    assert open_model(tmp_path / "run" / "model").model.config.vision.pixels == (32, 32)
