"""The frozen vision tower of BLIP-2: any Vision Transformer whose tokens the Q-Former reads.

Where it comes from is a `TowerConfig`: a timm model, a vision model of transformers, the tower of one of our BLIP
models, or sizes of our own with weights in the model's file (as whole checkpoints bring them). Frozen is frozen: no
gradient, no dropout, no optimiser state, its own dtype under any autocast, evaluation mode always.

Shapes: B images, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from openblip.core.compute import DTYPES, frozen_dtype
from openblip.core.errors import UserError
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, Triple, normalize
from openblip.models.products import use_onednn
from openblip.models.tower_hf import transformers_encoder
from openblip.models.tower_parts import block_list, drop_last_blocks
from openblip.models.tower_timm import timm_encoder
from openblip.models.vision import VisionConfig, VisionEncoder

__all__ = ["FrozenTower", "TowerConfig", "make_tower"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Which frozen vision tower; the default is the paper's EVA-CLIP ViT-g/14 without its last block."""

    source: str = "timm:eva_giant_patch14_clip_224"
    """timm:NAME, hf:NAME (a vision model of transformers, by hub name or folder), openblip:FOLDER (the vision tower
    of a BLIP model of ours), or "own": `own` gives the sizes and the model's file holds the weights."""
    drop_layers: int | None = None
    """Blocks left out at the end; with 0 the tower's final norm stays. None is 1 for a transformer of timm or
    transformers, as in the paper, and 0 for any other tower."""
    image_size: int | None = None
    """Side of the images in pixels; None is that of the tower's own preprocessor."""
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
        if self.drop_layers is not None and self.drop_layers < 0:
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
        config = replace(config, dtype=frozen_dtype(config.dtype), drop_layers=config.drop_layers or 0)
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
        """Number of blocks, for layer-wise decay; 0 where it has stages in their place."""
        found = block_list(self.encoder)
        return 0 if found is None else len(found[1])

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
    tower = _assemble(config, pretrained, blip_vision)
    _check_tokens(tower)
    return tower


def _assemble(config: TowerConfig, pretrained: bool, blip_vision: VisionEncoder | None) -> FrozenTower:
    if config.kind == "own":
        assert config.own is not None
        return FrozenTower(VisionEncoder(config.own), config, width=config.own.width, pixels=config.own.pixels)
    if config.kind == "openblip":
        assert blip_vision is not None, "open the folder first"
        drop_last_blocks(blip_vision.vit, config.drop_layers or 0)
        return FrozenTower(blip_vision, config, width=blip_vision.width, pixels=blip_vision.config.pixels)
    make = timm_encoder if config.kind == "timm" else transformers_encoder
    made = make(config.name, image_size=config.image_size, drop_layers=config.drop_layers, pretrained=pretrained)
    config = replace(config, drop_layers=made.drop_layers, image_size=_side(made.pixels))
    return FrozenTower(made.module, config, width=made.width, pixels=made.pixels, mean=made.mean, std=made.std)


def _side(pixels: tuple[int, int]) -> int | None:
    """The side of a square, so that a stored configuration names the size that was used."""
    return pixels[0] if pixels[0] == pixels[1] else None


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
