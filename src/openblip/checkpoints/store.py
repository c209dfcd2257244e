"""Models on disk: our own folder (config.json, model.safetensors, tokenizer), and opening what others wrote.

save_model(folder, model, tokenizer, info={...})
stored = open_model(folder_or_file)          # .model, .tokenizer, .info
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import openblip
from openblip.checkpoints.blip import PUBLISHED_WIDTHS, config_from_state, load_blip_state, read_notes
from openblip.checkpoints.card import model_card
from openblip.checkpoints.hf import Like, config_from_transformers, load_transformers_state
from openblip.checkpoints.hub import locate
from openblip.checkpoints.recognise import AnyConfig, describe, format_of
from openblip.checkpoints.state import Checkpoint, read_checkpoint, read_state
from openblip.core.config import from_dict, to_dict
from openblip.core.errors import UserError, about, nearest
from openblip.core.files import write_folder, write_json, write_tensors, write_text
from openblip.core.places import description_file, nested_model
from openblip.core.text import read_json
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.dual import BlipDual, DualConfig
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.models.vision import interpolate_positions
from openblip.models.vqa import BlipVqa, VqaConfig

__all__ = ["AnyModel", "StoredModel", "open_model", "read_state", "save_model", "unique_state"]

FORMAT, BLIP2 = "openblip", "blip2"
WEIGHTS = "model.safetensors"
PUBLISHED_TOKENIZER = "bert-base-uncased"


AnyModel = Blip | BlipVqa | BlipNlvr | BlipDual
_KINDS: dict[type, tuple[str, type]] = {
    BlipConfig: ("blip", Blip),
    VqaConfig: ("blip-vqa", BlipVqa),
    NlvrConfig: ("blip-nlvr", BlipNlvr),
    DualConfig: ("blip-dual", BlipDual),
}
"""for each configuration its name in config.json, and its model"""


@dataclass
class StoredModel:
    """A model as it was found on disk."""

    model: Any
    """a `Blip`, `BlipVqa`, `BlipNlvr` or `BlipDual`, in evaluation mode, on the CPU, float32"""
    tokenizer: TextTokenizer
    info: dict[str, Any] = field(default_factory=dict)
    """what the writer told: task, prompt, how it was trained"""
    ignored: list[str] = field(default_factory=list)
    """keys of the file that were known and not needed"""

    @property
    def blip(self) -> Blip:
        """The model, where it captions or matches; other kinds are refused in one sentence."""
        if not isinstance(self.model, Blip):
            raise UserError(f"this is {describe(self.model.config)}; a BLIP captioning or matching model is needed")
        return self.model


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with every shared tensor once, under its first name."""
    names = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    return {key: value for key, value in module.state_dict().items() if key in names}


def save_model(
    folder: Path | str, model: AnyModel, tokenizer: TextTokenizer, info: dict[str, Any] | None = None
) -> None:
    """Write a model folder; a folder already there is replaced once the new one is complete."""
    with write_folder(folder) as target:
        state = {key: value.detach().cpu().contiguous() for key, value in unique_state(model).items()}
        write_tensors(target / WEIGHTS, state)
        description = {
            "format": FORMAT,
            "openblip_version": openblip.__version__,
            "model_type": _KINDS[type(model.config)][0],
            "model": to_dict(model.config),
            "info": info or {},
        }
        write_json(target / "config.json", description)
        write_text(target / "README.md", model_card(model.config, info or {}))
        tokenizer.save(target)


