"""Transforms against Pillow and against what the papers say they do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.data.augment import augment
from openblip.data.clean import clean_caption
from openblip.data.transform_config import COLOR_KEEPING_OPS, REFERENCE_OPS, ImageTransformConfig
from openblip.data.transforms import (
    ImageTransform,
    evaluation_transform,
    finetuning_transform,
    pretraining_transform,
)
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, normalize


def noisy_photo(width: int = 120, height: int = 90) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def plain(**settings: object) -> ImageTransform:
    base = {"image_size": 32, "crop_scale": None, "flip": False, "ops": ()}
    return ImageTransform(ImageTransformConfig(**{**base, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [32, 64, 200])
def test_evaluation_equals_pillows_bicubic(size: int) -> None:
    image = noisy_photo()
    ours = evaluation_transform(size)(image, np.random.default_rng(0))
    theirs = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.int64)
    difference = np.abs(ours.permute(1, 2, 0).numpy().astype(np.int64) - theirs)
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous()
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_crops_follow_scale_and_aspect() -> None:
    # An image that tells where each pixel was: red counts columns, green counts rows.
    x, y = np.meshgrid(np.arange(200), np.arange(200))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))
    shares, aspects = [], []
    for seed in range(300):
        crop = plain(crop_scale=(0.2, 1.0), image_size=64)(image, np.random.default_rng(seed)).numpy()
        width = (int(crop[0, 32, -1]) - int(crop[0, 32, 0])) * 64 / 63
        height = (int(crop[1, -1, 32]) - int(crop[1, 0, 32])) * 64 / 63
        shares.append(width * height / 200**2)
        aspects.append(math.log(width / height))
    assert 0.18 < min(shares) < 0.25
    assert 0.85 < max(shares) <= 1.02
    assert abs(np.mean(aspects)) < 0.05
    assert max(np.abs(aspects)) < math.log(4 / 3) + 0.05


def test_crop_of_a_strip_takes_the_middle() -> None:
    strip = Image.new("RGB", (400, 4), (9, 9, 9))
    out = plain(crop_scale=(0.9, 1.0))(strip, np.random.default_rng(0))
    assert out.shape == (3, 32, 32)
    assert (out == 9).all()


def test_flip_mirrors_half_of_the_images() -> None:
    image = noisy_photo(32, 32)
    upright = plain()(image, np.random.default_rng(0))
    flipped = 0
    for seed in range(200):
        out = plain(flip=True)(image, np.random.default_rng(seed))
        mirrored = torch.equal(out, upright.flip(2))
        assert mirrored or torch.equal(out, upright)
        flipped += mirrored
    assert 70 < flipped < 130


def test_same_generator_same_pixels_and_nothing_else_matters() -> None:
    transform, image = pretraining_transform(48), noisy_photo()
    first = transform(image, np.random.default_rng([1, 2]))
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(first, transform(image, np.random.default_rng([1, 2])))
    assert not torch.equal(first, transform(image, np.random.default_rng([1, 3])))


@pytest.mark.parametrize("op", REFERENCE_OPS)
def test_every_operation_keeps_shape_and_type(op: str) -> None:
    image = plain()(noisy_photo(), np.random.default_rng(0))
    before = image.clone()
    for magnitude in (0.0, 5.0, 10.0):
        out = augment(image, op, magnitude, np.random.default_rng(0))  # type: ignore[arg-type]
        assert (out.shape, out.dtype) == (image.shape, torch.uint8)
    assert torch.equal(image, before)


def test_geometric_operations_equal_pillows() -> None:
    image = noisy_photo(64, 64)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    grey = (128, 128, 128)
    rng = np.random.default_rng(0)
    sign = 1 if np.random.default_rng(0).random() < 0.5 else -1
    rotated = image.rotate(-15 * sign, Image.Resampling.BILINEAR, fillcolor=grey)
    # Pillow shears about the upper left corner; ours about the centre, which is the same up to a shift.
    matrix = (1, 0.15 * sign, -0.15 * sign * 32, 0, 1, 0)
    sheared = image.transform((64, 64), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=grey)
    for op, theirs in (("rotate", rotated), ("shear_x", sheared)):
        ours = augment(pixels, op, 5.0, np.random.default_rng(0)).permute(1, 2, 0).numpy()  # type: ignore[arg-type]
        difference = np.abs(ours.astype(np.int64) - np.asarray(theirs, np.int64))[8:-8, 16:-16]
        assert difference.mean() < 0.6, op
    shifted = augment(pixels, "translate_x", 5.0, rng)
    left, right = (5, 0) if sign > 0 else (0, 5)
    assert torch.equal(shifted[:, :, left : 64 - right], pixels[:, :, right : 64 - left])
    assert (shifted[:, :, :5] if sign > 0 else shifted[:, :, -5:]).eq(128).all()


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32)])
def test_images_that_are_no_squares(height: int, width: int) -> None:
    """Each operation keeps the shape, and turns and shears pixels, not shares of the sides."""
    image = noisy_photo(width, height)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for op in REFERENCE_OPS:
        assert augment(pixels, op, 7.0, np.random.default_rng(0)).shape == (3, height, width)
    sign = 1 if np.random.default_rng(0).random() < 0.5 else -1
    rotated = image.rotate(-15 * sign, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)
    across, down = (
        image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)
        for matrix in (
            (1, 0.15 * sign, -0.15 * sign * height / 2, 0, 1, 0),
            (1, 0, 0, 0.15 * sign, 1, -0.15 * sign * width / 2),
        )
    )
    for op, theirs in (("rotate", rotated), ("shear_x", across), ("shear_y", down)):
        ours = augment(pixels, op, 5.0, np.random.default_rng(0)).permute(1, 2, 0).numpy()  # type: ignore[arg-type]
        difference = np.abs(ours.astype(np.int64) - np.asarray(theirs, np.int64))[8:-8, 8:-8]
        assert difference.mean() < 0.6, op
    wide = ImageTransform(ImageTransformConfig(image_size=(height, width)))
    photo = noisy_photo(90, 60)
    assert {wide(photo, np.random.default_rng(n)).shape for n in range(30)} == {(3, height, width)}


def test_color_keeping_operations_keep_a_plain_color() -> None:
    red = torch.zeros(3, 32, 32, dtype=torch.uint8)
    red[0] = 180
    for op in COLOR_KEEPING_OPS:
        out = augment(red, op, 5.0, np.random.default_rng(1))
        assert out[:, 16, 16].tolist() == [180, 0, 0]
    assert set(REFERENCE_OPS) - set(COLOR_KEEPING_OPS) == {"autocontrast", "equalize"}


def test_operations_are_applied_with_their_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of those drawn, as the reference: of two a quarter of the images gets none, a quarter both."""
    applied: list[str] = []

    def count(pixels: torch.Tensor, op: str, magnitude: float, rng: np.random.Generator) -> torch.Tensor:
        applied.append(op)
        return pixels

    monkeypatch.setattr("openblip.data.transforms.augment", count)
    image, rng, counts = noisy_photo(40, 40), np.random.default_rng(3), [0, 0, 0]
    for _ in range(400):
        applied.clear()
        plain(ops=REFERENCE_OPS)(image, rng)
        counts[len(applied)] += 1
    assert counts == pytest.approx([100, 200, 100], abs=45)  # more than four standard deviations
    applied.clear()
    plain(ops=REFERENCE_OPS, op_probability=1.0)(image, rng)
    assert len(applied) == 2


