"""The frozen vision tower of BLIP-2: any Vision Transformer whose tokens the Q-Former reads.

Where it comes from is a `TowerConfig`: a timm model, a vision model of transformers, the tower of one of our BLIP
models, or sizes of our own with weights in the model's file (as whole checkpoints bring them). Frozen is frozen: no
gradient, no dropout, no optimiser state, its own dtype under any autocast, evaluation mode always.

Shapes: B images, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import timm
import torch
from torch import Tensor, nn

from openblip.core.compute import DTYPES, frozen_dtype
from openblip.core.errors import UserError, first_line
from openblip.core.places import wrong_place
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, Triple, normalize
from openblip.models.products import use_onednn
from openblip.models.vision import VisionConfig, VisionEncoder

__all__ = ["FrozenTower", "TowerConfig", "drop_last_blocks", "make_tower"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Which frozen vision tower; the default is the paper's EVA-CLIP ViT-g/14 without its last block."""

    source: str = "timm:eva_giant_patch14_clip_224"
    """timm:NAME, hf:NAME (a vision model of transformers, by hub name or folder), openblip:FOLDER (the vision tower
    of a BLIP model of ours), or "own": `own` gives the sizes and the model's file holds the weights."""
    drop_layers: int = 1
    """Blocks left out at the end; with 0 the tower's final norm stays."""
    image_size: int | None = None
    """Side of the images in pixels; None is what the tower was trained with."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """The dtype in which a frozen tower is kept and computes; "auto" becomes bfloat16 where that is native, else
    float32, when the tower is built."""
    trained: bool = False
    """Whether the tower is fine-tuned with the rest, in float32, in place of frozen."""
    own: VisionConfig | None = None
    """Sizes of the tower where `source` is "own"."""

    def __post_init__(self) -> None:
        kind = self.source.partition(":")[0]
        if kind not in ("timm", "hf", "openblip", "own"):
            raise UserError(
                f'a vision tower comes from timm:NAME, hf:NAME or openblip:FOLDER; "{self.source}" is none of these'
            )
        if (kind == "own") != (self.own is not None):
            raise UserError('the vision tower\'s sizes (own) go with source = "own" and with no other')
        if self.drop_layers < 0:
            raise UserError(f"drop_layers counts blocks and cannot be {self.drop_layers}")

    @property
    def kind(self) -> str:
        """timm, hf, openblip or own."""
        return self.source.partition(":")[0]

    @property
    def name(self) -> str:
        """What stands behind the kind."""
        return self.source.partition(":")[2]


class FrozenTower(nn.Module):
    """An encoder that gives tokens, frozen unless the configuration says that it is trained.

    Args:
        encoder: normalised images [B, 3, H, W] -> tokens [B, N, width].
        pixels: height and width of the images.
        mean: of pixel values from 0 to 1, by which images are normalised; `std` likewise.
    """

    def __init__(
        self,
        encoder: nn.Module,
        config: TowerConfig,
        *,
        width: int,
        pixels: tuple[int, int],
        mean: Triple = IMAGE_MEAN,
        std: Triple = IMAGE_STD,
    ) -> None:
        super().__init__()
        # "auto" is resolved here, so that the stored configuration names the dtype that was used.
        config = replace(config, dtype=frozen_dtype(config.dtype))
        self.config, self.width, self.pixels, self.mean, self.std = config, width, pixels, mean, std
        self.encoder = encoder
        use_onednn(encoder)
        if not config.trained:
            self.encoder.to(DTYPES[config.dtype]).requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        """That the tower computes in."""
        return next(self.encoder.parameters()).dtype

    @property
    def depth(self) -> int:
        """Number of blocks, for layer-wise decay."""
        return len(_blocks(self.encoder))

    def train(self, mode: bool = True) -> FrozenTower:
        """A frozen encoder stays in evaluation mode whatever the parent does."""
        super().train(mode)
        if not self.config.trained:
            self.encoder.eval()
        return self

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> what `forward` takes, in the tower's dtype."""
        return normalize(pixels, self.dtype, mean=self.mean, std=self.std)

    def describe_input(self) -> dict[str, Any]:
        """What an image becomes before `forward`, as plain data: cached features of another input are refused."""
        return {"pixels": list(self.pixels), "mean": list(self.mean), "std": list(self.std)}

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> tokens [B, N, D], in the tower's dtype."""
        if self.config.trained:
            return self.encoder(images)
        # Autocast would compute in the training's dtype in place of the tower's own.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.encoder(images.to(self.dtype))