def open_model(
    source: Path | str,
    *,
    tokenizer: TextTokenizer | str | None = None,
    image_size: int | tuple[int, int] | None = None,
    like: Like = "reference",
    vision: str | None = None,
    language: str | None = None,
    heads: Sequence[int] = (),
) -> StoredModel:
    """Open a model whoever wrote it; its keys say what it is. A BLIP-2 model is a `blip2_store.StoredBlip2`.

    Args:
        source: a folder of ours or of transformers, a checkpoint of the original repository or of LAVIS (.pth,
            .pt, .safetensors), or a name on the Hugging Face hub.
        tokenizer: for files that bring none; None takes BERT's, which the published models use.
        image_size: pixels to use the model at, one number or height and width; position embeddings are
            interpolated.
        like: for models of transformers: "transformers" computes as it does where it departs from the original.
        vision: for BLIP-2, where the frozen tower is, if not where the model says; `language` likewise.
        heads: of attention, for files of the original or LAVIS with sizes of one's own, which do not tell it: one
            number, or the vision tower's and the text transformer's (the Q-Former's).

    Raises:
        UserError: there is nothing at `source`, it is damaged, or it is of another model.
    """
    path = locate(source)
    with about(source, path):
        if path.is_dir():
            description = _read_description(path)
            if description.get("model_type") in (BLIP2, "blip-2"):
                return _open_blip2(path, description, str(source), tokenizer, image_size, vision, language)
            if description.get("format") == FORMAT:
                return _open_own(path, description, image_size, tokenizer)
            return _open_transformers(path, description, str(source), tokenizer, image_size, like)
        found = read_checkpoint(path)
        state = found.state
        if "query_tokens" in state and any(key.startswith("Qformer.") for key in state):
            from openblip.checkpoints.blip2_store import open_lavis

            words = tokenizer or PUBLISHED_TOKENIZER
            frozen = {"vision": vision, "language": language}
            return open_lavis(path, state, tokenizer=words, heads=heads, notes=found.notes, **frozen)
        if format_of(state, path.name) == "transformers":
            raise UserError(f"{path} holds the weights of a transformers model; give its folder, with config.json")
        return _open_original(path, found, tokenizer, image_size, heads)


def _open_blip2(
    folder: Path,
    description: dict[str, Any],
    name: str,
    tokenizer: TextTokenizer | str | None,
    image_size: int | tuple[int, int] | None,
    vision: str | None,
    language: str | None,
) -> StoredModel:
    """A folder of ours, or of one of transformers' BLIP-2 classes."""
    # They import this module for what is common; and whoever opens a BLIP does not need them.
    from openblip.checkpoints.blip2_hf import open_transformers_blip2
    from openblip.checkpoints.blip2_store import open_own_blip2

    if description.get("format") == FORMAT:
        if image_size is not None:
            raise UserError(f"{folder} is a BLIP-2 model; its frozen vision tower says the image_size")
        return open_own_blip2(folder, description, tokenizer=tokenizer, vision=vision, language=language)
    if isinstance(image_size, tuple):
        raise UserError(f"{name} takes square images: give image_size one number")
    state = _read_folder(folder)
    return open_transformers_blip2(
        folder, description, state, name=name, tokenizer=tokenizer, image_size=image_size
    )


