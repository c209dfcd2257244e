"""transformers' folders of BLIP-2 and InstructBLIP: Blip2ForConditionalGeneration, Blip2Model,
Blip2ForImageTextRetrieval and InstructBlipForConditionalGeneration; `blip2_hf_write` writes these.

The trained part has LAVIS' names with other words for some, so the rules are those of `checkpoints.blip2` renamed.
The language model is transformers' own and goes over as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from openblip.checkpoints.blip import vision_rules
from openblip.checkpoints.blip2 import lavis_rules
from openblip.checkpoints.blip2_parts import (
    build_blip2,
    language_with_options,
    open_language,
    open_language_tokenizer,
    open_tokenizer,
)
from openblip.checkpoints.blip_hf import THEIR_EPS, rename_vision
from openblip.checkpoints.keymap import Rule, Sizes, import_state, resample_positions
from openblip.checkpoints.processor import read_pixels_as_ours
from openblip.checkpoints.recognise import INSTRUCT
from openblip.checkpoints.state import Found, read_folder
from openblip.checkpoints.stored import Like, Options, StoredModel
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.models.blip2 import TEMPERATURE, Blip2, Blip2Config
from openblip.models.configs import Chat, LanguageConfig, QFormerConfig, TowerConfig, VisionConfig
from openblip.models.opening import quietly
from openblip.models.tower import make_tower

__all__ = [
    "TOKENIZER",
    "config_from_transformers_blip2",
    "open_transformers_blip2",
    "transformers_rules",
]

_VISION = "vision.encoder.vit"
_POSITIONS = "vision_model.embeddings.position_embedding"
TOKENIZER = "qformer_tokenizer"
"""folder in one of InstructBLIP"""
_EMBEDDINGS = {
    False: (
        (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
        (r"^Qformer\.bert\.embeddings\.", "embeddings."),
    ),
    True: (
        (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.embeddings.layernorm."),
        (r"^Qformer\.bert\.embeddings\.", "qformer.embeddings."),
    ),
}
"""names that BLIP-2 (False) and InstructBLIP (True) have otherwise"""
_RENAMED = (
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"^(qformer\..*attention)\.self\.", r"\1.attention."),
    (r"^vision_proj\.", "vision_projection."),
    (r"^text_proj\.", "text_projection."),
    (r"^opt_proj\.", "language_projection."),
)


def _name(name: str, *, instruct: bool) -> str:
    for pattern, theirs in (*_EMBEDDINGS[instruct], *_RENAMED):
        name = re.sub(pattern, theirs, name)
    return name


def transformers_rules(model: Blip2, *, instruct: bool) -> list[Rule]:
    """Rules of all but the language model; the temperature has none.

    Args:
        instruct: for InstructBLIP's class.
    """
    name = partial(_name, instruct=instruct)
    rules = [rule for rule in lavis_rules(model) if rule.ours != "temperature"]
    own = model.config.vision.own
    assert own is not None
    vision = [
        replace(rule, theirs=tuple(map(rename_vision, rule.theirs)))
        for rule in vision_rules(own.depth, ours=_VISION)
        if not rule.ours.startswith(f"{_VISION}.norm.")
    ]
    return [replace(rule, theirs=tuple(map(name, rule.theirs)), copies=()) for rule in rules] + vision


# From transformers -----------------------------------------------------------------------------------------


def open_transformers_blip2(found: Found, options: Options) -> StoredModel:
    """Open a folder of one of the four classes; its config.json tells InstructBLIP, its keys the others.

    The tensors of the language model may be missing from it: that is read by transformers.

    Raises:
        UserError: a key is missing, unexpected or of another shape, or it asks for what BLIP-2 does not have.
    """
    if isinstance(options.image_size, tuple):
        raise UserError(f"{found.name} takes square images: give image_size one number")
    folder, state = found.path, read_folder(found.path)
    read_pixels_as_ours(state, folder)
    config, theirs = config_from_transformers_blip2(
        found.description, state, folder, options.image_size, options.like
    )
    config = replace(config, language=language_with_options(config.language, options))
    language = None if config.language is None else open_language(config.language)
    model = build_blip2(config, vision=make_tower(config.vision), language=language)
    _load(model, state, theirs, found.name)
    info: dict[str, Any] = {"source": found.name, "source_format": "transformers"}
    if _instructs(theirs):
        info["reads_prompts"] = True
    return StoredModel(
        model.eval(),
        open_tokenizer(config, options.tokenizer or (folder / TOKENIZER if _instructs(theirs) else folder)),
        info,
        [],
        None if config.language is None else open_language_tokenizer(config.language),
    )


def config_from_transformers_blip2(
    description: Mapping[str, Any],
    state: Mapping[str, Tensor],
    folder: Path,
    image_size: int | None = None,
    like: Like = "reference",
) -> tuple[Blip2Config, Any]:
    """Our configuration for a folder of transformers, and theirs.

    Args:
        description: what stands in its config.json.
        state: its tensors, of which names and shapes count.
        like: "transformers" keeps the vision tower's epsilon that early versions of transformers wrote.

    Raises:
        UserError: it asks for what BLIP-2 does not have.
    """
    from transformers import Blip2Config as Theirs
    from transformers import InstructBlipConfig

    kind: Any = InstructBlipConfig if description.get("model_type") == INSTRUCT else Theirs
    try:
        with quietly():  # of its special tokens' ids
            theirs: Any = kind.from_dict(dict(description))
        return _our_config(theirs, state, folder, image_size, like), theirs
    except UserError:
        raise
    except Exception as error:  # transformers checks values by kinds of its own, or not at all
        raise UserError(f"its config.json cannot be used: {' '.join(str(error).split())}") from error


def _our_config(
    theirs: Any, state: Mapping[str, Tensor], folder: Path, image_size: int | None, like: Like
) -> Blip2Config:
    vision, qformer = theirs.vision_config, theirs.qformer_config
    for part in (vision, qformer):
        if part.hidden_act != "gelu":
            raise UserError(f'its config.json asks for the activation "{part.hidden_act}"; BLIP-2 has "gelu"')
    noted, eps = getattr(theirs, "vision_norm_eps", None), vision.layer_norm_eps  # an export of ours has the former
    if like == "reference" and noted is None and eps == THEIR_EPS:
        eps = VisionConfig.layer_norm_eps  # LAVIS' tower; transformers had another default when it converted these
    matches, words, instruct = "itm_head.weight" in state, Sizes(state, folder.name), _instructs(theirs)
    word = f"{'qformer.' if instruct else ''}embeddings.word_embeddings.weight"
    own = VisionConfig(
        image_size=image_size or vision.image_size,
        patch_size=vision.patch_size,
        width=vision.hidden_size,
        depth=vision.num_hidden_layers,
        num_heads=vision.num_attention_heads,
        mlp_ratio=vision.intermediate_size / vision.hidden_size,
        layer_norm_eps=eps,
        final_norm=False,
    )
    return Blip2Config(
        vision=TowerConfig(source="own", own=own, drop_layers=0),
        qformer=QFormerConfig(
            num_queries=theirs.num_query_tokens,
            width=qformer.hidden_size,
            depth=qformer.num_hidden_layers,
            num_heads=qformer.num_attention_heads,
            inner_width=qformer.intermediate_size,
            cross_attention_every=qformer.cross_attention_frequency,
            memory_width=vision.hidden_size,
            vocab_size=words.shape(word, 2)[0] if matches or instruct else None,
            writes=False,
            max_positions=qformer.max_position_embeddings,
            dropout=qformer.hidden_dropout_prob,
            layer_norm_eps=qformer.layer_norm_eps,
            pad_id=qformer.pad_token_id or 0,
        ),
        matches=matches,
        embed_dim=getattr(theirs, "image_text_hidden_size", Blip2Config.embed_dim),
        language=None if matches else _language(theirs, folder),
        vision_norm_eps=float(vision.layer_norm_eps if noted is None else noted),
    )


def _instructs(theirs: Any) -> bool:
    return theirs.model_type == INSTRUCT


def _language(theirs: Any, folder: Path) -> LanguageConfig:
    noted = getattr(theirs, "chat", None)  # an export of ours has it
    usual = "no" if _instructs(theirs) else "auto"  # InstructBLIP reads its instructions as they are
    chat = cast(Chat, noted if noted in get_args(Chat) else usual)
    return LanguageConfig(source=str(folder), chat=chat, end=_end_of(theirs, folder))


def _end_of(theirs: Any, folder: Path) -> str:
    """The text that ends what the language model writes, where it is not its tokenizer's end token.

    OPT's is the end of a line. Another special token is a mistake of the configuration: that of the hub's
    InstructBLIP before Vicuna names "<s>", which ends nothing.
    """
    words, end = LanguageTokenizer.load(folder).hf, theirs.text_config.eos_token_id
    return str(words.decode([end])) if isinstance(end, int) and end not in words.all_special_ids else ""


@torch.no_grad()
def _load(model: Blip2, state: Mapping[str, Tensor], theirs: Any, name: str) -> None:
    state = {key: value for key, value in state.items() if not key.startswith("language_model.")}
    own = model.config.vision.own
    assert own is not None
    if _POSITIONS in state:
        resample_positions(state, _POSITIONS, own.grid, source=name)
    # Text modules in a file whose class reads no text, which older versions wrote.
    ignored = [key for key in state if key.endswith("position_ids")]
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    rules = transformers_rules(model, instruct=_instructs(theirs))
    ours = import_state(rules, state, shapes, source=name, ignored=ignored)
    missing = (
        {n for n, _ in model.named_parameters() if not n.startswith("language.")} - set(ours) - {"temperature"}
    )
    assert not missing, f"rules leave {sorted(missing)} out"
    model.load_state_dict({key: value.float() for key, value in ours.items()}, strict=False)
    if model.config.matches:
        model.temperature.fill_(getattr(theirs, "itc_temperature", TEMPERATURE))
