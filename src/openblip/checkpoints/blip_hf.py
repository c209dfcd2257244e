"""transformers' BLIP classes: their names for our tensors, their configuration for ours, folders both ways.

The text side has the original repository's names there too, so the rules are those of `checkpoints.blip` with
the vision tower renamed. Where transformers computes otherwise than the original, the original's way is the
default and `like="transformers"` keeps theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.blip import (
    IGNORED,
    check_plain,
    published_drop_path,
    rules_for,
    transformer_rules,
    vision_rules,
)
from openblip.checkpoints.keymap import Rule, export_state, load_by_rules, resample_positions
from openblip.checkpoints.recognise import AnyConfig, describe
from openblip.checkpoints.stored import Like
from openblip.core.errors import UserError
from openblip.core.files import write_tensors
from openblip.core.text import read_json
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import TEMPERATURE, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.dual import DualConfig
from openblip.models.vqa import VqaConfig

__all__ = [
    "config_from_transformers",
    "load_transformers_state",
    "rename_vision",
    "transformers_rules",
    "write_transformers",
]

THEIR_EPS = 1e-5
"""transformers' default epsilon of the vision tower's LayerNorms"""
POSITIONS = "vision_model.embeddings.position_embedding"
_RENAMED = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", POSITIONS),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"^(vision_model\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"^(vision_model\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^(vision_model\..*)\.norm([12])\.", r"\1.layer_norm\2."),
)


def rename_vision(name: str) -> str:
    """transformers' name of a tensor of the vision tower; any other as it is."""
    for pattern, theirs in _RENAMED:
        name = re.sub(pattern, theirs, name)
    return name


def transformers_rules(config: AnyConfig) -> list[Rule]:
    """All rules of a model in transformers' names; tied tensors stand once in their files."""
    rules = _dual_rules(config) if type(config) is DualConfig else rules_for(config)
    return [
        replace(
            rule,
            theirs=tuple(map(rename_vision, rule.theirs)),
            copies=tuple(tuple(map(rename_vision, c)) for c in rule.copies),
        )
        for rule in rules
    ]


def _dual_rules(config: DualConfig) -> list[Rule]:
    """A model that transformers alone has."""
    rules = vision_rules(config.vision.depth)
    rules += transformer_rules(config.text.depth, "text_encoder", "text_model")
    names = {
        "pooler.weight": "text_model.pooler.dense.weight",
        "pooler.bias": "text_model.pooler.dense.bias",
        "vision_proj.weight": "visual_projection.weight",
        "text_proj.weight": "text_projection.weight",
        "logit_scale": "logit_scale",
    }
    return rules + [Rule(ours, (theirs,)) for ours, theirs in names.items()]


def config_from_transformers(description: Mapping[str, Any], state: Mapping[str, Tensor], like: Like) -> AnyConfig:
    """Our configuration for a transformers model.

    Args:
        description: what stands in its config.json.
        state: its tensors; their names say which class it is.

    Raises:
        UserError: it asks for what BLIP does not have.
    """
    from transformers.models.blip.configuration_blip import BlipConfig as TheirConfig  # seconds

    try:
        theirs: Any = TheirConfig.from_dict(dict(description))
        vision, text = theirs.vision_config, theirs.text_config
        for part in (vision, text):
            if part.hidden_act != "gelu":
                raise UserError(f'its config.json asks for the activation "{part.hidden_act}"; BLIP has "gelu"')
        config = _sizes(vision, text, like, description.get("vision_eps"))
    except UserError:
        raise
    except Exception as error:  # transformers checks values by kinds of its own, or not at all
        raise UserError(f"its config.json cannot be used: {' '.join(str(error).split())}") from error
    keys = set(state)
    encodes, decodes = (any(key.startswith(part) for key in keys) for part in ("text_encoder.", "text_decoder."))
    if like != "transformers":
        drop_path = published_drop_path(config["vision"], tuned=encodes and decodes)
        config["vision"] = replace(config["vision"], drop_path=drop_path)
    if "visual_projection.weight" in keys:
        return DualConfig(**config, embed_dim=theirs.projection_dim)
    if encodes and decodes:
        return VqaConfig(**config)
    if encodes:
        return BlipConfig(**config, embed_dim=theirs.image_text_hidden_size, decoder=False)
    return BlipConfig(**config, encoder=False)


def _sizes(vision: Any, text: Any, like: Like, noted: Any = None) -> dict[str, Any]:
    """Our configurations of both sides; `noted` is the vision tower's epsilon as an export of ours has it."""
    theirs = like == "transformers"
    size, eps = vision.image_size, vision.layer_norm_eps
    if not theirs:
        # Published folders have their default in place of the original's; any other value is meant.
        eps = VisionConfig.layer_norm_eps if eps == THEIR_EPS and noted != eps else eps
    return {
        "vision": VisionConfig(
            image_size=size if isinstance(size, int) else (size[0], size[1]),
            patch_size=vision.patch_size,
            width=vision.hidden_size,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            mlp_ratio=vision.intermediate_size / vision.hidden_size,
            layer_norm_eps=eps,
        ),
        "text": TextConfig(
            vocab_size=text.vocab_size,
            width=text.hidden_size,
            depth=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            inner_width=text.intermediate_size,
            max_positions=text.max_position_embeddings,
            memory_width=vision.hidden_size,
            dropout=text.hidden_dropout_prob if theirs else TextConfig.dropout,
            layer_norm_eps=text.layer_norm_eps,
            pad_id=text.pad_token_id,
        ),
    }


