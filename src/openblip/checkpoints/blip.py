"""Names of BLIP's original checkpoints (salesforce/BLIP), and what a file of that kind holds.

The original repository and LAVIS write pre-training, captioning (decoder alone), matching, retrieval, VQA and
NLVR models with these names; the sizes are read off the tensors, so that a checkpoint says itself what model it
needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.keymap import Rule, Sizes, export_state, load_by_rules, resample_positions
from openblip.checkpoints.notes import heads_of
from openblip.core.errors import UserError
from openblip.models.blip import TEMPERATURE, Blip, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.models.vqa import BlipVqa, VqaConfig

__all__ = [
    "IGNORED",
    "blip_rules",
    "check_plain",
    "config_from_state",
    "load_blip_state",
    "momentum_state",
    "original_state",
    "rules_for",
]

QKV = ("query", "key", "value")


def vision_rules(depth: int, *, ours: str = "vision.vit", theirs: str = "visual_encoder") -> list[Rule]:
    """Rules of the vision tower: timm's names under another prefix."""
    names = [
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    ]
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    names += [f"blocks.{i}.{part}.{kind}" for i in range(depth) for part in parts for kind in ("weight", "bias")]
    return [Rule(f"{ours}.{name}", (f"{theirs}.{name}",)) for name in names]


def embedding_rules(ours: str, theirs: str) -> list[Rule]:
    """Rules of the text embeddings."""
    return [
        Rule(f"{ours}.word.weight", (f"{theirs}.word_embeddings.weight",)),
        Rule(f"{ours}.position.weight", (f"{theirs}.position_embeddings.weight",)),
        *_pairs(f"{ours}.norm", f"{theirs}.LayerNorm"),
    ]


def self_attention_rules(ours: str, theirs: str) -> list[Rule]:
    """Rules of one self-attention: three projections there are one here."""
    return [
        *(
            Rule(f"{ours}.qkv.{kind}", tuple(f"{theirs}.self.{p}.{kind}" for p in QKV))
            for kind in ("weight", "bias")
        ),
        *_pairs(f"{ours}.output", f"{theirs}.output.dense"),
        *_pairs(f"{ours}.norm", f"{theirs}.output.LayerNorm"),
    ]


def shared_block_rules(ours: str, theirs: str, *, cross_attention: bool = True) -> list[Rule]:
    """Rules of what encoder and decoder share in a block: cross-attention and feed-forward."""
    rules = [
        *_pairs(f"{ours}.feed_forward.inner", f"{theirs}.intermediate.dense"),
        *_pairs(f"{ours}.feed_forward.output", f"{theirs}.output.dense"),
        *_pairs(f"{ours}.feed_forward.norm", f"{theirs}.output.LayerNorm"),
    ]
    if cross_attention:
        cross = f"{theirs}.crossattention"
        rules += [
            *_pairs(f"{ours}.cross_attention.query", f"{cross}.self.query"),
            *(
                Rule(
                    f"{ours}.cross_attention.key_value.{kind}",
                    tuple(f"{cross}.self.{p}.{kind}" for p in QKV[1:]),
                )
                for kind in ("weight", "bias")
            ),
            *_pairs(f"{ours}.cross_attention.output", f"{cross}.output.dense"),
            *_pairs(f"{ours}.cross_attention.norm", f"{cross}.output.LayerNorm"),
        ]
    return rules


