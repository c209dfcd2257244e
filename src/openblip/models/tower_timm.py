"""Vision towers of timm: a model by its name, with the image size and normalisation of its pretrained weights."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from openblip.core.errors import UserError, first_line
from openblip.models.tower_parts import Encoder, drop_last_blocks, settle_drop, tokens_of

__all__ = ["TimmEncoder", "timm_encoder"]


class TimmEncoder(nn.Module):
    """A timm model's tokens before its pooling, without registers."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit: Any = vit
        registers = getattr(vit, "reg_token", None)
        self._layout: dict[str, Any] = {
            "first": 0 if getattr(vit, "cls_token", None) is None else 1,
            "registers": 0 if registers is None else registers.shape[1],
            "channels_last": getattr(vit, "output_fmt", "NCHW") == "NHWC",
        }

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> tokens [B, N, D]."""
        return tokens_of(self.vit.forward_features(images), **self._layout)


def timm_encoder(name: str, *, image_size: int | None, drop_layers: int | None, pretrained: bool) -> Encoder:
    """The timm model `name`, its position embeddings interpolated to `image_size`.

    Raises:
        UserError: timm has no such model, or not at this size.
    """
    vit = _create(name, image_size, pretrained)
    settings = vit.pretrained_cfg
    side = image_size or settings["input_size"][-1]
    dropped = settle_drop(vit, drop_layers)
    drop_last_blocks(vit, dropped)
    return Encoder(
        module=TimmEncoder(vit),
        width=vit.num_features,
        pixels=(side, side),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        drop_layers=dropped,
    )


def _create(name: str, image_size: int | None, pretrained: bool) -> Any:
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
        except TypeError as error:
            # A CNN is of no size.
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, OSError, TypeError) as error:
        raise UserError(f'timm does not give "{name}" here: {first_line(error)}') from error
