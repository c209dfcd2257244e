"""BLIP-2 and InstructBLIP written as folders of transformers' classes; `blip2_hf` reads these.

Their classes have no place for ITG's language head, which is left out, nor for ITC's temperature, which stands in
config.json as `itc_temperature`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.blip2_hf import TOKENIZER, transformers_rules
from openblip.checkpoints.blip2_tower import with_own_vision
from openblip.checkpoints.keymap import export_state
from openblip.checkpoints.stored import Part, StoredModel
from openblip.core.errors import UserError
from openblip.core.files import saving_tensors
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.meta import on_meta
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.language_kinds import made_of_decoders

__all__ = ["write_transformers"]

IMAGE_TOKEN = "<image>"


def write_transformers(folder: Path, stored: StoredModel, part: Part | None) -> None:
    """Write a folder that transformers' `from_pretrained` opens: weights, configuration, processor, tokenizer.

    A model with a language model becomes a Blip2ForConditionalGeneration (which Blip2Model reads too), or an
    InstructBlipForConditionalGeneration where the Q-Former reads the prompts; one of stage 1 a
    Blip2ForImageTextRetrieval; `part` chooses where it is both.

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
    if generates and model.llm.config.begin:
        raise UserError(
            f'the texts of this model begin with "{model.llm.config.begin}" in place of [BOS] (language.begin), '
            "which transformers' processor does not do, so it cannot be exported; convert it --to openblip or blip"
        )
    if not generates and not model.config.matches:
        raise UserError("this model has no heads for matching; leave --part match out")
    instruct, reads = generates and stored.reads_prompts, model.config.qformer.vocab_size is not None
    if generates and not instruct and stored.info.get("task") == "answering" and reads:
        raise UserError(
            "the Q-Former of this model reads the question alone, where transformers' InstructBLIP has it read the "
            "whole prompt and BLIP-2 nothing, so it cannot be exported there; convert it --to openblip or blip"
        )
    model = with_own_vision(model, "transformers' BLIP-2")
    _check_norm(model)
    config = _their_config(model, generates, instruct=instruct)
    config.vision_norm_eps = model.config.vision_norm_eps  # they read none; kept for when the model comes back
    if model.config.matches:
        config.itc_temperature = model.temperature.item()
    state, tokenizer = _trained_state(model, generates, instruct=instruct), None
    if generates:
        assert stored.language_tokenizer is not None
        tokenizer = stored.language_tokenizer.hf
        _add_language(config, state, model, tokenizer, stored.language_tokenizer)
        config.chat = model.llm.config.chat  # they read none; kept for when the model comes back
    kind: Any = transformers.Blip2ForConditionalGeneration if generates else transformers.Blip2ForImageTextRetrieval
    kind = transformers.InstructBlipForConditionalGeneration if instruct else kind
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
    _write_processor(folder, stored, model, tokenizer, instruct=instruct)


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


def _their_config(model: Blip2, generates: bool, *, instruct: bool) -> Any:
    from transformers import Blip2Config as Theirs
    from transformers import InstructBlipConfig

    own, qformer = model.config.vision.own, model.config.qformer
    assert own is not None
    reads = (instruct or not generates) and qformer.vocab_size is not None
    if own.pixels[0] != own.pixels[1]:
        raise UserError(f"transformers' BLIP-2 takes square images, this model {own.pixels[0]} x {own.pixels[1]}")
    kind: Any = InstructBlipConfig if instruct else Theirs
    return kind(
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
            "vocab_size": qformer.vocab_size if reads else 30523,
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
            **({} if instruct else {"use_qformer_text_input": not generates}),
        },
        **({"text_config": model.llm.hf.config.to_dict()} if generates else {}),
        num_query_tokens=qformer.num_queries,
        **({} if instruct else {"image_text_hidden_size": model.config.embed_dim}),
    )


def _trained_state(model: Blip2, generates: bool, *, instruct: bool) -> dict[str, Tensor]:
    """Everything but the language model, in their names; what their class has no place for is left out."""
    ours = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    state = export_state(transformers_rules(model, instruct=instruct), ours)
    text = r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\.|embeddings\.(word|position)_"
    heads = r"vision_projection\.|text_projection\.|itm_head\."
    text = heads if instruct else rf"{text}|{heads}"
    unwanted = rf"Qformer\.cls\.|{text}" if generates else r"Qformer\.cls\.|language_projection\."
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


def _write_processor(folder: Path, stored: StoredModel, model: Blip2, tokenizer: Any, *, instruct: bool) -> None:
    from transformers import AutoTokenizer, Blip2Processor, BlipImageProcessor, InstructBlipProcessor

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
        count = model.config.qformer.num_queries
        if instruct:
            stored.tokenizer.save(folder / TOKENIZER)
            words = AutoTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
            InstructBlipProcessor(images, tokenizer, words, num_query_tokens=count).save_pretrained(folder)
        else:
            Blip2Processor(images, tokenizer, num_query_tokens=count).save_pretrained(folder)
        return
    assert stored.tokenizer is not None
    stored.tokenizer.save(folder)
    hf_tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    Blip2Processor(images, hf_tokenizer, num_query_tokens=None).save_pretrained(folder)