def load_transformers_state(
    model: Any, state: Mapping[str, Tensor], *, source: str, temperature: float | None = None
) -> list[str]:
    """Load a transformers state dict into `model`; return the keys that were known and not needed.

    Args:
        temperature: of ITC, which transformers' files have no key for; None takes what it starts from.

    Raises:
        UserError: a key is missing, unexpected or of another shape.
    """
    rules = transformers_rules(model.config)
    needed = {name for rule in rules for name in rule.theirs}
    ignored = [key for key in state if IGNORED.match(key) and key not in needed]
    state = dict(state)
    if "temp" in needed:
        state["temp"] = torch.tensor(TEMPERATURE if temperature is None else temperature)
    if POSITIONS in state:
        resample_positions(state, POSITIONS, model.config.vision.grid, source=source)
    load_by_rules(model, rules, state, source=source, ignored=ignored)
    return ignored


def write_transformers(folder: Path, model: Any, tokenizer: TextTokenizer) -> None:
    """Write a folder that transformers' `from_pretrained` opens: weights, configuration, processor, tokenizer.

    Raises:
        UserError: transformers has no class that computes what this model does.
    """
    config: AnyConfig = model.config
    architecture = _architecture(config)
    # Seconds: needed here alone, and not for a model that is refused.
    from transformers import AutoTokenizer, BlipImageProcessor, BlipProcessor

    state = {k: v.detach().cpu().float() for k, v in model.state_dict().items()}
    rules = [replace(rule, copies=()) for rule in transformers_rules(config)]
    theirs = export_state(rules, state)
    description = _their_config(config, tokenizer)
    description.architectures = [architecture]
    description.vision_eps = config.vision.layer_norm_eps  # that theirs is meant, even if it is their default
    if "temp" in theirs:
        # No class of theirs has a place for it; kept beside, so that it is there when the model comes back.
        description.itc_temperature = float(theirs.pop("temp"))
    write_tensors(folder / "model.safetensors", theirs)
    description.save_pretrained(folder)
    _note_dtype(folder / "config.json")
    tokenizer.save(folder)
    size = config.vision.pixels[0]
    images = BlipImageProcessor(size={"height": size, "width": size})
    hf_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    BlipProcessor(image_processor=images, tokenizer=hf_tokenizer).save_pretrained(folder)


def _note_dtype(path: Path) -> None:
    description = read_json(path)
    path.write_text(json.dumps({**description, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def _architecture(config: AnyConfig) -> str:
    """The class of theirs for a model of ours, or why there is none."""
    vision = config.vision
    check_plain(vision, "transformers' BLIP")
    if vision.pixels[0] != vision.pixels[1]:
        raise UserError(
            f"transformers' BLIP takes square images, this model {vision.pixels[0]} x {vision.pixels[1]}; "
            "open it with a square image_size to export it"
        )
    if type(config) not in _CLASSES:
        raise UserError("transformers has no class for BLIP's NLVR2 model; convert it --to blip or openblip")
    return _CLASSES[type(config)](config)


def _vqa_class(config: VqaConfig) -> str:
    if config.text.width != config.vision.width:
        raise UserError(
            f"transformers' BlipForQuestionAnswering needs text as wide as the vision tower; here it is "
            f"{config.text.width} and {config.vision.width}"
        )
    return "BlipForQuestionAnswering"


def _blip_class(config: BlipConfig) -> str:
    if config.encoder and config.decoder:
        raise UserError(
            f"this is {describe(config)}, and transformers has one class for captions and another for matching; "
            "choose with --part caption or --part match"
        )
    return "BlipForImageTextRetrieval" if config.encoder else "BlipForConditionalGeneration"


_CLASSES: dict[type, Callable[[Any], str]] = {
    BlipConfig: _blip_class,
    VqaConfig: _vqa_class,
    DualConfig: lambda _: "BlipModel",
}
"""transformers' class for each kind that it has"""


def _their_config(config: AnyConfig, tokenizer: TextTokenizer) -> Any:
    from transformers.models.blip.configuration_blip import BlipConfig as TheirConfig

    vision, text = config.vision, config.text
    embed_dim = getattr(config, "embed_dim", 256)  # of models without projections it is not read
    return TheirConfig(
        vision_config={
            "hidden_size": vision.width,
            "intermediate_size": round(vision.width * vision.mlp_ratio),
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.num_heads,
            "image_size": vision.pixels[0],
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.layer_norm_eps,
        },
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "encoder_hidden_size": vision.width,
            "intermediate_size": text.inner_width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.num_heads,
            "max_position_embeddings": text.max_positions,
            "layer_norm_eps": text.layer_norm_eps,
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.dropout,
            "bos_token_id": tokenizer.dec_id,
            "eos_token_id": tokenizer.sep_id,
            "sep_token_id": tokenizer.sep_id,
            "pad_token_id": tokenizer.pad_id,
        },
        image_text_hidden_size=embed_dim,
        projection_dim=embed_dim,
    )