class _TimmEncoder(nn.Module):
    """A timm model's tokens before its pooling."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        return cast(Any, self.vit).forward_features(images)


class _TransformersEncoder(nn.Module):
    """The hidden states of a vision model of transformers after all but the last `drop_layers` blocks."""

    def __init__(self, model: nn.Module, drop_layers: int) -> None:
        super().__init__()
        self.model = model
        self.drop_layers = drop_layers

    def forward(self, images: Tensor) -> Tensor:
        if self.drop_layers:
            # hidden_states begins with the embeddings, so [-1] is the last block's output, before the final norm.
            return self.model(pixel_values=images, output_hidden_states=True).hidden_states[-1 - self.drop_layers]
        return self.model(pixel_values=images).last_hidden_state


def make_tower(
    config: TowerConfig, *, pretrained: bool = True, blip_vision: VisionEncoder | None = None
) -> FrozenTower:
    """Build the tower that `config` names.

    Args:
        pretrained: with the weights of its source; False draws them, as they are about to be replaced.
        blip_vision: for openblip:FOLDER the vision tower found there; opening folders is not for this floor.

    Raises:
        UserError: there is no such model, or it gives no patch tokens.
    """
    if config.kind == "own":
        assert config.own is not None
        return FrozenTower(VisionEncoder(config.own), config, width=config.own.width, pixels=config.own.pixels)
    if config.kind == "openblip":
        assert blip_vision is not None, "open the folder first"
        drop_last_blocks(blip_vision.vit, config.drop_layers)
        return FrozenTower(blip_vision, config, width=blip_vision.width, pixels=blip_vision.config.pixels)
    return _timm_tower(config, pretrained) if config.kind == "timm" else _transformers_tower(config, pretrained)


def drop_last_blocks(vit: nn.Module, count: int) -> None:
    """Leave the last `count` blocks out, and the final norm, which was made for what they give."""
    if count == 0:
        return
    blocks = _blocks(vit)
    if count >= len(blocks):
        raise UserError(f"a tower of {len(blocks)} blocks cannot be without {count}; lower drop_layers")
    cast(Any, vit).blocks = blocks[:-count]
    for name in ("norm", "fc_norm"):
        if isinstance(getattr(vit, name, None), nn.Module):
            setattr(vit, name, nn.Identity())


def _blocks(encoder: nn.Module) -> Any:
    lists = [
        module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and name.rpartition(".")[2] in ("blocks", "layers", "layer")
    ]
    if not lists:
        raise UserError(f"{type(encoder).__name__} has no list of blocks, so layers cannot be left out or counted")
    # A stem of convolutions may be a list of layers too; the blocks are what the tower mostly consists of.
    return max(lists, key=lambda found: sum(parameter.numel() for parameter in found.parameters()))


def _timm_tower(config: TowerConfig, pretrained: bool) -> FrozenTower:
    options: dict[str, Any] = {} if config.image_size is None else {"img_size": config.image_size}
    try:
        vit: Any = timm.create_model(config.name, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, OSError, TypeError) as error:
        raise UserError(f'timm does not give "{config.name}" here: {first_line(error)}') from error
    settings = vit.pretrained_cfg
    side = config.image_size or settings["input_size"][-1]
    tower = FrozenTower(
        _TimmEncoder(vit),
        config,
        width=vit.num_features,
        pixels=(side, side),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    _check_tokens(tower)
    drop_last_blocks(vit, config.drop_layers)
    return tower


def _transformers_tower(config: TowerConfig, pretrained: bool) -> FrozenTower:
    from transformers import AutoConfig, AutoModel

    try:
        described: Any = AutoConfig.from_pretrained(config.name)
        vision = getattr(described, "vision_config", described)
        whole: Any = AutoModel.from_pretrained(config.name) if pretrained else AutoModel.from_config(described)
    except (OSError, ValueError) as error:
        raise UserError(
            wrong_place(config.name)
            or f'"{config.name}" is neither a folder of transformers nor a model that the hub or its cache gives: '
            f"{first_line(error)}"
        ) from error
    model = getattr(whole, "vision_model", whole)
    if not hasattr(vision, "image_size") or not hasattr(vision, "hidden_size"):
        raise UserError(f'"{config.name}" is no vision transformer of transformers: its config has no image_size')
    if config.image_size not in (None, vision.image_size):
        raise UserError(
            f'"{config.name}" takes images of {vision.image_size} pixels; leave image_size out, or take '
            "the model from timm, which interpolates"
        )
    mean, std = _processor_mean_std(config.name)
    encoder = _TransformersEncoder(model, config.drop_layers)
    tower = FrozenTower(
        encoder,
        config,
        width=vision.hidden_size,
        pixels=(vision.image_size, vision.image_size),
        mean=mean,
        std=std,
    )
    _check_tokens(tower)
    return tower


def _processor_mean_std(name: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation that its image processor normalises with; CLIP's where it brings none."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        found, _ = BaseImageProcessor.get_image_processor_dict(name)
    except (OSError, ValueError):
        return IMAGE_MEAN, IMAGE_STD
    mean, std = found.get("image_mean", IMAGE_MEAN), found.get("image_std", IMAGE_STD)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


@torch.no_grad()
def _check_tokens(tower: FrozenTower) -> None:
    """Refuse a tower that does not give tokens [1, N, D] of the width it says, which an image shows."""
    # On the device "meta" there are no values to run.
    if next(tower.parameters()).is_meta:
        return
    trained = tower.encoder.training
    tower.encoder.eval()
    found = tower(torch.zeros(1, 3, *tower.pixels))
    tower.encoder.train(trained)
    if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[1] < 2 or found.shape[2] != tower.width:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"{tower.config.source} gives {shape} and no patch tokens [1, N, {tower.width}]; the Q-Former reads "
            "tokens: take a Vision Transformer"
        )
