"""What a tower of transformers is shown: the image size and normalisation of its own processor, or another size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from openblip.core.errors import UserError
from openblip.models.configs import TowerConfig
from openblip.models.tower import make_tower
from openblip.models.tower_hf import write_description

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 48, "patch_size": 8,
}  # fmt: skip
CROP = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DINOv2 whose position table is for larger images than its processor makes, as the published ones."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)).save_pretrained(folder)
    return folder


def write_processor(folder: Path, **settings: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("processor", "pixels"),
    [
        (
            {"do_center_crop": True, "crop_size": CROP, "size": {"shortest_edge": 40}},
            (32, 32),
        ),
        (
            {"do_center_crop": False, "crop_size": CROP, "size": {"shortest_edge": 40}},
            (40, 40),
        ),
        ({"size": {"height": 24, "width": 32}}, (24, 32)),
        ({"size": 16}, (16, 16)),
        ({"do_center_crop": True, "crop_size": 24, "size": 32}, (24, 24)),
        ({"image_mean": [0.5, 0.5, 0.5]}, (48, 48)),
    ],
)
def test_the_processor_says_the_image_size(dino: Path, processor: dict[str, Any], pixels: tuple[int, int]) -> None:
    write_processor(dino, **processor)
    tower = make_tower(TowerConfig(source=f"hf:{dino}"))
    assert tower.pixels == pixels
    assert tower.config.image_size == (pixels[0] if pixels[0] == pixels[1] else None)
    assert tower(torch.zeros(1, 3, *pixels)).shape == (1, 1 + pixels[0] * pixels[1] // 64, 32)


@torch.no_grad()
def test_tokens_are_those_of_the_model_behind_its_own_processor(dino: Path) -> None:
    """With a center crop, a mean and a standard deviation that are nobody's default."""
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 36}, crop_size=CROP, do_center_crop=True, image_mean=mean, image_std=std
    )
    processor.save_pretrained(dino)
    tower = make_tower(TowerConfig(source=f"hf:{dino}", drop_layers=1))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = processor(images=list(pixels), do_resize=False, return_tensors="pt")["pixel_values"]
    # Both are float32 arithmetic in another order.
    torch.testing.assert_close(tower.normalize(pixels), theirs, rtol=0, atol=1e-5)
    model = transformers.AutoModel.from_pretrained(dino).eval()
    expected = model(pixel_values=theirs, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tower(tower.normalize(pixels)), expected, rtol=1e-4, atol=1e-4)


def test_an_image_size_that_is_named_is_taken(dino: Path) -> None:
    write_processor(dino, size=32)
    tower = make_tower(TowerConfig(source=f"hf:{dino}", image_size=64))
    assert (tower.pixels, tower.config.image_size) == ((64, 64), 64)
    assert tower(torch.zeros(1, 3, 64, 64)).shape == (1, 65, 32)


def test_a_model_without_images_is_no_tower(tmp_path: Path) -> None:
    text = {key: value for key, value in SIZES.items() if key not in ("image_size", "patch_size")}
    transformers.BertModel(transformers.BertConfig(vocab_size=30, **text)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="says the size of images"):
        make_tower(TowerConfig(source=f"hf:{tmp_path}"))


def test_a_factor_that_leaves_nothing_is_refused(dino: Path) -> None:
    write_processor(dino, size=32, rescale_factor=0)
    with pytest.raises(UserError, match="multiplies pixels by 0; correct its rescale_factor"):
        make_tower(TowerConfig(source=f"hf:{dino}"))


@torch.no_grad()
@pytest.mark.parametrize(
    ("processor", "settings"),
    [
        ("MobileViTImageProcessor", {}),
        ("MobileViTImageProcessor", {"do_flip_channel_order": False}),
        ("BitImageProcessor", {"do_rescale": False, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]}),
        ("BitImageProcessor", {"rescale_factor": 1 / 127.5, "do_normalize": False}),
        ("EfficientNetImageProcessor", {"image_std": [0.2, 0.3, 0.25]}),
        ("EfficientNetImageProcessor", {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False}),
    ],
)
def test_pixels_are_those_of_the_processor(dino: Path, processor: str, settings: dict[str, Any]) -> None:
    """The order of colours, the factor, and what else processors do to values; also of a model that is stored."""
    own = getattr(transformers, processor)(size=CROP, do_resize=False, do_center_crop=False, **settings)
    own.save_pretrained(dino)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    given = own(list(images), return_tensors="pt")["pixel_values"]
    tower = make_tower(TowerConfig(source=f"hf:{dino}", drop_layers=0))
    encoder: Any = tower.encoder
    expected = encoder.model(pixel_values=given, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(tower(tower.normalize(images)), expected, rtol=1e-4, atol=1e-4)
    write_description(dino, encoder, pixels=tower.pixels, mean=tower.mean, std=tower.std)
    again = make_tower(TowerConfig(source=f"hf:{dino}", drop_layers=0))
    assert (again.mean, again.std, again.encoder.flipped) == (tower.mean, tower.std, encoder.flipped)
