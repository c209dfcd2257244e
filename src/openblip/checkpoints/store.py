"""Models on disk: our own folder (config.json, model.safetensors, tokenizer), and opening what others wrote.

    save_model(folder, model, tokenizer, info={...})
    stored = open_model(folder_or_file)          # .model, .tokenizer, .info

Nothing is unpickled but plain tensors: `.pth` files are read with torch's `weights_only`.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import openblip
from openblip.checkpoints.blip import config_from_state, load_blip_state
from openblip.core.config import from_dict, to_dict
from openblip.core.errors import UserError
from openblip.core.files import write_folder, write_json
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.vision import interpolate_positions

__all__ = ["StoredModel", "open_model", "read_state", "save_model", "unique_state"]

FORMAT = "openblip"
WEIGHTS = "model.safetensors"
PUBLISHED_TOKENIZER = "bert-base-uncased"


@dataclass
class StoredModel:
    """A model as it was found on disk."""

    model: Blip
    """in evaluation mode, on the CPU, float32"""
    tokenizer: TextTokenizer
    info: dict[str, Any] = field(default_factory=dict)
    """what the writer told: task, prompt, how it was trained"""
    ignored: list[str] = field(default_factory=list)
    """keys of the file that were known and not needed"""


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with every shared tensor once, under its first name."""
    names = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    return {key: value for key, value in module.state_dict().items() if key in names}


def save_model(
    folder: Path | str, model: Blip, tokenizer: TextTokenizer, info: dict[str, Any] | None = None
) -> None:
    """Write a model folder; a folder already there is replaced once the new one is complete."""
    with write_folder(folder) as target:
        state = {key: value.detach().cpu().contiguous() for key, value in unique_state(model).items()}
        save_file(state, target / WEIGHTS, metadata={"format": "pt"})
        description = {
            "format": FORMAT,
            "openblip_version": openblip.__version__,
            "model_type": "blip",
            "model": to_dict(model.config),
            "info": info or {},
        }
        write_json(target / "config.json", description)
        tokenizer.save(target)


def open_model(
    source: Path | str, *, tokenizer: TextTokenizer | str | None = None, image_size: int | None = None
) -> StoredModel:
    """Open a model folder of ours, or an original BLIP checkpoint file (.pth, .pt, .safetensors).

    Args:
        tokenizer: for files that bring none; None takes BERT's, which the published models use.
        image_size: pixels to use the model at; position embeddings are interpolated.

    Raises:
        UserError: there is nothing at `source`, it is damaged, or it is of another model.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"there is no model at {path}; give a model's folder or a checkpoint file")
    if path.is_dir():
        return _open_folder(path, image_size)
    state = read_state(path)
    config = config_from_state(state, image_size=image_size)
    model = Blip(config)
    ignored = load_blip_state(model, state, source=path.name)
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = TextTokenizer.load(tokenizer or PUBLISHED_TOKENIZER)
    if tokenizer.vocab_size != config.text.vocab_size:
        raise UserError(
            f"{path.name} was trained with {config.text.vocab_size} tokens, the tokenizer has "
            f"{tokenizer.vocab_size}; "
            "name the tokenizer it was trained with"
        )
    return StoredModel(model.eval(), tokenizer, {"source": path.name}, ignored)


def _open_folder(folder: Path, image_size: int | None) -> StoredModel:
    description_file, weights = folder / "config.json", folder / WEIGHTS
    if not description_file.is_file():
        nested = folder / "model" / "config.json"
        hint = f"; did you mean {nested.parent}?" if nested.is_file() else ""
        raise UserError(f"{folder} is no model folder: it has no config.json{hint}")
    try:
        description = json.loads(description_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{description_file} is damaged: {error}") from error
    if description.get("format") != FORMAT:
        raise UserError(f"{folder} is a model of another format ({description.get('model_type', 'unknown')})")
    if not weights.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; the model was not saved whole")
    config = from_dict(BlipConfig, description["model"], where="model")
    if image_size is not None:
        config = replace(config, vision=replace(config.vision, image_size=image_size))
    model = Blip(config)
    state = read_state(weights)
    positions = "vision.vit.pos_embed"
    if positions in state:
        state[positions] = interpolate_positions(state[positions], model.vision.vit.patch_embed.grid_size)
    expected = unique_state(model)
    missing, left = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or left:
        what = f'lacks "{missing[0]}"' if missing else f'has the unexpected "{left[0]}"'
        raise UserError(f"{weights} does not fit its config.json: it {what}")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise UserError(f'{weights}: "{key}" has shape {tuple(state[key].shape)}, not {tuple(value.shape)}')
    model.load_state_dict(state, strict=False)
    return StoredModel(model.eval(), TextTokenizer.load(folder), description.get("info", {}))


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pth or .pt file without executing anything in it.

    Raises:
        UserError: the file is cut short, holds more than tensors, or is of another kind.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or cut short: {error}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors and was not opened; it could run code") from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged, cut short, or no checkpoint: {error}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path} holds no state dict of tensors")
    return loaded
