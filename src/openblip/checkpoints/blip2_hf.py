"""transformers' BLIP-2, both ways: Blip2ForConditionalGeneration, Blip2Model and Blip2ForImageTextRetrieval.

The trained part has LAVIS' names with other words for some, so the rules are those of `checkpoints.blip2` renamed.
The language model is transformers' own and goes over as it is. Their classes have no place for ITG's language
head, which is left out, nor for ITC's temperature, which stands in config.json as `itc_temperature`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
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
from openblip.checkpoints.blip2_tower import with_own_vision
from openblip.checkpoints.blip_hf import THEIR_EPS, rename_vision
from openblip.checkpoints.keymap import Rule, Sizes, export_state, import_state, resample_positions
from openblip.checkpoints.processor import read_pixels_as_ours
from openblip.checkpoints.state import Found, read_folder
from openblip.checkpoints.stored import Like, Options, Part, StoredModel
from openblip.core.errors import UserError
from openblip.core.files import saving_tensors
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.meta import on_meta
from openblip.models.blip2 import TEMPERATURE, Blip2, Blip2Config
from openblip.models.configs import Chat, LanguageConfig, QFormerConfig, TowerConfig, VisionConfig
from openblip.models.language_kinds import made_of_decoders
from openblip.models.tower import make_tower

__all__ = ["open_transformers_blip2", "write_transformers"]

IMAGE_TOKEN = "<image>"
_VISION = "vision.encoder.vit"
_POSITIONS = "vision_model.embeddings.position_embedding"
_RENAMED = (
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.embeddings\.", "embeddings."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"^(qformer\..*attention)\.self\.", r"\1.attention."),
    (r"^vision_proj\.", "vision_projection."),
    (r"^text_proj\.", "text_projection."),
    (r"^opt_proj\.", "language_projection."),
)


def _name(name: str) -> str:
    for pattern, theirs in _RENAMED:
        name = re.sub(pattern, theirs, name)
    return name


def _rules(model: Blip2) -> list[Rule]:
    """Rules of all but the language model; the temperature has none."""
    rules = [rule for rule in lavis_rules(model) if rule.ours != "temperature"]
    own = model.config.vision.own
    assert own is not None
    vision = [
        replace(rule, theirs=tuple(map(rename_vision, rule.theirs)))
        for rule in vision_rules(own.depth, ours=_VISION)
        if not rule.ours.startswith(f"{_VISION}.norm.")
    ]
    return [replace(rule, theirs=tuple(map(_name, rule.theirs)), copies=()) for rule in rules] + vision


# From transformers -----------------------------------------------------------------------------------------


def open_transformers_blip2(found: Found, options: Options) -> StoredModel:
    """Open a folder of one of the three classes; its keys say which.

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
    return StoredModel(
        model.eval(),
        open_tokenizer(config, options.tokenizer or folder),
        {"source": found.name, "source_format": "transformers"},
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
    from transformers import Blip2Config as TheirConfig

    try:
        theirs: Any = TheirConfig.from_dict(dict(description))
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
    matches, words = "itm_head.weight" in state, Sizes(state, folder.name)
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
            vocab_size=words.shape("embeddings.word_embeddings.weight", 2)[0] if matches else None,
            writes=False,
            max_positions=qformer.max_position_embeddings,
            dropout=qformer.hidden_dropout_prob,
            layer_norm_eps=qformer.layer_norm_eps,
            pad_id=qformer.pad_token_id or 0,
        ),
        matches=matches,
        embed_dim=theirs.image_text_hidden_size,
        language=None if matches else _language(theirs, folder),
        vision_norm_eps=float(vision.layer_norm_eps if noted is None else noted),
    )


def _language(theirs: Any, folder: Path) -> LanguageConfig:
    noted = getattr(theirs, "chat", "auto")  # an export of ours has it
    chat = cast(Chat, noted if noted in get_args(Chat) else "auto")
    return LanguageConfig(source=str(folder), chat=chat, end=_end_of(theirs, folder))


def _end_of(theirs: Any, folder: Path) -> str:
    """The text that ends what the language model writes, where it is not its tokenizer's end token."""
    tokenizer = LanguageTokenizer.load(folder)
    end = theirs.text_config.eos_token_id
    return str(tokenizer.hf.decode([end])) if isinstance(end, int) and end != tokenizer.hf.eos_token_id else ""


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
    ours = import_state(_rules(model), state, shapes, source=name, ignored=ignored)
    missing = (
        {n for n, _ in model.named_parameters() if not n.startswith("language.")} - set(ours) - {"temperature"}
    )
    assert not missing, f"rules leave {sorted(missing)} out"
    model.load_state_dict({key: value.float() for key, value in ours.items()}, strict=False)
    if model.config.matches:
        model.temperature.fill_(getattr(theirs, "itc_temperature", TEMPERATURE))


