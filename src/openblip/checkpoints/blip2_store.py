"""BLIP-2 models on disk: what is trained, and by name and fingerprint what is frozen.

    save_blip2(folder, stored)                   # the trained part; whole=True: the frozen parts too
    stored = open_model(folder)                  # a StoredBlip2

`checkpoints.store` hands over here whatever turns out to be a BLIP-2 model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import openblip
from openblip.checkpoints.blip import heads_of, read_notes
from openblip.checkpoints.blip2 import load_lavis_state, qformer_from_state
from openblip.checkpoints.blip2_parts import (
    as_language,
    as_tower,
    build_blip2,
    fingerprints,
    open_language,
    open_language_tokenizer,
    open_tower,
)
from openblip.checkpoints.card import model_card
from openblip.checkpoints.state import read_state
from openblip.checkpoints.store import BLIP2, FORMAT, WEIGHTS, StoredModel, unique_state
from openblip.core.config import from_dict, to_dict
from openblip.core.errors import UserError
from openblip.core.files import write_folder, write_json, write_tensors, write_text
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.language import LanguageConfig
from openblip.models.tower import TowerConfig
from openblip.models.vision import VisionConfig, VisionEncoder

__all__ = ["StoredBlip2", "open_lavis", "open_own_blip2", "save_blip2"]


@dataclass
class StoredBlip2(StoredModel):
    """A BLIP-2 model as it was found on disk; `model` is a `Blip2`."""

    tokenizer: TextTokenizer | None  # type: ignore[assignment]
    """of the Q-Former's text side; None where it has none"""
    language_tokenizer: LanguageTokenizer | None = None
    """of the language model; None in stage 1"""


def save_blip2(folder: Path | str, stored: StoredBlip2, *, whole: bool = False) -> None:
    """Write a model folder; a folder already there is replaced once the new one is complete.

    Args:
        whole: with the frozen parts, so that the folder needs nothing else.
    """
    model: Blip2 = stored.model
    with write_folder(folder) as target:
        config, named = model.config, unique_state(model)
        frozen = model.frozen_parameter_names()
        if whole or config.vision.kind == "own":
            config = replace(config, vision=_whole_vision(model, target))
            if config.vision.kind != "hf":
                frozen = {name for name in frozen if not name.startswith("vision.")}
        if whole and model.language is not None:
            assert stored.language_tokenizer is not None
            if model.language.config.quantize != "none":
                raise UserError("a language model in fewer bits is not written whole; leave the frozen parts out")
            hf, weights = model.language.plain(merged=False)  # what LoRA has learned is trained, and in our file
            # False: in its own names, even if it was read out of a BLIP-2 folder.
            hf.save_pretrained(target / "language", state_dict=weights, save_original_format=False)
            stored.language_tokenizer.save(target / "language")
            config = replace(config, language=replace(model.language.config, source="./language"))
        kept = {
            name: value.detach().cpu().contiguous()
            for name, value in named.items()
            if name not in frozen and (not name.startswith("language.") or _is_trained(model, name))
        }
        write_tensors(target / WEIGHTS, kept)
        description = {
            "format": FORMAT,
            "openblip_version": openblip.__version__,
            "model_type": BLIP2,
            "model": to_dict(config),
            "frozen": fingerprints(model),
            "info": stored.info,
        }
        write_json(target / "config.json", description)
        write_text(target / "README.md", model_card(config, stored.info))
        if stored.tokenizer is not None:
            stored.tokenizer.save(target)


def _is_trained(model: Blip2, name: str) -> bool:
    """Buffers of a language model come with it; LoRA's matrices are ours."""
    return name in dict(model.named_parameters())


def _whole_vision(model: Blip2, target: Path) -> TowerConfig:
    """A configuration by which the tower is built from the folder alone."""
    config, encoder = model.config.vision, model.vision.encoder
    if config.kind == "hf":
        hf: Any = encoder.model
        hf.save_pretrained(target / "vision")
        return replace(config, source="hf:./vision")
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


