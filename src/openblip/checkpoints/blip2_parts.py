"""BLIP-2's parts put together: the frozen tower and language model from their own sources, the rest around them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.checkpoints.blip_store import open_found as open_blip
from openblip.checkpoints.recognise import family_of
from openblip.checkpoints.state import find, read_folder, read_state
from openblip.checkpoints.stored import Options
from openblip.core.errors import UserError, about
from openblip.core.fingerprint import fingerprint
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.meta import on_meta
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import LanguageConfig, TowerConfig
from openblip.models.language import FrozenLanguage, make_language
from openblip.models.tower import FrozenTower, fill_resized, make_tower
from openblip.models.vision import VisionEncoder

__all__ = [
    "build_blip2",
    "fingerprints",
    "language_with_options",
    "open_language",
    "open_language_tokenizer",
    "open_tokenizer",
    "open_tower",
    "place_of_part",
    "resize_vision",
]


def open_tower(config: TowerConfig, *, base: Path | None = None, pretrained: bool = True) -> FrozenTower:
    """The vision tower that `config` names.

    Args:
        base: the folder of the model that names it, which a source like "hf:./vision" is relative to.
        pretrained: with its weights; False where they are about to be replaced.
    """
    before, path = config.place
    path = place_of_part(path, base) if path else path
    found = replace(config, source=before + path)
    vision = _vision_of(path, config.image_size) if config.kind == "openblip" else None
    state = _timm_weights(Path(path)) if config.kind == "timm" and path and pretrained else None
    tower = make_tower(found, pretrained=pretrained, blip_vision=vision, state=state)
    tower.config = replace(tower.config, source=config.source)
    return tower


def _timm_weights(place: Path) -> dict[str, Tensor]:
    """The weights in a file, or in a folder of timm's format."""
    if not place.exists():
        raise UserError(f"there is no file or folder {place} with the weights of a timm model")
    return read_folder(place) if place.is_dir() else read_state(place)


def _vision_of(source: str, image_size: int | None) -> VisionEncoder:
    """The vision tower of a BLIP model, in whichever format it is."""
    found = find(source)
    with about(source, found.path):
        if family_of(found) != "blip":
            raise UserError(f"{source} is a BLIP-2 model; name its vision tower itself, which openblip info shows")
        vision: VisionEncoder = open_blip(found, Options(image_size=image_size)).model.vision
    return vision


def open_language(config: LanguageConfig, *, base: Path | None = None) -> FrozenLanguage:
    """The language model that `config` names; `base` as for `open_tower`."""
    language = make_language(replace(config, source=place_of_part(config.source, base)))
    language.config = replace(language.config, source=config.source)
    return language


def language_with_options(language: LanguageConfig | None, options: Options) -> LanguageConfig | None:
    """The language model in the dtype and quantized as the caller asks, where the model says neither.

    Raises:
        UserError: it has LoRA, which was trained over whole matrices.
    """
    if language is None:
        return None
    if options.quantize not in ("none", language.quantize):
        if language.lora_rank:
            raise UserError("its language model has LoRA over whole matrices; leave quantize out")
        language = replace(language, quantize=options.quantize)
    if options.language_dtype is not None and language.dtype == LanguageConfig().dtype:
        language = replace(language, dtype=cast(Any, options.language_dtype))
    return language


def open_language_tokenizer(config: LanguageConfig, *, base: Path | None = None) -> LanguageTokenizer:
    """The tokenizer of the language model that `config` names."""
    return LanguageTokenizer.load(place_of_part(config.source, base), end=config.end, begin=config.begin)


def open_tokenizer(
    config: Blip2Config, given: TextTokenizer | Path | str, *, named: str | None = None
) -> TextTokenizer | None:
    """The tokenizer of the Q-Former's text side; None where it has none.

    Args:
        named: what to call the model, if the tokenizer is to be compared with its vocabulary; else None.

    Raises:
        UserError: it has another number of tokens than the model was trained with.
    """
    vocab_size = config.qformer.vocab_size
    if vocab_size is None:
        return None
    tokenizer = given if isinstance(given, TextTokenizer) else TextTokenizer.load(given)
    # LAVIS adds [DEC] to BERT's 30,522 pieces and no [ENC], which ours adds after it.
    if named is not None and not vocab_size <= tokenizer.vocab_size <= vocab_size + 1:
        raise UserError(
            f"{named} was trained with {vocab_size} tokens, the tokenizer has {tokenizer.vocab_size}; "
            "name the tokenizer it was trained with"
        )
    return tokenizer


def place_of_part(source: str, base: Path | None) -> str:
    """Where a part lies that the model in the folder `base` names.

    "./vision" lies in the folder. Another relative path is taken from where one stands, or else from the nearest
    folder above the model that has it, so that a model is opened from anywhere; fingerprints tell a wrong one.
    """
    if base is None or Path(source).is_absolute():
        return source
    if source.startswith("./"):
        return str(base / source)
    above = () if Path(source).exists() else base.resolve().parents
    return next((str(folder / source) for folder in above if (folder / source).exists()), source)


def build_blip2(
    config: Blip2Config,
    *,
    vision: FrozenTower | None = None,
    language: FrozenLanguage | None = None,
    drawn: bool = True,
) -> Blip2:
    """A model around its frozen parts.

    Args:
        vision: the tower, when it is there already; None opens it. `language` likewise.
        drawn: what is trained is newly initialized; False leaves it without values on "meta".

    Raises:
        UserError: a part is not to be had, or widths do not fit.
    """
    tower = open_tower(config.vision) if vision is None else vision
    if language is None and config.language is not None:
        language = open_language(config.language)
    with torch.device("cpu") if drawn else on_meta():
        return Blip2(config, tower, language)


def resize_vision(model: Blip2, image_size: int | tuple[int, int], *, base: Path | None, kept: bool) -> None:
    """Let the vision tower of a model read images of another size; its positions are interpolated, once.

    Args:
        image_size: side in pixels.
        base: as for `open_tower`.
        kept: whether the model's file holds the tower's weights. Otherwise they come from the tower's source again,
            as they will whenever the model is opened from then on: in a tower of half precision the values that are
            interpolated in float32 there differ from those interpolated here.

    Raises:
        UserError: the tower does not read images of this size, or those of the model are to be no squares.
    """
    side = image_size if isinstance(image_size, int) else image_size[0]
    if image_size not in (side, (side, side)):
        raise UserError("the vision tower of a BLIP-2 model takes square images: give image_size one number")
    before = model.vision
    if before.pixels == (side, side):
        return
    again = not kept and before.config.kind != "hf"  # those of transformers keep their table
    tower = open_tower(before.config.at(side), base=base, pretrained=again)
    if not again:
        fill_resized(tower, before)
    model.vision, model.config = tower, replace(model.config, vision=tower.config)


def fingerprints(model: Blip2, of: Collection[str] = ("vision", "language")) -> dict[str, dict[str, str]]:
    """Name and digest of each frozen part, or of those named."""
    parts: dict[str, tuple[str, nn.Module]] = {}
    if not model.config.vision.trained:
        parts["vision"] = (model.config.vision.source, model.vision.encoder)
    if model.language is not None:
        parts["language"] = (model.language.config.source, model.language)
    return {
        name: {"source": source, "fingerprint": fingerprint(_frozen(part))}
        for name, (source, part) in parts.items()
        if name in of
    }


def _frozen(part: nn.Module) -> list[tuple[str, Any]]:
    """What is compared; not quantized matrices, which are packed anew for where they are multiplied."""
    named = part.named_parameters()
    return [(name, value) for name, value in named if not value.requires_grad and value.is_floating_point()]
