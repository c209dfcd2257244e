"""The vision tower: a timm Vision Transformer whose tokens are all used, [CLS] first.

Sizes of our own are built from numbers (`VisionConfig`), so that no download is needed; `checkpoints.vit` starts a
tower from a pretrained one.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.compute import uses_fused_attention
from openblip.core.errors import UserError, first_line
from openblip.core.imports import without_compiler
from openblip.models.configs import VisionConfig
from openblip.models.layers import scale_narrow
from openblip.models.pixels import normalize
from openblip.models.products import use_onednn

with without_compiler():
    import timm
    from timm.layers import StdConv2d, build_sincos2d_pos_embed
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

__all__ = ["VisionEncoder", "interpolate_positions", "timm_vit"]


PLACE_SCALE = 0.5
"""of a conv stem's first position embeddings; timm draws those of a patch stem with a standard deviation of 0.02"""


class ConvStem(nn.Module):
    """Patches from a stack of strided 3x3 convolutions, in place of timm's `PatchEmbed`.

    Filters are standardised and channels normed in groups (Qiao et al. 2019, arXiv 1903.10520), which learns nearly
    as fast as norms over the batch and leaves every image to itself.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        stages = patch_size.bit_length() - 1
        assert 2**stages == patch_size, f"the conv stem needs a patch size that is a power of 2, not {patch_size}"
        # Each stage halves the sides and doubles the channels, up to embed_dim.
        widths = [max(embed_dim >> (stages - 1 - i), 16) for i in range(stages)]
        layers: list[nn.Module] = []
        channels = in_chans
        for width in widths:
            layers += [
                StdConv2d(channels, width, 3, stride=2, padding=1, bias=False),
                # At most 8 groups, in a number that divides the channels.
                nn.GroupNorm(math.gcd(8, width), width),
                nn.GELU(),
            ]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, embed_dim, 1))

    def feat_ratio(self) -> tuple[int, int]:
        """Pixels of a patch, as timm asks for it."""
        return self.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, N, D]."""
        return self.layers(images).flatten(2).transpose(1, 2)


class VisionEncoder(nn.Module):
    """Images to tokens, [CLS] first, through the final LayerNorm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = VisionTransformer(
            img_size=config.pixels,
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            # Neither classified nor pooled, since cross-attention reads every token.
            num_classes=0,
            global_pool="",
            drop_path_rate=config.drop_path,
            final_norm=config.final_norm,
            reg_tokens=config.registers,
            norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
            embed_layer=ConvStem if config.stem == "conv" else timm.layers.PatchEmbed,
        )
        use_onednn(self.vit)
        scale_narrow(self.vit.blocks, config.width)
        if config.stem == "conv" and not next(self.vit.parameters()).is_meta:  # which has no values to set
            self._start_with_places()

    @property
    def width(self) -> int:
        """D of the tokens."""
        return self.config.width

    @property
    def num_tokens(self) -> int:
        """Tokens of an image, [CLS] included."""
        rows, columns = self.config.grid
        return 1 + rows * columns

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [..., 3, H, W] -> what `forward` takes, in the dtype of the weights."""
        return normalize(pixels, next(self.parameters()).dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> [B, 1 + N, D]."""
        height, width = self.config.pixels
        assert images.shape[1:] == (3, height, width), (
            f"expected images [B, 3, {height}, {width}], got {tuple(images.shape)}"
        )
        self._choose_attention(images)
        tokens = self.vit.forward_features(images)
        count = self.config.registers
        return torch.cat((tokens[:, :1], tokens[:, 1 + count :]), dim=1) if count else tokens

    def _choose_attention(self, images: Tensor) -> None:
        # timm chooses when a block is built; device and dtype under autocast are known only when it runs.
        kind = images.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
        fused = uses_fused_attention(images.device, dtype)
        for block in self.vit.blocks:
            attention: Any = block.attn
            if attention.fused_attn != fused:
                attention.fused_attn = fused

    @torch.no_grad()
    def _start_with_places(self) -> None:
        """Position embeddings that tell rows and columns from the first step on (sines and cosines, learned on)."""
        assert self.width % 4 == 0, f"sines and cosines of two sides need a width that 4 divides, not {self.width}"
        places = build_sincos2d_pos_embed(list(self.config.grid), self.width, temperature=100.0)
        assert self.vit.pos_embed is not None
        self.vit.pos_embed[0, 1 + self.config.registers :] = PLACE_SCALE * places


def timm_vit(name: str, *, pretrained: bool = True) -> VisionTransformer:
    """The Vision Transformer `name` of timm with its weights.

    Args:
        name: as `timm.create_model` takes it, local-dir:FOLDER included.
        pretrained: False draws its weights.

    Raises:
        UserError: timm cannot give it, or it computes otherwise than a plain Vision Transformer.
    """
    try:
        vit: Any = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f'timm has no weights for "{name}" here: {first_line(error)}') from error
    # Others, as EVA and DINOv3 with rotary positions, are of their own classes; what a plain one has not besides
    # the activation shows in the names of its weights.
    plain = type(vit) in (VisionTransformer, VisionTransformerDistilled)
    if not plain or getattr(vit.blocks[0].mlp.act, "approximate", "") != "none" or vit.cls_token is None:
        raise UserError(
            f'"{name}" is no plain Vision Transformer, with [CLS], learned positions and GELU, as the vision tower '
            "of BLIP is: take a ViT, DeiT or DINOv2"
        )
    return vit


def interpolate_positions(
    positions: Tensor,
    grid: tuple[int, int],
    source_grid: tuple[int, int] | None = None,
    *,
    first: int = 1,
    antialias: bool = False,
) -> Tensor:
    """Resample position embeddings [1, first + n, D] to `grid` (rows, columns); bicubic, as the reference does.

    Args:
        source_grid: rows and columns they stand for; a square when None.
        first: embeddings before those of patches: [CLS] and registers.
        antialias: whether detail that a smaller grid cannot hold is filtered, as DINOv2 with registers does.
    """
    count = positions.shape[1] - first
    if source_grid is None:
        side = round(count**0.5)
        source_grid = (side, side)
    if source_grid[0] * source_grid[1] != count:
        raise UserError(f"{count} position embeddings do not fill a grid of {source_grid[0]} x {source_grid[1]}")
    if source_grid == tuple(grid):
        return positions
    # [CLS] and registers are outside the grid and keep their embeddings.
    outside, patches = positions[:, :first], positions[:, first:]
    square = patches.reshape(1, *source_grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(
        square.float(), size=tuple(grid), mode="bicubic", align_corners=False, antialias=antialias
    )
    return torch.cat((outside, resized.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)), dim=1)
