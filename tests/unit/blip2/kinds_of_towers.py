"""Vision models of transformers of the kinds that people use as towers, small and with drawn weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

__all__ = ["CNNS", "SIZES", "TRANSFORMERS", "make_transformers"]

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_NAFLEX = {**{name: value for name, value in SIZES.items() if name != "image_size"}, "num_patches": 16}
_STAGES: dict[str, Any] = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}

Make = Callable[[], Any]
TRANSFORMERS: dict[str, tuple[Make, int, int]] = {
    "CLIP": (lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES)), 1, 0),
    "CLIP with its text": (
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=_TEXT, vision_config=SIZES, projection_dim=16)
        ),
        1,
        0,
    ),
    "SigLIP": (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)), 0, 0),
    "SigLIP with its text": (
        lambda: transformers.SiglipModel(transformers.SiglipConfig(text_config=_TEXT, vision_config=SIZES)),
        0,
        0,
    ),
    "SigLIP 2 NaFlex": (
        lambda: transformers.Siglip2Model(transformers.Siglip2Config(text_config=_TEXT, vision_config=_NAFLEX)),
        0,
        0,
    ),
    "DINOv2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)), 1, 0),
    "DINOv2 with registers": (
        lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SIZES)),
        1,
        4,
    ),
    "DINOv3": (
        lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(num_register_tokens=4, **SIZES)),
        1,
        4,
    ),
    "ViT": (lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES)), 1, 0),
}
"""how each is made, its tokens before the registers ([CLS]), and its registers"""
CNNS: dict[str, tuple[Make, int]] = {
    "ConvNeXt": (lambda: transformers.ConvNextModel(transformers.ConvNextConfig(image_size=64, **_STAGES)), 0),
    "ConvNeXt V2": (
        lambda: transformers.ConvNextV2Model(transformers.ConvNextV2Config(image_size=64, **_STAGES)),
        0,
    ),
    "DINOv3 ConvNeXt": (
        lambda: transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(image_size=64, **_STAGES)),
        1,
    ),
    "ResNet": (
        lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, layer_type="basic", **_STAGES)
        ),
        0,
    ),
    "EfficientNet": (
        lambda: transformers.EfficientNetModel(
            transformers.EfficientNetConfig(image_size=64, width_coefficient=0.025, hidden_dim=32)
        ),
        0,
    ),
    "MobileNetV1": (
        lambda: transformers.MobileNetV1Model(
            transformers.MobileNetV1Config(image_size=64, depth_multiplier=1 / 32)
        ),
        0,
    ),
    "MobileNetV2": (
        lambda: transformers.MobileNetV2Model(
            transformers.MobileNetV2Config(image_size=64, depth_multiplier=0.025, finegrained_output=False)
        ),
        0,
    ),
}
"""how each is made, and its tokens before those of its feature map (the map's mean)"""


def make_transformers(kind: str) -> Any:
    """The model of a kind."""
    return (TRANSFORMERS | CNNS)[kind][0]().eval()