def open_own_blip2(
    folder: Path,
    description: Mapping[str, Any],
    *,
    tokenizer: TextTokenizer | str | None = None,
    vision: str | None = None,
    language: str | None = None,
) -> StoredBlip2:
    """Open a folder that `save_blip2` wrote.

    Args:
        tokenizer: of the Q-Former's text side, if not the folder's.
        vision: where the frozen tower is now, if not where it was; `language` likewise.

    Raises:
        UserError: the file is incomplete, a frozen part is not to be had or is not the one it was trained with.
    """
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; the model was not saved whole")
    config = from_dict(Blip2Config, description.get("model"), where="model")
    if vision is not None:
        config = replace(
            config, vision=replace(as_tower(vision, config.vision), drop_layers=config.vision.drop_layers)
        )
    if language is not None and config.language is not None:
        config = replace(config, language=as_language(language, config.language))
    state = read_state(weights)
    in_file = any(name.startswith("vision.") for name in state)
    tower = open_tower(config.vision, base=folder, pretrained=not in_file)
    llm = None if config.language is None else open_language(config.language, base=folder)
    model = build_blip2(config, vision=tower, language=llm, device="meta")
    _fill(model, state, weights)
    _check_frozen(model, description.get("frozen", {}), folder)
    read: TextTokenizer | None = None
    if config.qformer.vocab_size is not None:
        read = tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer.load(tokenizer or folder)
        if tokenizer is not None:
            _check_words(read, config.qformer.vocab_size, folder)
    words = None if config.language is None else open_language_tokenizer(config.language, base=folder)
    return StoredBlip2(model.eval(), read, dict(description.get("info", {})), [], words)


def _fill(model: Blip2, state: dict[str, Tensor], weights: Path) -> None:
    """Load what the folder holds, which must be all that has no numbers yet."""
    expected = unique_state(model)
    left = sorted(set(state) - set(expected))
    missing = sorted(name for name, value in expected.items() if name not in state and value.is_meta)
    if missing or left:
        what = f'lacks "{missing[0]}"' if missing else f'has the unexpected "{left[0]}"'
        raise UserError(f"{weights} does not fit its config.json: it {what}")
    for name, value in state.items():
        if expected[name].shape != value.shape:
            raise UserError(
                f'{weights}: "{name}" has shape {tuple(value.shape)}, not {tuple(expected[name].shape)}'
            )
    frozen = model.frozen_parameter_names()
    numbers = {name: value if name in frozen else value.float() for name, value in state.items()}
    model.load_state_dict(numbers, strict=False, assign=True)


def _check_frozen(model: Blip2, known: Mapping[str, Any], folder: Path) -> None:
    """Refuse frozen parts that are not those the rest was trained with."""
    for name, found in fingerprints(model).items():
        wanted = known.get(name, {}).get("fingerprint")
        if wanted is not None and wanted != found["fingerprint"]:
            part = "vision tower" if name == "vision" else "language model"
            raise UserError(
                f"the {part} from {found['source']} is not the one that {folder} was trained with "
                f"({known[name]['source']}): its weights differ; name the right one with {name}=..."
            )


_VISION_OF_WIDTH = {
    1408: TowerConfig(),
    1024: TowerConfig(source="timm:vit_large_patch14_clip_quickgelu_224.openai"),
}
"""the published models' towers by their width: EVA-CLIP ViT-g/14 and CLIP ViT-L/14"""
_LANGUAGE_OF_WIDTH = {
    ("opt_proj", 2560): LanguageConfig(source="facebook/opt-2.7b", end="\n"),
    ("opt_proj", 4096): LanguageConfig(source="facebook/opt-6.7b", end="\n"),
    ("t5_proj", 2048): LanguageConfig(source="google/flan-t5-xl", dtype="bfloat16"),
    ("t5_proj", 4096): LanguageConfig(source="google/flan-t5-xxl", dtype="bfloat16"),
}


