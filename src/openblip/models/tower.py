"""The frozen vision tower of BLIP-2: any encoder whose tokens of an image's patches the Q-Former reads.

Where it comes from is a `TowerConfig`: a timm model, a vision model of transformers, the tower of one of our BLIP
models, or sizes of our own with weights in the model's file (as whole checkpoints bring them). Frozen is frozen: no
gradient, no dropout, no optimiser state, its own dtype under any autocast, evaluation mode always.

Shapes: B images, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from openblip.core.compute import DTYPES, frozen_dtype, to_dtype
from openblip.models.configs import TowerConfig
from openblip.models.pixels import normalize
from openblip.models.products import use_onednn
from openblip.models.tower_hf import transformers_encoder
from openblip.models.tower_parts import Encoder, block_list, drop_last_blocks, unread_parameters
from openblip.models.tower_timm import TimmEncoder, timm_encoder
from openblip.models.vision import VisionEncoder, interpolate_positions

__all__ = ["FrozenTower", "fill_resized", "make_tower"]

_TABLE = "vit.pos_embed"


class FrozenTower(nn.Module):
    """An encoder that gives tokens, frozen unless the configuration says that it is trained.

    Attributes:
        width: D of the tokens.
        pixels: height and width of the images.
        mean: of pixel values from 0 to 1, by which images are normalised; `std` likewise.
        grid: rows and columns of the image's patches, which are the last tokens, row by row.
        first: tokens before them: [CLS], where the tower has it.
    """

    def __init__(self, made: Encoder, config: TowerConfig) -> None:
        super().__init__()
        # What was left open is settled here, so that the stored configuration names what was used.
        size = made.pixels[0] if made.pixels[0] == made.pixels[1] and config.own is None else config.image_size
        self.config = replace(
            config, dtype=frozen_dtype(config.dtype), drop_layers=made.drop_layers, image_size=size
        )
        self.encoder = made.module
        self.width, self.grid, self.first = made.width, made.grid, made.first
        self.pixels, self.mean, self.std = made.pixels, made.mean, made.std
        use_onednn(self.encoder)
        self.to_dtype(kept_in(config))
        if not config.trained:
            self.encoder.requires_grad_(False).eval()

    def to_dtype(self, dtype: torch.dtype) -> None:
        """Change the dtype of its weights."""
        # timm's own code expects its rotary tables in the dtype of the weights.
        if self.config.kind == "hf":
            to_dtype(self.encoder, dtype)
        else:
            self.encoder.to(dtype)

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

    def freeze_unread(self) -> None:
        """Keep frozen in a trained tower what its tokens do not depend on, as it would never have a gradient.

        DDP waits for the gradient of everything that is trained.
        """
        for parameter in unread_parameters(self.encoder, self.pixels):
            parameter.requires_grad_(False)

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


def kept_in(config: TowerConfig) -> torch.dtype:
    """The dtype of a tower's weights."""
    return torch.float32 if config.trained else DTYPES[frozen_dtype(config.dtype)]


def make_tower(
    config: TowerConfig,
    *,
    pretrained: bool = True,
    blip_vision: VisionEncoder | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> FrozenTower:
    """Build the tower that `config` names.

    Args:
        pretrained: with the weights of its source; False draws them, as they are about to be replaced.
        blip_vision: for openblip:FOLDER the vision tower found there; opening folders is not for this floor.
        state: for timm:local-dir:FOLDER and timm:ARCHITECTURE@FILE the weights found there, likewise.

    Raises:
        UserError: there is no such model, or it gives no patch tokens.
    """
    if config.kind == "own":
        assert config.own is not None
        return FrozenTower(_of_vision(VisionEncoder(config.own), 0), config)
    if config.kind == "openblip":
        assert blip_vision is not None, "open the folder first"
        drop_last_blocks(blip_vision.vit, config.drop_layers or 0)
        return FrozenTower(_of_vision(blip_vision, config.drop_layers or 0), config)
    options: Any = {"image_size": config.image_size, "drop_layers": config.drop_layers, "pretrained": pretrained}
    if config.kind == "hf":
        return FrozenTower(transformers_encoder(config.name, dtype=kept_in(config), **options), config)
    before, path = config.place
    name = before[len("timm:") : -1] if before.endswith("@") else config.name
    assert state is not None or not path or not pretrained, "open the file first"
    return FrozenTower(timm_encoder(name, state=state, **options), config)


@torch.no_grad()
def fill_resized(tower: FrozenTower, weights: FrozenTower) -> None:
    """Give `tower` the weights of the same one for images of another size.

    Learned positions are interpolated: bicubic as BLIP and LAVIS do, of a timm model by timm itself. A model of
    transformers keeps its table and interpolates as it reads.
    """
    state, encoder = dict(weights.encoder.state_dict()), tower.encoder
    if isinstance(encoder, VisionEncoder):
        assert isinstance(weights.encoder, VisionEncoder)
        own, before = encoder.config, weights.encoder.config
        first = 1 + own.registers
        state[_TABLE] = interpolate_positions(state[_TABLE], own.grid, before.grid, first=first)
    elif isinstance(encoder, TimmEncoder):
        encoder.fill_resized(state)
        return
    encoder.load_state_dict(state)


def _of_vision(vision: VisionEncoder, dropped: int) -> Encoder:
    pixels, grid = vision.config.pixels, vision.config.grid
    return Encoder(module=vision, width=vision.width, grid=grid, pixels=pixels, drop_layers=dropped)
