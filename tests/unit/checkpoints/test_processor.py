"""Folders of transformers whose processor normalizes images otherwise than with CLIP's values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from openblip.checkpoints.processor import read_pixels_as_ours
from openblip.core.errors import UserError
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD

NAMES = [f"vision_model.embeddings.patch_embedding.{name}" for name in ("weight", "bias")]
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5]}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(zip(NAMES, (torch.randn(6, 3, 4, 4), torch.randn(6)), strict=True))


def embedded(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    return F.conv2d(pixels, *(state[name] for name in NAMES), stride=4)


def normalized(pixels: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        (HALF, lambda v: normalized(v / 255, HALF["image_mean"], HALF["image_std"])),
        (HALF | {"do_normalize": False}, lambda v: v / 255),
        (HALF | {"do_rescale": False}, lambda v: normalized(v, HALF["image_mean"], HALF["image_std"])),
        (HALF | {"rescale_factor": 0.01}, lambda v: normalized(v / 100, HALF["image_mean"], HALF["image_std"])),
        ({"image_mean": 0.5, "image_std": [0.25]}, lambda v: normalized(v / 255, [0.5] * 3, [0.25] * 3)),
        ({"do_normalize": False}, lambda v: v / 255),
        ({"do_rescale": False}, lambda v: normalized(v, IMAGE_MEAN, IMAGE_STD)),
        ({"image_std": [1.0, 1.0, 1.0]}, lambda v: normalized(v / 255, IMAGE_MEAN, [1.0] * 3)),
    ],
)
def test_the_patches_of_an_image_are_the_same(tmp_path: Path, name: str, settings: Any, theirs: Any) -> None:
    written = settings if name.startswith("pre") else {"image_processor": settings, "processor_class": "Blip"}
    (tmp_path / name).write_text(json.dumps(written), encoding="utf-8")
    pixels = torch.randint(256, (2, 3, 8, 8)).float()
    expected = embedded(weights(), theirs(pixels))
    state = weights()
    read_pixels_as_ours(state, tmp_path)
    # Of numbers up to some thousands, in float32.
    torch.testing.assert_close(
        embedded(state, normalized(pixels / 255, IMAGE_MEAN, IMAGE_STD)), expected, rtol=1e-4, atol=2e-2
    )


@pytest.mark.parametrize(
    "settings", [None, {}, {"size": {"height": 8}}, {"image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD)}]
)
def test_clips_values_and_none_at_all_change_nothing(tmp_path: Path, settings: Any) -> None:
    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    state = weights()
    read_pixels_as_ours(state, tmp_path)
    assert all(torch.equal(state[name], kept) for name, kept in weights().items())


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]},
        {"image_mean": {"r": 0.5}},
        {"image_mean": [float("nan")] * 3},
        HALF | {"rescale_factor": {}},
        HALF | {"rescale_factor": 10**400},
        {"image_mean": [0.5] * 3, "image_std": [0.0] * 3},
        {"image_mean": ["a", "b", "c"], "image_std": [1.0] * 3},
        HALF | {"rescale_factor": 0},
    ],
)
def test_what_cannot_be_computed_is_refused(tmp_path: Path, settings: Any) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be normalized as .*preprocessor_config.json says"):
        read_pixels_as_ours(weights(), tmp_path)


def test_the_file_that_transformers_reads_first_decides(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF), encoding="utf-8")
    usual = {"image_processor": {"image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD)}}
    (tmp_path / "processor_config.json").write_text(json.dumps(usual), encoding="utf-8")
    state = weights()
    read_pixels_as_ours(state, tmp_path)
    assert torch.equal(state[NAMES[0]], weights()[NAMES[0]])
    (tmp_path / "processor_config.json").write_text(json.dumps({"num_query_tokens": 32}), encoding="utf-8")
    read_pixels_as_ours(state, tmp_path)
    assert not torch.equal(state[NAMES[0]], weights()[NAMES[0]])


@pytest.mark.parametrize(
    "shapes", [((6, 4, 4, 4), (6,)), ((6, 1, 4, 4), (6,)), ((6, 3, 4, 4), (5,)), ((6, 48), (6,))]
)
def test_wrong_shapes_are_left_to_who_refuses_them(tmp_path: Path, shapes: Any) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF), encoding="utf-8")
    state = dict(zip(NAMES, map(torch.zeros, shapes), strict=True))
    read_pixels_as_ours(state, tmp_path)
    assert [tuple(state[name].shape) for name in NAMES] == list(shapes)
