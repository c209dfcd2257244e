"""A model written in another's format: our folder, a transformers folder, or a file of the original repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from openblip.checkpoints.blip import rules_for, write_notes
from openblip.checkpoints.blip2 import lavis_state
from openblip.checkpoints.blip2_hf import write_transformers_blip2
from openblip.checkpoints.blip2_store import StoredBlip2, save_blip2
from openblip.checkpoints.card import model_card
from openblip.checkpoints.hf import write_transformers
from openblip.checkpoints.keymap import export_state
from openblip.checkpoints.state import NOTES
from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.errors import UserError
from openblip.core.files import atomic_path, write_folder, write_text
from openblip.models.dual import DualConfig

__all__ = ["Format", "Part", "convert_model", "original_state", "take_part"]

Format = Literal["openblip", "transformers", "blip"]
Part = Literal["caption", "match"]


def convert_model(stored: StoredModel, target: Path | str, *, to: Format, part: Part | None = None) -> Path:
    """Write `stored` at `target` in the format `to`; returns the path.

    Args:
        part: of a pre-training model, which holds both: the captioner or the matching model.

    Raises:
        UserError: the format has no place for such a model, or the disk is full.
    """
    target = Path(target)
    if isinstance(stored, StoredBlip2):
        return _convert_blip2(stored, target, to, part)
    if part is not None:
        stored = take_part(stored, part)
    if to == "blip":
        if target.suffix not in (".pth", ".pt"):
            raise UserError(f"the original format is one file: name it {target}.pth")
        state, config = original_state(stored.model), stored.model.config
        with atomic_path(target) as temporary:
            torch.save({"model": state, NOTES: write_notes(config.vision, config.text.num_heads)}, temporary)
    elif to == "transformers":
        with write_folder(target) as folder:
            write_transformers(folder, stored.model, stored.tokenizer)
            write_text(folder / "README.md", model_card(stored.model.config, stored.info, library="transformers"))
    else:
        save_model(target, stored.model, stored.tokenizer, stored.info)
    return target


def _convert_blip2(stored: StoredBlip2, target: Path, to: Format, part: Part | None) -> Path:
    if to == "blip":
        if target.suffix not in (".pth", ".pt"):
            raise UserError(f"LAVIS' format is one file: name it {target}.pth")
        notes = write_notes(None, stored.model.config.qformer.num_heads)
        with atomic_path(target) as temporary:
            torch.save({"model": lavis_state(stored.model), NOTES: notes}, temporary)
    elif to == "transformers":
        with write_folder(target) as folder:
            write_transformers_blip2(folder, stored, part=part)
            write_text(folder / "README.md", model_card(stored.model.config, stored.info, library="transformers"))
    else:
        save_blip2(target, stored, whole=True)
    return target


def take_part(stored: StoredModel, part: Part) -> StoredModel:
    """The captioner or the matching model in a pre-training model."""
    model = stored.blip.part(encoder=part == "match", decoder=part == "caption")
    return replace(stored, model=model.eval())


def original_state(model: Any) -> dict[str, Tensor]:
    """The state dict that the original repository would have written, tied tensors and index buffers included.

    Raises:
        UserError: it has no such model.
    """
    config = model.config
    if isinstance(config, DualConfig):
        raise UserError("the original repository has no two-tower model; convert it --to transformers or openblip")
    if config.vision.stem != "patch":
        raise UserError(
            'the original vision tower cuts images into patches by one convolution, this model has stem = "conv"; '
            "such a model cannot be exported"
        )
    state = {key: value.detach() for key, value in model.state_dict().items()}
    theirs = export_state(rules_for(config), state)
    for key in list(theirs):
        if key.endswith("embeddings.position_embeddings.weight"):
            positions = torch.arange(config.text.max_positions).expand(1, -1).clone()
            theirs[key.replace("position_embeddings.weight", "position_ids")] = positions
    return theirs