def _pairs(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def transformer_rules(depth: int, ours: str, theirs: str, *, cross_attention: bool = True) -> list[Rule]:
    """Rules of a whole text transformer."""
    rules = embedding_rules(f"{ours}.embeddings", f"{theirs}.embeddings")
    for i in range(depth):
        block, layer = f"{ours}.blocks.{i}", f"{theirs}.encoder.layer.{i}"
        rules += self_attention_rules(f"{block}.self_attention", f"{layer}.attention")
        rules += shared_block_rules(block, layer, cross_attention=cross_attention)
    return rules


def head_rules(ours: str, theirs: str) -> list[Rule]:
    """Rules of the language head; its last matrix is the word embedding, which their files repeat."""
    predictions = f"{theirs}.predictions"
    return [
        *_pairs(f"{ours}.inner", f"{predictions}.transform.dense"),
        *_pairs(f"{ours}.norm", f"{predictions}.transform.LayerNorm"),
        Rule(f"{ours}.bias", (f"{predictions}.bias",), copies=((f"{predictions}.decoder.bias",),)),
    ]


def blip_rules(config: BlipConfig) -> list[Rule]:
    """All rules of a model with an encoder, a decoder, or both (then shared as in pre-training)."""
    depth = config.text.depth
    rules = vision_rules(config.vision.depth)
    decoder, their_decoder = "text_decoder.transformer", "text_decoder.bert"
    if config.encoder:
        rules += transformer_rules(depth, "text_encoder", "text_encoder")
        for ours, theirs in (
            ("vision_proj", "vision_proj"),
            ("text_proj", "text_proj"),
            ("itm_head", "itm_head"),
        ):
            rules += _pairs(ours, theirs)
        rules.append(Rule("temperature", ("temp",)))
    if config.decoder and config.encoder:
        rules = [_with_decoder_copy(rule) for rule in rules]
        for i in range(depth):
            rules += self_attention_rules(
                f"{decoder}.blocks.{i}.self_attention", f"{their_decoder}.encoder.layer.{i}.attention"
            )
    elif config.decoder:
        rules += transformer_rules(depth, decoder, their_decoder)
    if config.decoder:
        rules += head_rules("text_decoder.head", "text_decoder.cls")
        word = "text_encoder.embeddings.word.weight" if config.encoder else f"{decoder}.embeddings.word.weight"
        rules = _with_output_copy(rules, word)
    return rules


def _with_output_copy(rules: list[Rule], word: str) -> list[Rule]:
    """Their files hold the word embeddings `word` once more, as the last matrix of the language head."""
    copy = ("text_decoder.cls.predictions.decoder.weight",)
    return [replace(r, copies=(*r.copies, copy)) if r.ours == word else r for r in rules]


def _with_decoder_copy(rule: Rule) -> Rule:
    """Their pre-training files hold the shared tensors a second time, under the decoder's name."""
    shared = rule.ours.startswith("text_encoder.") and ".self_attention." not in rule.ours
    if not shared:
        return rule
    tied_names = tuple(name.replace("text_encoder.", "text_decoder.bert.", 1) for name in rule.theirs)
    return replace(rule, copies=(*rule.copies, tied_names))


def nlvr_cross_attention_rules(ours: str, theirs: str, *, merge: bool) -> list[Rule]:
    """Rules of a cross-attention that reads two images; the first is `ours` itself."""
    rules = _pairs(f"{ours}.norm", f"{theirs}.output.LayerNorm")
    for place, prefix in enumerate((ours, f"{ours}.second")):
        rules += _pairs(f"{prefix}.query", f"{theirs}.self{place}.query")
        rules += _pairs(f"{prefix}.output", f"{theirs}.output.dense{place}")
        rules += [
            Rule(f"{prefix}.key_value.{kind}", tuple(f"{theirs}.self{place}.{part}.{kind}" for part in QKV[1:]))
            for kind in ("weight", "bias")
        ]
    return rules + (_pairs(f"{ours}.merge", f"{theirs}.output.merge_layer") if merge else [])


def vqa_rules(config: VqaConfig) -> list[Rule]:
    """All rules of a VQA model: nothing is shared, but for the word embeddings that end the decoder's head."""
    depth, decoder = config.text.depth, "text_decoder.transformer"
    rules = vision_rules(config.vision.depth) + transformer_rules(depth, "text_encoder", "text_encoder")
    rules += transformer_rules(depth, decoder, "text_decoder.bert") + head_rules(
        "text_decoder.head", "text_decoder.cls"
    )
    return _with_output_copy(rules, f"{decoder}.embeddings.word.weight")


def nlvr_rules(config: NlvrConfig) -> list[Rule]:
    """All rules of an NLVR model."""
    depth = config.text.depth
    rules = vision_rules(config.vision.depth)
    rules += transformer_rules(depth, "text_encoder", "text_encoder", cross_attention=False)
    for i in range(depth):
        rules += nlvr_cross_attention_rules(
            f"text_encoder.blocks.{i}.cross_attention",
            f"text_encoder.encoder.layer.{i}.crossattention",
            merge=i >= config.merge_from,
        )
    return rules + _pairs("head.0", "cls_head.0") + _pairs("head.2", "cls_head.2")


_RULES: dict[type, Callable[[Any], list[Rule]]] = {
    BlipConfig: blip_rules,
    VqaConfig: vqa_rules,
    NlvrConfig: nlvr_rules,
}


def rules_for(config: Any) -> list[Rule]:
    """All rules of a model in the original repository's names.

    Raises:
        UserError: it has no such model.
    """
    if type(config) not in _RULES:
        raise UserError("the original repository has no two-tower model; convert it --to transformers or openblip")
    return _RULES[type(config)](config)


def config_from_state(
    state: Mapping[str, Tensor],
    *,
    num_vision_heads: int | None = None,
    num_text_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    vision_eps: float | None = None,
    text_eps: float | None = None,
    source: str = "this checkpoint",
) -> Any:
    """Read a model's configuration off an original checkpoint.

    Args:
        num_vision_heads: tensors do not tell it; None takes 64 channels for each head, as all published models.
        num_text_heads: likewise.
        image_size: pixels to use the model at; None takes what the position embeddings stand for.
        vision_eps: epsilon of the vision tower's LayerNorms; None takes the original's, and of `text_eps` likewise.
        source: what to call it in messages.

    Returns:
        a `BlipConfig`, `VqaConfig` or `NlvrConfig`, whatever the keys speak of.

    Raises:
        UserError: a tensor is missing or of another rank, or the number of heads is neither given nor that of the
            published models.
    """
    sizes = Sizes(state, source)
    width, _, _, patch = sizes.shape("visual_encoder.patch_embed.proj.weight", 4)
    patches = sizes.num_patches("visual_encoder.pos_embed")
    encoder = any(key.startswith("text_encoder.") for key in state)
    decoder = any(key.startswith("text_decoder.") for key in state)
    pair = any(key.startswith("cls_head.") for key in state)
    text = "text_encoder" if encoder else "text_decoder.bert"
    vocab_size, text_width = sizes.shape(f"{text}.embeddings.word_embeddings.weight", 2)
    read = "self0" if pair else "self"
    vision_config = VisionConfig(
        image_size=image_size or round(patches**0.5) * patch,
        patch_size=patch,
        width=width,
        depth=sizes.count(r"visual_encoder\.blocks\.(\d+)\."),
        num_heads=num_vision_heads or heads_of(width, "vision tower", source),
        mlp_ratio=sizes.shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0] / width,
        layer_norm_eps=vision_eps or VisionConfig.layer_norm_eps,
    )
    text_config = TextConfig(
        vocab_size=vocab_size,
        width=text_width,
        depth=sizes.count(re.escape(text) + r"\.encoder\.layer\.(\d+)\."),
        num_heads=num_text_heads or heads_of(text_width, "text transformer", source),
        inner_width=sizes.shape(f"{text}.encoder.layer.0.intermediate.dense.weight", 2)[0],
        max_positions=sizes.shape(f"{text}.embeddings.position_embeddings.weight", 2)[0],
        memory_width=sizes.shape(f"{text}.encoder.layer.0.crossattention.{read}.key.weight", 2)[1],
        layer_norm_eps=text_eps or TextConfig.layer_norm_eps,
    )
    vqa = encoder and decoder and not any(key.startswith(("itm_head.", "vision_proj.")) for key in state)
    vision_config = replace(vision_config, drop_path=published_drop_path(vision_config, tuned=pair or vqa))
    if pair:
        merged = (i for i in range(text_config.depth) if f"{text}.encoder.layer.{i}{MERGE}" in state)
        return NlvrConfig(vision=vision_config, text=text_config, merge_from=next(merged, text_config.depth))
    if vqa:
        return VqaConfig(vision=vision_config, text=text_config)
    embed_dim = sizes.shape("vision_proj.weight", 2)[0] if encoder else 256
    return BlipConfig(vision=vision_config, text=text_config, embed_dim=embed_dim, encoder=encoder, decoder=decoder)