# To transformers -------------------------------------------------------------------------------------------


def write_transformers(folder: Path, stored: StoredModel, part: Part | None) -> None:
    """Write a folder that transformers' `from_pretrained` opens: weights, configuration, processor, tokenizer.

    A model with a language model becomes a Blip2ForConditionalGeneration (which Blip2Model reads too), one of
    stage 1 a Blip2ForImageTextRetrieval; `part` chooses where it is both.

    Raises:
        UserError: transformers has no class that computes what this model does.
    """
    import transformers

    model = stored.model
    generates = model.config.language is not None if part is None else part == "caption"
    if generates and (model.config.language is None or stored.language_tokenizer is None):
        raise UserError("this model has no language model, so transformers has no class for its captions")
    if generates and made_of_decoders(model.llm.hf):
        raise UserError(
            "transformers' BLIP-2 has no place for a language model whose two parts are described each for itself "
            f"({model.llm.hf.config.model_type}); convert it --to openblip or blip"
        )
    if generates and model.llm.bos_first:
        raise UserError(
            "transformers' BLIP-2 puts the images' soft prompts before [BOS], and this model was trained with them "
            "after it (language.bos=first), so it cannot be exported; one trained with language.bos=none can"
        )
    if not generates and not model.config.matches:
        raise UserError("this model has no heads for matching; leave --part match out")
    if generates and stored.info.get("task") == "answering" and model.config.qformer.vocab_size is not None:
        raise UserError(
            "the Q-Former of this model reads the question too, which no BLIP-2 class of transformers does, so it "
            "cannot be exported there; convert it --to openblip or blip"
        )
    model = with_own_vision(model, "transformers' BLIP-2")
    _check_norm(model)
    config = _their_config(model, generates)
    config.vision_norm_eps = model.config.vision_norm_eps  # they read none; kept for when the model comes back
    if model.config.matches:
        config.itc_temperature = model.temperature.item()
    state, tokenizer = _trained_state(model, generates), None
    if generates:
        assert stored.language_tokenizer is not None
        tokenizer = stored.language_tokenizer.hf
        _add_language(config, state, model, tokenizer, stored.language_tokenizer)
        config.chat = model.llm.config.chat  # they read none; kept for when the model comes back
    kind: Any = transformers.Blip2ForConditionalGeneration if generates else transformers.Blip2ForImageTextRetrieval
    with on_meta():
        theirs = kind(config)
    found = theirs.load_state_dict(state, strict=False, assign=True)
    tied = set(getattr(theirs, "all_tied_weights_keys", {}) or ())
    missing = [key for key in found.missing_keys if key not in tied]
    assert not missing, missing[:3]
    assert not found.unexpected_keys, found.unexpected_keys[:3]
    theirs.tie_weights()
    if generates:
        theirs.generation_config = _generation(model, stored.language_tokenizer, config.image_token_index)
    with saving_tensors(folder):
        theirs.save_pretrained(folder)
    _write_processor(folder, stored, model, tokenizer)


def _check_norm(model: Blip2) -> None:
    """Refuse a norm over the tower that computes clearly otherwise there, where it has the tower's epsilon.

    That of LAVIS, 1e-5 over towers of 1e-6, is let through, as in transformers' own conversions of its models.
    """
    own, eps = model.config.vision.own, model.config.vision_norm_eps
    assert own is not None
    if abs(eps - own.layer_norm_eps) > Blip2Config.vision_norm_eps:
        raise UserError(
            f"transformers' BLIP-2 has one epsilon for all LayerNorms of the vision tower, this model "
            f"{own.layer_norm_eps} in it and {eps} after it, so it cannot be exported"
        )