def test_min_side_asks_for_enough_pixels() -> None:
    assert pretraining_transform(224).min_side == math.ceil(224 / math.sqrt(0.15))
    assert finetuning_transform(384).min_side < pretraining_transform(384).min_side
    assert evaluation_transform(384).min_side == 768


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 0},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.0, 1.0)},
        {"magnitude": 11.0},
        {"num_ops": -1},
        {"op_probability": 1.5},
    ],
)
def test_impossible_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ImageTransformConfig(**settings)  # type: ignore[arg-type]


def test_normalize() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    expected = (images.float() / 255 - mean) / std
    assert torch.allclose(normalize(images), expected, atol=1e-5)
    assert normalize(images, torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="uint8"):
        normalize(images.float())


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('A "Dog" (brown).', "a dog brown"),
        ("  what?  is, this-thing  ", "what? is, this-thing"),
        ("#tag: one; two~three*!", "tag one two three"),
        ("line\nbreak\ttab", "line break tab"),
        ("...", ""),
    ],
)
def test_clean_caption(text: str, clean: str) -> None:
    assert clean_caption(text) == clean


def test_clean_caption_cuts_words_and_can_keep_writing() -> None:
    assert clean_caption("one two three four", 2) == "one two"
    assert clean_caption("Straße, (Köln).", None, simplify=False) == "Straße, (Köln)."
    assert clean_caption("Ein  Haus", simplify=False) == "Ein Haus"