def open_lavis(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    tokenizer: TextTokenizer | str,
    vision: str | None = None,
    language: str | None = None,
    heads: Sequence[int] = (),
    notes: Mapping[str, Any] | None = None,
) -> StoredBlip2:
    """Open a BLIP-2 checkpoint of LAVIS, stage 1 or stage 2; frozen parts come from their own sources.

    Args:
        tokenizer: of the Q-Former's text side.
        vision: None takes the published tower of the checkpoint's width; `language` likewise.
        heads: of attention, one number or the tower's and the Q-Former's; left out, what the file tells, or else
            that of the published models.
        notes: what our export wrote beside the tensors.

    Raises:
        UserError: no published part has the width, and none is named; the file is incomplete.
    """
    told = read_notes(notes or {})
    qformer = qformer_from_state(state, num_heads=heads[-1] if heads else told.text_heads, source=path.name)
    matches = "itm_head.weight" in state and qformer.vocab_size is not None
    config = Blip2Config(
        vision=_lavis_vision(state, vision, qformer.memory_width, path, heads[0] if heads else None),
        qformer=qformer if matches else replace(qformer, vocab_size=None, writes=False),
        matches=matches,
        embed_dim=state["vision_proj.weight"].shape[0] if matches else 256,
        language=_lavis_language(state, language, path),
    )
    model = build_blip2(config)
    ignored = load_lavis_state(model, state, source=path.name)
    words: TextTokenizer | None = None
    if matches:
        words = tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer.load(tokenizer)
        _check_words(words, qformer.vocab_size, path)
    llm = None if config.language is None else open_language_tokenizer(config.language)
    info = {"source": path.name, "source_format": "lavis"}
    return StoredBlip2(model.eval(), words, info, ignored, llm)


def _check_words(words: TextTokenizer, vocab_size: int | None, path: Path) -> None:
    # LAVIS adds [DEC] to BERT's 30,522 pieces and no [ENC], which ours adds after it.
    if vocab_size is not None and not vocab_size <= words.vocab_size <= vocab_size + 1:
        raise UserError(
            f"{path.name} was trained with {vocab_size} tokens, the tokenizer has {words.vocab_size}; "
            "name the tokenizer it was trained with"
        )


def _lavis_vision(
    state: Mapping[str, Tensor], named: str | None, width: int, path: Path, heads: int | None = None
) -> TowerConfig:
    if named is not None:
        return as_tower(named)
    if "visual_encoder.pos_embed" in state:  # fine-tuned files hold the tower as well
        first = state["visual_encoder.patch_embed.proj.weight"]
        blocks = {key.split(".")[2] for key in state if key.startswith("visual_encoder.blocks.")}
        side = round((state["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5) * first.shape[-1]
        own = VisionConfig(
            image_size=side,
            patch_size=first.shape[-1],
            width=width,
            depth=len(blocks),
            num_heads=heads or (16 if width == 1408 else heads_of(width, "vision tower", path.name)),
            mlp_ratio=state["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0] / width,
            final_norm=False,
        )
        return TowerConfig(source="own", own=own, drop_layers=0)
    if width not in _VISION_OF_WIDTH:
        raise UserError(
            f"{path.name} was trained over a vision tower {width} wide, which none of the published ones is; "
            'name it: vision="timm:NAME"'
        )
    return _VISION_OF_WIDTH[width]


def _lavis_language(state: Mapping[str, Tensor], named: str | None, path: Path) -> LanguageConfig | None:
    kind = next((name for name in ("opt_proj", "t5_proj", "llm_proj") if f"{name}.weight" in state), None)
    if kind is None:
        return None
    width = state[f"{kind}.weight"].shape[0]
    like = _LANGUAGE_OF_WIDTH.get((kind, width))
    if named is not None:
        return as_language(named, LanguageConfig(end="\n") if kind == "opt_proj" else like)
    if like is None:
        raise UserError(
            f"{path.name} was trained with a language model {width} wide, which none of the published ones is; "
            'name it: language="FOLDER or hub name"'
        )
    return like
