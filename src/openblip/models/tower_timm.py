"""Vision towers of timm, with the image size and normalisation of their pretrained weights.

NAME                 a model of timm with its pretrained weights, from the hub or its cache
local-dir:FOLDER     a folder in timm's format: config.json and weights
ARCHITECTURE@FILE    an architecture of timm with the weights in a file
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError, first_line
from openblip.core.files import write_json
from openblip.core.imports import without_compiler
from openblip.core.text import read_json
from openblip.models.tower_parts import (
    Encoder,
    TokenEncoder,
    check_whole_patches,
    drop_last_blocks,
    examined,
    settled_drop,
)

with without_compiler():
    import timm

__all__ = ["TimmEncoder", "timm_encoder", "write_description"]


class TimmEncoder(TokenEncoder):
    """A timm model's tokens before its pooling, or its last feature map, without registers."""

    def __init__(self, vit: nn.Module) -> None:
        registers = getattr(vit, "reg_token", None)
        super().__init__(
            first=0 if getattr(vit, "cls_token", None) is None else 1,
            registers=0 if registers is None else registers.shape[1],
            channels_last=getattr(vit, "output_fmt", "NCHW") == "NHWC",
        )
        self.vit: Any = vit

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> tokens [B, N, D]."""
        return self.tokens(self.vit.forward_features(images))

    def fill_resized(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of the same encoder for images of another size; timm interpolates its tables."""
        plain = {name.removeprefix("vit."): value for name, value in state.items()}
        change = getattr(sys.modules[type(self.vit).__module__], "checkpoint_filter_fn", None)
        changed = plain if change is None else change(dict(plain), self.vit)
        shapes = {name: value.shape for name, value in self.vit.state_dict().items()}
        self.vit.load_state_dict(
            {name: value if value.shape == shapes[name] else changed[name] for name, value in plain.items()}
        )


def timm_encoder(
    name: str,
    *,
    image_size: int | None,
    drop_layers: int | None,
    pretrained: bool,
    state: Mapping[str, Tensor] | None = None,
) -> Encoder:
    """The timm model `name`, its position embeddings interpolated to `image_size`.

    Args:
        pretrained: with the weights that timm knows for it.
        state: weights to take in their place, as a file holds them.

    Raises:
        UserError: timm has no such model, or not at this size; weights are missing from `state`.
    """
    vit = _create(name, image_size, pretrained and state is None)
    if state is not None:
        _fill(vit, dict(state), name)
    settings = vit.pretrained_cfg
    side = image_size or settings["input_size"][-1]
    if image_size is not None:
        for patch in _cuts(vit):
            check_whole_patches(f"timm:{name}", image_size, patch)
    dropped = settled_drop(vit, drop_layers)
    drop_last_blocks(vit, dropped)
    mean, std = tuple(settings["mean"]), tuple(settings["std"])
    return examined(TimmEncoder(vit), f"timm:{name}", pixels=(side, side), mean=mean, std=std, drop_layers=dropped)


def write_description(folder: Path, encoder: TimmEncoder) -> bool:
    """Write the config.json by which an encoder from a folder of timm's is built where its weights are elsewhere.

    Returns:
        False where it was not from a folder, and its name is enough.
    """
    described = encoder.vit.pretrained_cfg
    if described.get("source") != "local-dir":
        return False
    write_json(folder / "config.json", read_json(Path(described["file"]) / "config.json"))
    return True


def _cuts(vit: nn.Module) -> list[int]:
    """Sides of the patches that it cuts images into, where what is no whole patch would be passed over.

    Convolutions of a CNN pad or overlap, and some embeddings of patches pad too.
    """
    embeddings = [part for part in vit.children() if isinstance(part, timm.layers.PatchEmbed)]
    return [part.patch_size[0] for part in embeddings if not part.dynamic_img_pad]


def _described(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; nothing where there is none."""
    file = folder / "config.json"
    found = read_json(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _create(name: str, image_size: int | None, pretrained: bool) -> Any:
    folder = name.removeprefix("local-dir:")
    if folder != name and "architecture" not in _described(Path(folder)):
        raise UserError(
            f"{folder} is no folder in timm's format, with a config.json that names its architecture; one of "
            f"transformers is hf:{folder}"
        )
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
        except TypeError as error:
            # A CNN has no table of positions, and takes images of any size.
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, OSError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise UserError(f'timm does not give "{name}" here: {first_line(error)}') from error


def _fill(vit: Any, state: dict[str, Any], name: str) -> None:
    """Load weights as a file holds them: positions of another size are interpolated, a classifier is left out."""
    # Where timm changes names and resizes positions; its own loading passes over what is missing.
    change = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    try:
        with torch.no_grad():
            changed = state if change is None else change(state, vit)
        loaded = vit.load_state_dict(changed, strict=False)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"the weights are not those of {name}: {first_line(error)}") from error
    if loaded.missing_keys:
        raise UserError(f'the weights lack "{loaded.missing_keys[0]}" of {name}; they are of another model')
    heads = vit.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    parts = {part for part, _, rest in (key.partition(".") for key in vit.state_dict()) if rest}
    more = [key for key in loaded.unexpected_keys if not key.startswith(heads) and key.partition(".")[0] in parts]
    if more:
        raise UserError(f'the weights hold "{more[0]}", which {name} does not have; they are of another model')