def published_drop_path(vision: VisionConfig, *, tuned: bool) -> float:
    """Stochastic depth that a tower of the reference is trained on with, which files do not say.

    ViT-L has 0.1 always; ViT-B has it where it was `tuned` for VQA or NLVR2.
    """
    return 0.1 if vision.depth >= 24 or (tuned and vision.depth >= 12) else 0.0


MERGE = ".crossattention.output.merge_layer.weight"
# What a model for use does not need: index buffers, a pooler that nothing reads, momentum copies, queues;
# `momentum_state` reads the last two.
IGNORED = re.compile(r".*position_ids$|.*\.pooler\..*|.*_m\..*|.*queue.*|^ptr_queue$")


def load_blip_state(
    model: Blip | BlipVqa | BlipNlvr,
    state: Mapping[str, Tensor],
    *,
    source: str,
    source_grid: tuple[int, int] | None = None,
) -> list[str]:
    """Load an original state dict into `model`; return the keys that were known and not needed.

    Args:
        source_grid: rows and columns of patches that its position embeddings stand for; a square when None.

    Raises:
        UserError: a key is missing, unexpected or of another shape.
    """
    ignored = [key for key in state if IGNORED.match(key)]
    state, rules = dict(state), rules_for(model.config)
    if any(rule.theirs == ("temp",) for rule in rules):
        # The original matching checkpoints do not keep the temperature: ITC similarities there are cosines.
        state.setdefault("temp", torch.tensor(TEMPERATURE))
    resample_positions(state, "visual_encoder.pos_embed", model.config.vision.grid, source_grid, source=source)
    load_by_rules(model, rules, state, source=source, ignored=ignored)
    return ignored


