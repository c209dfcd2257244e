"""BLIP-2 models on disk: what is trained, and by name and fingerprint what is frozen.

`store` hands over here whatever is of this family; the formats of others are in `blip2` (LAVIS), `blip2_hf` and
`blip2_hf_write`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from openblip.checkpoints.blip2 import lavis_entries, open_lavis
from openblip.checkpoints.blip2_hf import open_transformers_blip2
from openblip.checkpoints.blip2_hf_write import write_transformers
from openblip.checkpoints.blip2_parts import (
    build_blip2,
    fingerprints,
    language_with_options,
    open_language,
    open_language_tokenizer,
    open_tokenizer,
    open_tower,
    resize_vision,
)
from openblip.checkpoints.state import WEIGHTS, Found, read_state
from openblip.checkpoints.stored import (
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
from openblip.core.files import saving_tensors
from openblip.models import tower_hf, tower_timm
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import QFormerConfig, TowerConfig, as_language, as_tower
from openblip.models.tower_hf import TransformersEncoder
from openblip.models.tower_timm import TimmEncoder
from openblip.models.vision import VisionEncoder

__all__ = ["facts", "open_found", "original_entries", "pack", "sizes", "take_part", "write_transformers"]


def open_found(found: Found, options: Options) -> StoredModel:
    """Open a BLIP-2 model in whichever format it is.

    Raises:
        UserError: the file is incomplete, a frozen part is not to be had or is not the one it was trained with.
    """
    if found.file is not None:
        return open_lavis(found.path, found.file, options)
    return _open_own(found, options) if found.own else open_transformers_blip2(found, options)


def _open_own(found: Found, options: Options) -> StoredModel:
    folder, description = found.path, found.description
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; the model was not saved whole")
    config = from_dict(Blip2Config, description.get("model"), where="model")
    if options.vision is not None:
        tower = replace(as_tower(options.vision, config.vision), drop_layers=config.vision.drop_layers)
        config = replace(config, vision=tower)
    if options.language is not None and config.language is not None:
        config = replace(config, language=as_language(options.language, config.language))
    stored_as = config.language
    if stored_as is None or options.quantize in ("none", stored_as.quantize):
        options = replace(options, language_dtype=None)  # it is compared with what was noted, and moved afterwards
    config = replace(config, language=language_with_options(stored_as, options))
    state = read_state(weights)
    in_file = any(name.startswith("vision.") for name in state)
    vision = open_tower(config.vision, base=folder, pretrained=not in_file)
    language = None if config.language is None else open_language(config.language, base=folder)
    model = build_blip2(config, vision=vision, language=language, drawn=False)
    fill(model, state, weights, as_stored=_frozen_names(model))
    # Quantized matrices are not those that were noted.
    parts = ("vision", "language") if config.language == stored_as else ("vision",)
    _check_frozen(model, description.get("frozen", {}), folder, parts)
    if options.image_size is not None:
        resize_vision(model, options.image_size, base=folder, kept=in_file)
    return StoredModel(
        model,
        open_tokenizer(config, options.tokenizer or folder, named=folder.name if options.tokenizer else None),
        dict(description.get("info", {})),
        [],
        None if config.language is None else open_language_tokenizer(config.language, base=folder),
    )


def _check_frozen(model: Blip2, known: Mapping[str, Any], folder: Path, parts: Collection[str]) -> None:
    """Refuse frozen parts that are not those the rest was trained with."""
    for name, found in fingerprints(model, parts).items():
        wanted = known.get(name, {}).get("fingerprint")
        if wanted is not None and wanted != found["fingerprint"]:
            part = "vision tower" if name == "vision" else "language model"
            raise UserError(
                f"the {part} from {found['source']} is not the one that {folder} was trained with "
                f"({known[name]['source']}): its weights differ; name the right one with {name}=..."
            )


def pack(stored: StoredModel, folder: Path, *, whole: bool) -> Packed:
    """The trained part and the names of the frozen ones; `whole`: those too, in folders of their own if need be."""
    model: Blip2 = stored.model
    config, frozen = model.config, _frozen_names(model)
    if whole or config.vision.kind == "own":
        config = replace(config, vision=_whole_vision(model, folder))
    if whole or config.vision.kind == "own" or config.vision.trained:  # of a trained tower some parts may be frozen
        frozen = {name for name in frozen if not name.startswith("vision.")}
    if whole and model.language is not None:
        assert stored.language_tokenizer is not None
        if model.language.config.quantize != "none":
            raise UserError("a quantized language model is not written whole; leave the frozen parts out")
        hf, weights = model.language.plain(merged=False)  # what LoRA has learned is trained, and in our file
        # False: in its own names, even if it was read out of a BLIP-2 folder.
        with saving_tensors(folder / "language"):
            hf.save_pretrained(folder / "language", state_dict=weights, save_original_format=False)
        stored.language_tokenizer.save(folder / "language")
        config = replace(config, language=replace(model.language.config, source="./language"))
    kept = {
        name: value.detach().cpu().contiguous()
        for name, value in unique_state(model).items()
        if name not in frozen and (not name.startswith("language.") or _is_trained(model, name))
    }
    return Packed(config, kept, {"frozen": fingerprints(model)})


def _frozen_names(model: Blip2) -> set[str]:
    """Parameters that are not trained, and the buffers (BatchNorm's) that a frozen tower brings with them."""
    buffers = () if model.config.vision.trained else dict(model.named_buffers())
    return model.frozen_parameter_names() | {name for name in buffers if name.startswith("vision.")}


def _is_trained(model: Blip2, name: str) -> bool:
    """Buffers of a language model come with it; LoRA's matrices are ours."""
    return name in dict(model.named_parameters())


def _whole_vision(model: Blip2, target: Path) -> TowerConfig:
    """A configuration by which the tower is built from the folder alone; its weights are in the model's file."""
    config, encoder = model.config.vision, model.vision.encoder
    if isinstance(encoder, TransformersEncoder):
        tower = model.vision
        tower_hf.write_description(target / "vision", encoder, pixels=tower.pixels, mean=tower.mean, std=tower.std)
        return replace(config, source="hf:./vision")
    if isinstance(encoder, TimmEncoder):
        if tower_timm.write_description(target / "vision", encoder):
            return replace(config, source="timm:local-dir:./vision")
        return replace(config, source=config.place[0].removesuffix("@"))
    if isinstance(encoder, VisionEncoder):
        depth = len(encoder.vit.blocks)
        own = replace(
            encoder.config,
            depth=depth,
            final_norm=encoder.config.final_norm and depth == encoder.config.depth,
            pretrained=None,
        )
        return replace(config, source="own", own=own, drop_layers=0)
    return config


def take_part(stored: StoredModel, part: Part) -> StoredModel:
    """The model itself: only transformers' classes are of one part each, and `write_transformers` chooses it."""
    return stored


def original_entries(stored: StoredModel) -> dict[str, Any]:
    """What LAVIS would have written, the trained part and a tower that has no other source, and our notes.

    Raises:
        UserError: it has no such model.
    """
    return lavis_entries(stored)


def facts(stored: StoredModel) -> dict[str, Any]:
    """Parameters that are trained and those of each part, what is read of images, and frozen fingerprints."""
    model: Blip2 = stored.model
    tower, (rows, columns) = model.vision, model.vision.grid
    return {
        "images": {
            "pixels": list(tower.pixels),
            "patches": [rows, columns],
            "tokens": tower.first + rows * columns,
        },
        "trained_parameters": model.num_trained(),
        "parameters_by_part": {
            **{name: count_parameters(part) for name, part in model.named_children()},
            **{name: own.numel() for name, own in model.named_parameters(recurse=False)},
        },
        "frozen": fingerprints(model),
    }


def sizes(config: Any) -> dict[str, str]:
    """Of the Q-Former, and what the frozen parts are."""
    qformer: QFormerConfig = config.qformer
    described = {
        "vision tower": config.vision.source,
        "Q-Former": f"{qformer.num_queries} queries, {qformer.width} wide, {qformer.depth} deep, "
        f"{qformer.num_heads} heads",
    }
    return described if config.language is None else {**described, "language model": config.language.source}
