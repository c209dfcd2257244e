"""BLIP models on disk: our own folders, transformers' and the original repository's files, read and written.

`store` hands over here whatever is of this family; the formats' names and sizes are in `blip` and `blip_hf`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from openblip.checkpoints import blip_hf
from openblip.checkpoints.blip import (
    config_from_state,
    load_blip_state,
    original_state,
)
from openblip.checkpoints.keymap import resample_positions
from openblip.checkpoints.notes import PUBLISHED_WIDTHS, read_notes, write_notes
from openblip.checkpoints.processor import read_pixels_as_ours
from openblip.checkpoints.recognise import KINDS, AnyConfig, describe, format_of
from openblip.checkpoints.state import NOTES, WEIGHTS, Checkpoint, Found, read_folder, read_state
from openblip.checkpoints.stored import (
    PUBLISHED_TOKENIZER,
    Options,
    Packed,
    Part,
    StoredModel,
    count_parameters,
    fill,
    unique_state,
)
from openblip.core.config import from_dict
from openblip.core.errors import UserError
from openblip.core.meta import on_meta
from openblip.core.tokenizer import TextTokenizer

__all__ = ["facts", "open_found", "original_entries", "pack", "sizes", "take_part", "write_transformers"]

_POSITIONS = "vision.vit.pos_embed"


def open_found(found: Found, options: Options) -> StoredModel:
    """Open a BLIP model in whichever format it is; its keys say which kind it is.

    Raises:
        UserError: it is incomplete, or does not fit the tokenizer.
    """
    if found.file is not None:
        return _open_original(found, found.file, options)
    return _open_own(found, options) if found.own else _open_transformers(found, options)


def _open_own(found: Found, options: Options) -> StoredModel:
    weights = found.path / WEIGHTS
    kind = found.description["model_type"]
    config_class = next(own for own, known in KINDS.items() if known.name == kind)
    if not weights.is_file():
        raise UserError(f"{found.path} has no {WEIGHTS}; the model was not saved whole")
    config: Any = from_dict(config_class, found.description.get("model"), where="model")
    source_grid = config.vision.grid
    config = _at_size(config, options)
    model, state = _empty_model(config), read_state(weights)
    if _POSITIONS in state and options.image_size is not None:
        first = 1 + config.vision.registers
        grid = config.vision.grid
        resample_positions(state, _POSITIONS, grid, source_grid, source=str(weights), first=first)
    fill(model, state, weights)
    if options.tokenizer is None:
        tokenizer = TextTokenizer.load(found.path)
    else:
        tokenizer = _tokenizer(options.tokenizer, config, found.path.name)
    return StoredModel(model, tokenizer, found.description.get("info", {}))


def _open_original(found: Found, file: Checkpoint, options: Options) -> StoredModel:
    notes, heads, name = read_notes(file.notes), options.heads, found.path.name
    vision_heads, text_heads = (heads[0], heads[-1]) if heads else (notes.vision_heads, notes.text_heads)
    config = config_from_state(
        file.state,
        num_vision_heads=vision_heads,
        num_text_heads=text_heads,
        image_size=options.image_size or notes.image_size,
        vision_eps=notes.vision_eps,
        text_eps=notes.text_eps,
        source=name,
    )
    model = _empty_model(config)
    patch = config.vision.patch_size
    # Of sides that differ the count of positions does not tell which is which.
    grid = None if notes.image_size is None else (notes.image_size[0] // patch, notes.image_size[1] // patch)
    ignored = load_blip_state(
        model, file.state, source_grid=grid, source=f"{name} (by its keys {describe(config)})"
    )
    tokenizer = _tokenizer(options.tokenizer or PUBLISHED_TOKENIZER, config, name)
    info: dict[str, Any] = {"source": name, "source_format": "blip"}
    if vision_heads is None and not {config.vision.width, config.text.width} <= PUBLISHED_WIDTHS:
        info["heads"] = "taken as 64 channels each: the file does not say (--heads)"
    return StoredModel(model.eval(), tokenizer, info, ignored)


def _open_transformers(found: Found, options: Options) -> StoredModel:
    name, state = found.name, read_folder(found.path)
    if format_of(state, name) != "transformers":
        raise UserError(f"{name} has a config.json of transformers, but weights with other names")
    read_pixels_as_ours(state, found.path)
    config = _at_size(blip_hf.config_from_transformers(found.description, state, options.like), options)
    model = _empty_model(config)
    ignored = blip_hf.load_transformers_state(
        model,
        state,
        source=f"{name} (by its keys {describe(config)})",
        temperature=found.description.get("itc_temperature"),
    )
    tokenizer = _tokenizer(options.tokenizer or found.path, config, name)
    info = {"source": name, "source_format": "transformers", "like": options.like}
    text = config.text
    if text.width != 64 * text.num_heads:
        # transformers' default of 8 heads stood in config.json of published models for some time.
        info["heads"] = f"{text.num_heads} of the text, as config.json says; BLIP's have 64 channels each"
    return StoredModel(model.eval(), tokenizer, info, ignored)


def _at_size(config: Any, options: Options) -> Any:
    if options.image_size is None:
        return config
    return replace(config, vision=replace(config.vision, image_size=options.image_size))


def _tokenizer(given: TextTokenizer | Path | str, config: AnyConfig, name: str) -> TextTokenizer:
    tokenizer = given if isinstance(given, TextTokenizer) else TextTokenizer.load(given)
    if tokenizer.vocab_size != config.text.vocab_size:
        raise UserError(
            f"{name} was trained with {config.text.vocab_size} tokens, the tokenizer has {tokenizer.vocab_size}; "
            "name the tokenizer it was trained with"
        )
    return tokenizer


def _empty_model(config: AnyConfig) -> Any:
    """A model on the meta device: weights that are about to be replaced are not drawn first."""
    with on_meta():
        return KINDS[type(config)].model(config)


def pack(stored: StoredModel, folder: Path, *, whole: bool) -> Packed:
    """All of the model, with `whole` or without."""
    state = {key: value.detach().cpu().contiguous() for key, value in unique_state(stored.model).items()}
    return Packed(stored.model.config, state, {})


def take_part(stored: StoredModel, part: Part) -> StoredModel:
    """The captioner or the matching model in a pre-training model."""
    return replace(stored, model=stored.blip.part(encoder=part == "match", decoder=part == "caption").eval())


def write_transformers(folder: Path, stored: StoredModel, part: Part | None) -> None:
    """Write a folder that transformers' `from_pretrained` opens; `part` has been taken before.

    Raises:
        UserError: transformers has no class that computes what this model does.
    """
    blip_hf.write_transformers(folder, stored.model, stored.tokenizer)


def original_entries(stored: StoredModel) -> dict[str, Any]:
    """What the original repository would have written: its state dict, and our notes beside it.

    Raises:
        UserError: it has no such model.
    """
    config = stored.model.config
    return {"model": original_state(stored.model), NOTES: write_notes(config.vision, config.text)}


def facts(stored: StoredModel) -> dict[str, Any]:
    """Parameters of each part, a shared one counted once, and the size of the vocabulary.

    "heads" are projections, ITM head and temperature, in models that have some.
    """
    children = dict(stored.model.named_children())
    text = [part for name, part in children.items() if name.startswith("text_") and "proj" not in name]
    parts = {"vision tower": count_parameters(stored.model.vision), "text": count_parameters(*text)}
    heads = count_parameters(stored.model) - sum(parts.values())
    return {
        "parameters_by_part": parts | ({"heads": heads} if heads else {}),
        "vocab_size": stored.tokenizer.vocab_size,
    }


def sizes(config: Any) -> dict[str, str]:
    """Of images, of the vision tower and of the text side."""
    vision, text = config.vision, config.text
    height, width = vision.pixels
    return {
        "images": f"{height} x {width} pixels, patches of {vision.patch_size}",
        "vision tower": f"{vision.width} wide, {vision.depth} deep, {vision.num_heads} heads",
        "text": f"{text.width} wide, {text.depth} deep, {text.num_heads} heads, up to {text.max_positions} tokens",
    }
