"""A stored model in its sizes, on the device "meta": what is predicted of it reads no weights into memory.

Sizes are in a folder's config.json, in the names and shapes at the head of safetensors files, or in a mapped file
of the original, whose values nobody touches.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from openblip.checkpoints import blip_hf
from openblip.checkpoints.blip import config_from_state
from openblip.checkpoints.blip2_hf import TOKENIZER, config_from_transformers_blip2
from openblip.checkpoints.blip2_parts import place_of_part
from openblip.checkpoints.notes import read_notes
from openblip.checkpoints.recognise import INSTRUCT, KINDS, family_of
from openblip.checkpoints.state import Found, find, read_folder
from openblip.checkpoints.stored import StoredModel
from openblip.core.config import from_dict
from openblip.core.errors import UserError, about
from openblip.core.meta import on_meta
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.language import FrozenLanguage
from openblip.models.language_sizes import language_of_size
from openblip.models.tower import make_tower

__all__ = ["outline"]


def outline(source: Path | str, *, image_size: int | None = None) -> StoredModel:
    """The model at `source` without values; its tokenizer is None where the folder holds none.

    Raises:
        UserError: there is nothing at `source`, or its sizes cannot be told without its weights.
    """
    found = find(source)
    with about(source, found.path):
        family = family_of(found)
        model = _blip(found, image_size) if family == "blip" else _blip2(found)
        info = dict(found.description.get("info", {}))
        place, files = found.path, ["vocab.txt"]
        if not found.own:
            info = {"source_format": "blip" if found.file is not None else "transformers"}
            if found.description.get("model_type") == INSTRUCT:
                info["reads_prompts"], place = True, place / TOKENIZER
                files.append("tokenizer.json")  # in the folder itself that would be the language model's
        holds_one = found.file is None and any((place / name).is_file() for name in files)
        tokenizer = TextTokenizer.load(place) if holds_one else None
        return StoredModel(model, tokenizer, info)


def _blip(found: Found, image_size: int | None) -> Any:
    if found.file is not None:
        notes = read_notes(found.file.notes)
        config = config_from_state(
            found.file.state,
            num_vision_heads=notes.vision_heads,
            num_text_heads=notes.text_heads,
            image_size=image_size or notes.image_size,
            vision_eps=notes.vision_eps,
            text_eps=notes.text_eps,
            source=found.path.name,
        )
    elif found.own:
        kinds = {kind.name: config_class for config_class, kind in KINDS.items()}
        config = from_dict(kinds[found.description["model_type"]], found.description.get("model"), where="model")
    else:
        config = blip_hf.config_from_transformers(found.description, _shapes(found.path), "reference")
    if image_size is not None:
        config = replace(config, vision=replace(config.vision, image_size=image_size))
    with on_meta():
        return KINDS[type(config)].model(config)


def _blip2(found: Found) -> Blip2:
    if found.file is not None:
        raise UserError(
            f"{found.path} is a file of LAVIS, which tells no sizes of its frozen parts; openblip convert writes a "
            "folder that does"
        )
    if not found.own:
        config, theirs = config_from_transformers_blip2(found.description, _shapes(found.path), found.path)
    else:
        config, theirs = from_dict(Blip2Config, found.description.get("model"), where="model"), None
    language: FrozenLanguage | None = None
    with on_meta():
        before, path = config.vision.place
        vision = replace(config.vision, source=before + place_of_part(path, found.path)) if path else config.vision
        blip_vision = (
            outline(vision.name, image_size=vision.image_size).model.vision if vision.kind == "openblip" else None
        )
        tower = make_tower(vision, pretrained=False, blip_vision=blip_vision)
        if config.language is not None:
            own = replace(config.language, source=place_of_part(config.language.source, found.path))
            plain = language_of_size(own.source) if theirs is None else _of_config(theirs.text_config)
            language = FrozenLanguage(plain, own)
        return Blip2(config, tower, language).eval()


def _of_config(described: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto: Any = AutoModelForSeq2SeqLM if described.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(described)


def _shapes(folder: Path) -> dict[str, Tensor]:
    """Tensors without values by the names and shapes at the heads of a folder's safetensors files."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        return read_folder(folder)  # torch's own files are mapped
    shapes: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                shapes[name] = torch.empty(opened.get_slice(name).get_shape(), device="meta")
    return shapes