def _open_original(
    path: Path,
    found: Checkpoint,
    tokenizer: TextTokenizer | str | None,
    image_size: int | tuple[int, int] | None,
    heads: Sequence[int],
) -> StoredModel:
    told = read_notes(found.notes)
    vision_heads, text_heads = (heads[0], heads[-1]) if heads else (told.vision_heads, told.text_heads)
    config = config_from_state(
        found.state,
        num_vision_heads=vision_heads,
        num_text_heads=text_heads,
        image_size=image_size or told.image_size,
        source=path.name,
    )
    model = _empty_model(config)
    patch = config.vision.patch_size
    # Of sides that differ the count of positions does not tell which is which.
    grid = None if told.image_size is None else (told.image_size[0] // patch, told.image_size[1] // patch)
    ignored = load_blip_state(
        model, found.state, source_grid=grid, source=f"{path.name} (by its keys {describe(config)})"
    )
    words = _tokenizer(tokenizer or PUBLISHED_TOKENIZER, config, path.name)
    info: dict[str, Any] = {"source": path.name, "source_format": "blip"}
    if vision_heads is None and not {config.vision.width, config.text.width} <= PUBLISHED_WIDTHS:
        info["heads"] = "taken as 64 channels each: the file does not say (--heads)"
    return StoredModel(model.eval(), words, info, ignored)


def _open_transformers(
    folder: Path,
    description: dict[str, Any],
    name: str,
    tokenizer: TextTokenizer | str | None,
    image_size: int | tuple[int, int] | None,
    like: Like,
) -> StoredModel:
    kind = description.get("model_type", "unknown")
    if kind != "blip":
        hint = nested_model(folder)
        raise UserError(f'{name} is a model of another kind: its config.json says "{kind}", not "blip"{hint}')
    state = _read_folder(folder)
    if format_of(state, name) != "transformers":
        raise UserError(f"{name} has a config.json of transformers, but weights with other names")
    config = config_from_transformers(description, state, like)
    if image_size is not None:
        config = replace(config, vision=replace(config.vision, image_size=image_size))
    model = _empty_model(config)
    ignored = load_transformers_state(
        model,
        state,
        source=f"{name} (by its keys {describe(config)})",
        temperature=description.get("itc_temperature"),
    )
    words = _tokenizer(tokenizer or folder, config, name)
    info = {"source": name, "source_format": "transformers", "like": like}
    return StoredModel(model.eval(), words, info, ignored)


def _tokenizer(given: TextTokenizer | Path | str, config: AnyConfig, name: str) -> TextTokenizer:
    words = given if isinstance(given, TextTokenizer) else TextTokenizer.load(given)
    if words.vocab_size != config.text.vocab_size:
        raise UserError(
            f"{name} was trained with {config.text.vocab_size} tokens, the tokenizer has {words.vocab_size}; "
            "name the tokenizer it was trained with"
        )
    return words


def _empty_model(config: AnyConfig) -> Any:
    """A model on the meta device: weights that are about to be replaced are not drawn first."""
    with torch.device("meta"):
        return _KINDS[type(config)][1](config)


def _read_description(folder: Path) -> dict[str, Any]:
    file = description_file(folder)
    description = read_json(file)
    if not isinstance(description, dict):
        raise UserError(f"{file} is no description of a model")
    for name in ("info", "frozen"):
        if not isinstance(description.get(name, {}), dict):
            raise UserError(f'{file} is damaged: its "{name}" is {description[name]!r:.80}, not a table')
    if not isinstance(description.get("itc_temperature", 1.0), int | float):
        raise UserError(f'{file} is damaged: its "itc_temperature" is no number')
    return description


def _open_own(
    folder: Path,
    description: dict[str, Any],
    image_size: int | tuple[int, int] | None,
    tokenizer: TextTokenizer | str | None,
) -> StoredModel:
    weights, kind = folder / WEIGHTS, str(description.get("model_type"))
    config_class = next((own for own, (name, _) in _KINDS.items() if name == kind), None)
    if config_class is None:
        known = [name for name, _ in _KINDS.values()]
        raise UserError(f'{folder} holds a model of the unknown type "{kind}"{nearest(kind, known)}')
    if not weights.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; the model was not saved whole")
    config: Any = from_dict(config_class, description.get("model"), where="model")
    source_grid = config.vision.grid
    if image_size is not None:
        config = replace(config, vision=replace(config.vision, image_size=image_size))
    model = _empty_model(config)
    state = read_state(weights)
    positions = "vision.vit.pos_embed"
    if positions in state and image_size is not None:
        state[positions] = interpolate_positions(state[positions], config.vision.grid, source_grid)
    expected = unique_state(model)
    missing, left = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or left:
        what = f'lacks "{missing[0]}"' if missing else f'has the unexpected "{left[0]}"'
        raise UserError(f"{weights} does not fit its config.json: it {what}")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise UserError(f'{weights}: "{key}" has shape {tuple(state[key].shape)}, not {tuple(value.shape)}')
    model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False, assign=True)
    words = TextTokenizer.load(folder) if tokenizer is None else _tokenizer(tokenizer, config, folder.name)
    return StoredModel(model.eval(), words, description.get("info", {}))


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a transformers folder, from one file or several."""
    for name in (WEIGHTS, "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_state(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = read_json(index)
            names = names.get("weight_map") if isinstance(names, dict) else None
            if not isinstance(names, dict) or not all(isinstance(part, str) for part in names.values()):
                raise UserError(f'{index} is damaged: it has no "weight_map" of tensors and files')
            parts = sorted(set(names.values()))
            missing = [part for part in parts if not (folder / part).is_file()]
            if missing:
                raise UserError(f"{folder} has no {missing[0]}, which its {index.name} names; fetch it again")
            return {key: value for part in parts for key, value in read_state(folder / part).items()}
    raise UserError(f"{folder} has neither {WEIGHTS} nor pytorch_model.bin; the model was not saved whole")