def _their_config(model: Blip2, generates: bool) -> Any:
    from transformers import Blip2Config as TheirConfig

    own, qformer = model.config.vision.own, model.config.qformer
    assert own is not None
    if own.pixels[0] != own.pixels[1]:
        raise UserError(f"transformers' BLIP-2 takes square images, this model {own.pixels[0]} x {own.pixels[1]}")
    return TheirConfig(
        vision_config={
            "hidden_size": own.width,
            "intermediate_size": round(own.width * own.mlp_ratio),
            "num_hidden_layers": own.depth,
            "num_attention_heads": own.num_heads,
            "image_size": own.pixels[0],
            "patch_size": own.patch_size,
            "layer_norm_eps": own.layer_norm_eps,
        },
        qformer_config={
            "vocab_size": 30523 if generates or qformer.vocab_size is None else qformer.vocab_size,
            "hidden_size": qformer.width,
            "num_hidden_layers": qformer.depth,
            "num_attention_heads": qformer.num_heads,
            "intermediate_size": qformer.inner_width,
            "hidden_dropout_prob": qformer.dropout,
            "attention_probs_dropout_prob": qformer.dropout,
            "max_position_embeddings": qformer.max_positions,
            "layer_norm_eps": qformer.layer_norm_eps,
            "pad_token_id": qformer.pad_id,
            "cross_attention_frequency": qformer.cross_attention_every,
            "encoder_hidden_size": own.width,
            "use_qformer_text_input": not generates,
        },
        **({"text_config": model.llm.hf.config.to_dict()} if generates else {}),
        num_query_tokens=qformer.num_queries,
        image_text_hidden_size=model.config.embed_dim,
    )


def _trained_state(model: Blip2, generates: bool) -> dict[str, Tensor]:
    """Everything but the language model, in their names; what their class has no place for is left out."""
    ours = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    state = export_state(_rules(model), ours)
    text = r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\.|embeddings\.(word|position)_"
    heads = r"vision_projection\.|text_projection\.|itm_head\."
    unwanted = rf"Qformer\.cls\.|{text}|{heads}" if generates else r"Qformer\.cls\.|language_projection\."
    return {key: value.float() for key, value in state.items() if not re.match(unwanted, key)}


def _add_language(
    config: Any, state: dict[str, Tensor], model: Blip2, tokenizer: Any, language_tokenizer: LanguageTokenizer
) -> None:
    """The language model's weights, and a token that stands for an image in its texts."""
    if model.llm.config.quantize != "none":
        raise UserError(
            "a quantized language model cannot be exported; set its quantize to none in the model's config.json"
        )
    hf, weights = model.llm.plain(merged=True)
    state |= {f"language_model.{key}": value.detach().cpu() for key, value in weights.items()}
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    tokenizer.image_token = IMAGE_TOKEN
    image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    missing = image_id + 1 - model.llm.vocab_size
    if missing > 0:
        for module in (hf.get_input_embeddings(), hf.get_output_embeddings()):
            name = next(f"language_model.{n}.weight" for n, found in hf.named_modules() if found is module)
            state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, missing))
        config.text_config.vocab_size = image_id + 1
    config.image_token_index = image_id
    config.text_config.eos_token_id = language_tokenizer.eos_id


def _generation(model: Blip2, language_tokenizer: LanguageTokenizer | None, image_id: int) -> Any:
    from transformers import GenerationConfig

    assert language_tokenizer is not None
    described = model.llm.hf.config
    return GenerationConfig(
        bos_token_id=getattr(described, "bos_token_id", None),
        eos_token_id=language_tokenizer.stop_ids,
        pad_token_id=language_tokenizer.pad_id,
        decoder_start_token_id=model.llm.start_id if model.llm.is_encoder_decoder else None,
        suppress_tokens=[image_id],
    )


def _write_processor(folder: Path, stored: StoredModel, model: Blip2, tokenizer: Any) -> None:
    from transformers import AutoTokenizer, Blip2Processor, BlipImageProcessor

    own = model.config.vision.own
    assert own is not None
    images = BlipImageProcessor(
        size={"height": own.pixels[0], "width": own.pixels[1]},
        image_mean=list(stored.model.vision.mean),
        image_std=list(stored.model.vision.std),
    )
    if tokenizer is not None:
        left = "right" if model.llm.is_encoder_decoder else "left"
        tokenizer.padding_side = left  # what their generate needs; ours takes the side as an argument
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(stored.language_tokenizer.pad_id)  # type: ignore[union-attr]
        Blip2Processor(images, tokenizer, num_query_tokens=model.config.qformer.num_queries).save_pretrained(folder)
        return
    assert stored.tokenizer is not None
    stored.tokenizer.save(folder)
    hf_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    Blip2Processor(images, hf_tokenizer, num_query_tokens=None).save_pretrained(folder)
