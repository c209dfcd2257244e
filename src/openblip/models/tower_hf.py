"""Vision towers of transformers: the vision part of a model, as its image processor prepares images.

A model that reads texts too (CLIP, SigLIP) is loaded without its text side.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.models.normalization import normalization
from openblip.models.opening import opening
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, Triple
from openblip.models.tower_parts import (
    Encoder,
    TokenEncoder,
    check_whole_patches,
    drop_last_blocks,
    examined,
    settled_drop,
)

__all__ = ["TransformersEncoder", "image_processor", "transformers_encoder", "write_description"]

_VISION = ("vision_model", "vision_tower", "visual")
"""how models that read texts too call their vision part"""


class TransformersEncoder(TokenEncoder):
    """The last hidden state of a vision model of transformers, without registers.

    Args:
        flipped: it reads blue, green and red in place of red, green and blue.
    """

    def __init__(self, model: nn.Module, *, flipped: bool = False) -> None:
        super().__init__(registers=getattr(model.config, "num_register_tokens", None) or 0)
        self.model: Any = model
        self.flipped = flipped
        taken = inspect.signature(self.model.forward).parameters
        # With it a model takes images of any size; those of its own size give the same tokens.
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in taken else {}
        self._reads_patches = "spatial_shapes" in taken

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> tokens [B, N, D]."""
        images = images.flip(1) if self.flipped else images
        given = self._patches(images) if self._reads_patches else {"pixel_values": images, **self._options}
        return self.tokens(self.model(**given).last_hidden_state)

    def _patches(self, images: Tensor) -> dict[str, Tensor]:
        """What SigLIP 2's models for any aspect ratio (NaFlex) read: patches [B, N, P * P * 3] and their grid."""
        side = self.model.config.patch_size
        rows, columns = images.shape[2] // side, images.shape[3] // side
        cut = images.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # [B, 3, rows, P, columns, P]
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int32, device=images.device),
            "spatial_shapes": torch.tensor([[rows, columns]], device=images.device).expand(len(images), 2),
        }


def transformers_encoder(
    name: str, *, image_size: int | None, drop_layers: int | None, pretrained: bool, dtype: torch.dtype
) -> Encoder:
    """The vision model in the folder `name`, or of that name on the hub.

    Args:
        image_size: side of the images; None is that of its image processor, or else of its configuration.
        dtype: that its weights are read in.

    Raises:
        UserError: there is no such model, it is no vision model, or takes no images of this size.
    """
    model = _open(name, pretrained, dtype)
    processor = image_processor(name)
    own = _own_pixels(processor, model.config)
    pixels = own if image_size is None else (image_size, image_size)
    if pixels is None:
        raise UserError(f'nothing in "{name}" says the size of images; give image_size if it is a vision model')
    patch = getattr(model.config, "patch_size", None)
    if pixels != own and isinstance(patch, int):
        check_whole_patches(name, pixels[0], patch)
    dropped = settled_drop(model, drop_layers)
    drop_last_blocks(model, dropped)
    mean, std = normalization(name, processor, (IMAGE_MEAN, IMAGE_STD))
    return examined(
        TransformersEncoder(model, flipped=bool(processor.get("do_flip_channel_order"))),
        f"hf:{name}",
        pixels=pixels,
        mean=mean,
        std=std,
        drop_layers=dropped,
        own=_size(getattr(model.config, "image_size", None)),
    )


def write_description(
    folder: Path, encoder: TransformersEncoder, *, pixels: tuple[int, int], mean: Triple, std: Triple
) -> None:
    """Write what `transformers_encoder` builds the encoder from where its weights are elsewhere."""
    encoder.model.config.save_pretrained(folder)
    size = {"height": pixels[0], "width": pixels[1]}
    described: dict[str, Any] = {"size": size, "image_mean": mean, "image_std": std}
    if encoder.flipped:
        described |= {"do_flip_channel_order": True, "do_normalize": True}
    write_json(folder / "preprocessor_config.json", described)


def _open(name: str, pretrained: bool, dtype: torch.dtype) -> Any:
    """The vision model without what only pools its tokens."""
    with opening(name, "a folder of transformers"):
        model = _load(name, pretrained, dtype)
    if hasattr(model.config, "mask_ratio"):
        raise UserError(
            f'"{name}" is a masked autoencoder, which hides patches at random; take it from timm (timm:NAME.mae)'
        )
    _without_pooling(model)
    return model


def _load(name: str, pretrained: bool, dtype: torch.dtype) -> Any:
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    described: Any = AutoConfig.from_pretrained(name)
    vision = getattr(described, "vision_config", described)
    # The vision model alone, where its class and the names of its weights allow; else inside of the whole model.
    alone = [vision] if type(vision) in MODEL_MAPPING else []
    for config in alone if alone and vision is described else [*alone, described]:
        if not pretrained:
            return _vision_part(AutoModel.from_config(config, dtype=dtype))
        model, loaded = AutoModel.from_pretrained(name, config=config, output_loading_info=True, dtype=dtype)
        missing = [key for key in loaded["missing_keys"] if not {"pooler", "head"}.intersection(key.split("."))]
        if not missing:
            return _vision_part(model)
    raise UserError(f'the weights of "{name}" lack "{min(missing)}"')


def _vision_part(model: Any) -> Any:
    return next((getattr(model, part) for part in _VISION if hasattr(model, part)), model)


def _without_pooling(model: Any) -> None:
    """Leave out the pooling, which nothing reads and whose weights a folder may lack."""
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        model.pooler = None
    if getattr(model, "use_head", False):
        model.use_head = False
        del model.head


def image_processor(name: str) -> dict[str, Any]:
    """The settings of the image processor of a model, by folder or hub name; none where it brings none."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        found: dict[str, Any] = BaseImageProcessor.get_image_processor_dict(name)[0]
    except (OSError, ValueError):
        return {}
    return found


def _own_pixels(processor: dict[str, Any], config: Any) -> tuple[int, int] | None:
    """Height and width of the images that its processor makes, or else its configuration names."""
    cropped = processor.get("do_center_crop") and processor.get("crop_size")
    found = _size(cropped or processor.get("size")) or _size(getattr(config, "image_size", None))
    patches = getattr(config, "num_patches", None)
    if found is None and isinstance(patches, int):  # SigLIP 2's models for any aspect ratio
        return _size(math.isqrt(patches) * config.patch_size)
    return found


def _size(size: Any) -> tuple[int, int] | None:
    """Height and width from one of the forms in which transformers writes a size; None from any other."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        return _size(size.get("shortest_edge"))
    return None