def original_state(model: Blip | BlipVqa | BlipNlvr) -> dict[str, Tensor]:
    """The state dict that the original repository would have written, tied tensors and index buffers included.

    Raises:
        UserError: it has no such model.
    """
    config = model.config
    rules = rules_for(config)
    check_plain(config.vision, "the original vision tower")
    theirs = export_state(rules, {key: value.detach() for key, value in model.state_dict().items()})
    for key in list(theirs):
        if key.endswith("embeddings.position_embeddings.weight"):
            positions = torch.arange(config.text.max_positions).expand(1, -1).clone()
            theirs[key.replace("position_embeddings.weight", "position_ids")] = positions
    return theirs


def check_plain(vision: VisionConfig, theirs: str) -> None:
    """Refuse to export a tower that `theirs` cannot hold.

    Raises:
        UserError: see above.
    """
    if vision.stem != "patch":
        raise UserError(
            f'{theirs} cuts images into patches by one convolution, this model has stem = "conv"; '
            "convert it --to openblip or onnx"
        )
    if vision.registers:
        raise UserError(
            f"{theirs} has no tokens beside [CLS] and patches, this model has {vision.registers} registers; "
            "convert it --to openblip or onnx"
        )


def momentum_state(state: Mapping[str, Tensor], config: BlipConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Momentum copies and queues of an original training checkpoint, in the names of `BlipPretraining`."""
    rules = vision_rules(config.vision.depth, ours="vision.vit", theirs="visual_encoder_m")
    rules += transformer_rules(config.text.depth, "text_encoder", "text_encoder_m", cross_attention=False)
    rules += _pairs("vision_proj", "vision_proj_m") + _pairs("text_proj", "text_proj_m")
    momentum_copy = {}
    for rule in rules:
        parts = [state[name] for name in rule.theirs]
        momentum_copy[rule.ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
    size = state["image_queue"].shape[1]
    ids = state["idx_queue"].flatten().long() if "idx_queue" in state else torch.full((size,), -100)
    pointer = state["queue_ptr"] if "queue_ptr" in state else state["ptr_queue"]
    queue = {
        "images": state["image_queue"].T.contiguous(),
        "texts": state["text_queue"].T.contiguous(),
        "image_ids": ids,
        "position": pointer.reshape(()).long(),
    }
    return momentum_copy, queue
