"""LAVIS' BLIP-2 checkpoints: stage 1 and stage 2, whole or with the trained part alone.

Published files hold the trained part: frozen vision and language come from their own sources. Sizes of the Q-Former
are read off the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.blip import (
    embedding_rules,
    head_rules,
    self_attention_rules,
    shared_block_rules,
    vision_rules,
)
from openblip.checkpoints.blip2_parts import (
    build_blip2,
    language_with_options,
    open_language_tokenizer,
    open_tokenizer,
    resize_vision,
)
from openblip.checkpoints.blip2_tower import with_own_vision
from openblip.checkpoints.keymap import Rule, Sizes, export_state, load_by_rules
from openblip.checkpoints.notes import Notes, heads_of, read_notes, write_notes
from openblip.checkpoints.state import NOTES, Checkpoint
from openblip.checkpoints.stored import PUBLISHED_TOKENIZER, Options, StoredModel
from openblip.core.errors import UserError
from openblip.models.blip2 import TEMPERATURE, Blip2, Blip2Config
from openblip.models.configs import LanguageConfig, QFormerConfig, TowerConfig, VisionConfig, as_language, as_tower
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD
from openblip.models.vision import VisionEncoder

__all__ = ["lavis_entries", "lavis_rules", "lavis_state", "load_lavis_state", "open_lavis", "qformer_from_state"]

_LAYER = "Qformer.bert.encoder.layer."
_PROJECTIONS = ("opt_proj", "t5_proj", "llm_proj")
_IGNORED = re.compile(r".*position_ids$")
_FROZEN = re.compile(r"^(visual_encoder|opt_model|t5_model|llm_model)\.")


def qformer_from_state(
    state: Mapping[str, Tensor], *, num_heads: int | None = None, source: str = "this checkpoint"
) -> QFormerConfig:
    """The Q-Former's sizes; None takes 64 channels for each head, as all published models have.

    Raises:
        UserError: a tensor is missing or of another rank.
    """
    sizes = Sizes(state, source)
    _, count, width = sizes.shape("query_tokens", 3)
    depth = sizes.count(re.escape(_LAYER) + r"(\d+)\.")
    reading = [i for i in range(depth) if f"{_LAYER}{i}.crossattention.self.key.weight" in state]
    embeddings = "Qformer.bert.embeddings"
    has_words = f"{embeddings}.word_embeddings.weight" in state
    return QFormerConfig(
        num_queries=count,
        width=width,
        depth=depth,
        num_heads=num_heads or heads_of(width, "Q-Former", source),
        inner_width=sizes.shape(f"{_LAYER}0.intermediate_query.dense.weight", 2)[0],
        cross_attention_every=reading[1] - reading[0] if len(reading) > 1 else depth,
        memory_width=sizes.shape(f"{_LAYER}0.crossattention.self.key.weight", 2)[1],
        vocab_size=sizes.shape(f"{embeddings}.word_embeddings.weight", 2)[0] if has_words else None,
        writes="Qformer.cls.predictions.bias" in state,
        max_positions=sizes.shape(f"{embeddings}.position_embeddings.weight", 2)[0] if has_words else 512,
    )


def _both(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def lavis_rules(model: Blip2, *, projection: str = "opt_proj") -> list[Rule]:
    """Rules of what is trained (the temperature, whose place may be missing, among it)."""
    config = model.config.qformer
    rules = [Rule("qformer.queries", ("query_tokens",)), *_both("vision_norm", "ln_vision")]
    embeddings = "Qformer.bert.embeddings"
    if config.vocab_size is None:
        rules += _both("qformer.embed_norm", f"{embeddings}.LayerNorm")
    else:
        names = {"word": "word", "position": "position", "norm": "embed_norm"}
        for rule in embedding_rules("", embeddings):
            first, _, rest = rule.ours[1:].partition(".")
            rules.append(Rule(f"qformer.{names[first]}.{rest}", rule.theirs))
    for i in range(config.depth):
        ours, theirs = f"qformer.blocks.{i}", f"{_LAYER}{i}"
        rules += self_attention_rules(f"{ours}.self_attention", f"{theirs}.attention")
        for rule in shared_block_rules(ours, theirs, cross_attention=i % config.cross_attention_every == 0):
            if ".feed_forward." not in rule.ours:
                rules.append(rule)
                continue
            if config.vocab_size is not None:
                rules.append(Rule(rule.ours.replace(".feed_forward.", ".text_feed_forward."), rule.theirs))
            query = tuple(
                re.sub(r"\.(intermediate|output)\.", r".\1_query.", name, count=1) for name in rule.theirs
            )
            rules.append(Rule(rule.ours.replace(".feed_forward.", ".query_feed_forward."), query))
    if config.vocab_size is not None and config.writes:
        rules += head_rules("qformer.head", "Qformer.cls")
        word = "qformer.word.weight"
        copy = (("Qformer.cls.predictions.decoder.weight",),)
        rules = [Rule(r.ours, r.theirs, copies=copy) if r.ours == word else r for r in rules]
    if model.config.matches:
        for name in ("vision_proj", "text_proj", "itm_head"):
            rules += _both(name, name)
        rules.append(Rule("temperature", ("temp",)))
    if model.config.language is not None:
        rules += _both("language_proj", projection)
    return rules


@torch.no_grad()
def load_lavis_state(model: Blip2, state: Mapping[str, Tensor], *, source: str) -> list[str]:
    """Load a LAVIS state dict; the frozen parts in it, if any, go into ours; returns keys that are not needed.

    Raises:
        UserError: a key is missing, unexpected or of another shape.
    """
    state = dict(state)
    projection = next((name for name in _PROJECTIONS if f"{name}.weight" in state), _PROJECTIONS[0])
    rules = lavis_rules(model, projection=projection)
    if model.config.matches and "temp" not in state:
        state["temp"] = torch.tensor(TEMPERATURE)
    frozen = {key: value for key, value in state.items() if _FROZEN.match(key)}
    trained = {key: value for key, value in state.items() if key not in frozen}
    needed = {name for rule in rules for name in (*rule.theirs, *(n for names in rule.copies for n in names))}
    extra = [key for key in trained if key not in needed and (_IGNORED.match(key) or _not_for(model, key))]
    parts = _TrainedPart(model)
    load_by_rules(parts, rules, trained, source=source, ignored=extra)
    used = _load_vision(model, frozen, source)
    used |= _load_language(model, frozen, source)
    return sorted({*extra, *(set(frozen) - used)})


def lavis_state(model: Blip2, *, instruct: bool = False) -> dict[str, Tensor]:
    """What LAVIS would have written, in its names: the trained part, and a tower that has no other source.

    Args:
        instruct: as of InstructBLIP, whose projection to a decoder has a name of its own.

    Raises:
        UserError: its files have no place for what this model does.
    """
    if model.language is not None and model.language.config.lora_rank:
        raise UserError("LAVIS' files have no place for LoRA; convert to openblip or transformers")
    if model.language is not None and model.llm.bos_first:
        raise UserError(
            "LAVIS puts the images' soft prompts before [BOS], and this model was trained with them after it "
            "(language.bos=first); convert it to openblip"
        )
    encoder_decoder = model.language is not None and model.language.is_encoder_decoder
    before_decoder = "llm_proj" if instruct else "opt_proj"
    rules = lavis_rules(model, projection="t5_proj" if encoder_decoder else before_decoder)
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    return export_state(rules, state) | (_vision_state(_plain_tower(model)) if _brings_vision(model) else {})


def lavis_entries(stored: StoredModel) -> dict[str, Any]:
    """A file of LAVIS: the state, and beside it what the tensors do not tell.

    Raises:
        UserError: as `lavis_state`.
    """
    model: Blip2 = stored.model
    if brings := _brings_vision(model):
        model = _plain_tower(model)  # once, since it copies the weights of another kind of tower
    config = model.config
    notes = write_notes(config.vision.own if brings else None, config.qformer)
    if config.vision_norm_eps != Blip2Config.vision_norm_eps:
        notes["vision_norm_eps"] = config.vision_norm_eps
    if config.language is not None:
        notes |= {"end": config.language.end, "begin": config.language.begin, "chat": model.llm.config.chat}
        notes |= {"reads_questions": _reads_questions(stored), "reads_prompts": stored.reads_prompts}
        notes |= {"prompt": stored.info["prompt"]} if "prompt" in stored.info else {}
    return {"model": lavis_state(model, instruct=stored.reads_prompts), NOTES: notes}


def _reads_questions(stored: StoredModel) -> bool:
    answers = stored.info.get("task") == "answering" and stored.model.config.qformer.vocab_size is not None
    return answers and not stored.reads_prompts


def _brings_vision(model: Blip2) -> bool:
    """Whether the tower's weights are nowhere else."""
    return model.config.vision.trained or model.config.vision.kind == "own"


def _plain_tower(model: Blip2) -> Blip2:
    """The model over a tower that LAVIS' files hold, itself if its own is one.

    Raises:
        UserError: they do not hold it.
    """
    tower = model.vision
    if (tuple(tower.mean), tuple(tower.std)) != (IMAGE_MEAN, IMAGE_STD):
        raise UserError(
            f"LAVIS normalises images with CLIP's mean and standard deviation, the trained tower "
            f"{tower.config.source} with others, so this model cannot be exported"
        )
    return with_own_vision(model, "LAVIS")


def _vision_state(model: Blip2) -> dict[str, Tensor]:
    """A plain tower in EVA's names; a bias of the keys, which changes no attention, only where it is not 0."""
    encoder = model.vision.encoder
    assert isinstance(encoder, VisionEncoder)
    rules = _vision_rules(encoder.config)
    state = export_state(rules, {key: value.detach().cpu() for key, value in encoder.state_dict().items()})
    for key in [key for key in state if key.endswith("attn.qkv.bias")]:
        place = key.removesuffix("qkv.bias")
        for letter, bias in zip("qkv", state.pop(key).chunk(3), strict=True):
            if letter != "k" or bias.any():
                state[f"{place}{letter}_bias"] = bias.clone()
    return state


def _vision_rules(own: VisionConfig) -> list[Rule]:
    return [rule for rule in vision_rules(own.depth, ours="vit") if own.final_norm or ".norm." not in rule.ours]


def _not_for(model: Blip2, key: str) -> bool:
    """Keys of parts that stage 1 has and this model was built without."""
    heads = key.startswith(("vision_proj.", "text_proj.", "itm_head.")) or key == "temp"
    if heads and not model.config.matches:
        return True
    if key.startswith("Qformer.cls."):
        return model.qformer.head is None
    return False


class _TrainedPart(torch.nn.Module):
    """A model without its frozen parts, for `load_by_rules`, under the same names."""

    def __init__(self, model: Blip2) -> None:
        super().__init__()
        for name, module in model.named_children():
            if name not in ("vision", "language"):
                self.add_module(name, module)
        if model.config.matches:
            self.temperature = model.temperature


def _load_vision(model: Blip2, frozen: Mapping[str, Tensor], source: str) -> set[str]:
    """EVA's names into a tower of our own; its queries and values have a bias and its keys have none."""
    state = {key: value for key, value in frozen.items() if key.startswith("visual_encoder.")}
    if not state or model.config.vision.kind != "own":
        return set()
    used = set(state)
    for key in [key for key in state if key.endswith("attn.q_bias")]:
        sizes, other = Sizes(state, source), key.replace("q_bias", "v_bias")
        if sizes.shape(key, 1) != sizes.shape(other, 1):
            raise UserError(f'{source}: "{key}" and "{other}" have different shapes')
        query, value, middle = state.pop(key), state.pop(other), key.replace("q_bias", "k_bias")
        keys = state.pop(middle, torch.zeros_like(query))
        if keys.shape != query.shape:
            raise UserError(f'{source}: "{key}" and "{middle}" have different shapes')
        state[key.replace("q_bias", "qkv.bias")] = torch.cat((query, keys, value))
    own = model.config.vision.own
    assert own is not None
    load_by_rules(model.vision.encoder, _vision_rules(own), state, source=source, ignored=())
    return used


def _load_language(model: Blip2, frozen: Mapping[str, Tensor], source: str) -> set[str]:
    state = {key.partition(".")[2]: value for key, value in frozen.items() if not key.startswith("visual_encoder.")}
    if not state or model.language is None:
        return set()
    hf = model.language.hf
    head, words = hf.get_output_embeddings(), hf.get_input_embeddings()
    own, other = state.get(_name_of(hf, head)), state.get(_name_of(hf, words))
    tied = own is None or other is None or (own.shape == other.shape and torch.equal(own, other))
    if head.weight is words.weight and not tied:
        # transformers ties T5's matrices until it has seen that the file's differ, as FlanT5's do.
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
    known = hf.state_dict()
    if unexpected := [key for key in state if key not in known]:
        raise UserError(f'the language model does not fit its configuration: "{unexpected[0]}" is unknown to it')
    # A tensor may stand under one of the names that share it.
    given = {known[key].data_ptr() for key in state}
    if missing := [key for key, value in known.items() if key not in state and value.data_ptr() not in given]:
        raise UserError(f'{source} has no "{missing[0]}" of its language model; it is incomplete')
    if wrong := [key for key, value in state.items() if value.shape != known[key].shape]:
        shapes = f"{tuple(state[wrong[0]].shape)}, not {tuple(known[wrong[0]].shape)}"
        raise UserError(f'{source}: "{wrong[0]}" of its language model has shape {shapes}')
    hf.load_state_dict(state, strict=False)
    return {key for key in frozen if not key.startswith("visual_encoder.")}


def _name_of(root: torch.nn.Module, wanted: torch.nn.Module) -> str:
    return next(f"{name}.weight" for name, module in root.named_modules() if module is wanted)


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
    ("llm_proj", 4096): LanguageConfig(source="lmsys/vicuna-7b-v1.1", chat="no", begin="</s>"),
    ("llm_proj", 5120): LanguageConfig(source="lmsys/vicuna-13b-v1.1", chat="no", begin="</s>"),
}


def open_lavis(path: Path, file: Checkpoint, options: Options) -> StoredModel:
    """Open a BLIP-2 checkpoint of LAVIS, stage 1 or stage 2; frozen parts come from their own sources.

    Args:
        options: `vision` and `language` are by default the published parts of the checkpoint's widths, `heads` what
            the file's notes tell, or else that of the published models.

    Raises:
        UserError: no published part has the width, and none is named; the file is incomplete.
    """
    state, heads = file.state, options.heads
    notes = read_notes(file.notes)
    num_heads = heads[-1] if heads else notes.text_heads
    qformer = qformer_from_state(state, num_heads=num_heads, source=path.name)
    matches = "itm_head.weight" in state and qformer.vocab_size is not None
    vision = _vision(state, options.vision, qformer.memory_width, path, heads[0] if heads else None, notes)
    language = language_with_options(_language(state, options.language, path, notes), options)
    # Before a language model the Q-Former has a text side where it reads the question.
    reads = not matches and language is not None and qformer.vocab_size is not None
    sizes = qformer if matches else replace(qformer, vocab_size=qformer.vocab_size if reads else None, writes=False)
    config = Blip2Config(
        vision=vision,
        qformer=replace(sizes, layer_norm_eps=notes.text_eps or sizes.layer_norm_eps),
        matches=matches,
        embed_dim=Sizes(state, path.name).shape("vision_proj.weight", 2)[0] if matches else 256,
        language=language,
        vision_norm_eps=notes.vision_norm_eps or Blip2Config.vision_norm_eps,
    )
    model = build_blip2(config)
    ignored = load_lavis_state(model, state, source=path.name)
    if options.image_size is not None:
        resize_vision(model, options.image_size, base=None, kept=model.config.vision.kind == "own")
    info: dict[str, Any] = {"source": path.name, "source_format": "lavis"}
    if reads and notes.reads_questions:
        info["task"] = "answering"
    elif reads and (notes.reads_questions is None if notes.reads_prompts is None else notes.reads_prompts):
        # LAVIS' models of stage 2 have no text side, its InstructBLIP has.
        info["reads_prompts"] = True
    if notes.prompt is not None:
        info["prompt"] = notes.prompt
    return StoredModel(
        model.eval(),
        open_tokenizer(config, options.tokenizer or PUBLISHED_TOKENIZER, named=path.name),
        info,
        ignored,
        None if config.language is None else open_language_tokenizer(config.language),
    )


def _vision(
    state: Mapping[str, Tensor],
    named: str | None,
    width: int,
    path: Path,
    heads: int | None = None,
    notes: Notes | None = None,
) -> TowerConfig:
    if named is not None:
        return as_tower(named)
    if "visual_encoder.pos_embed" in state:  # fine-tuned files hold the tower as well
        sizes, notes = Sizes(state, path.name), notes or Notes()
        heads = heads or notes.vision_heads
        patch = sizes.shape("visual_encoder.patch_embed.proj.weight", 4)[-1]
        side = round(sizes.num_patches("visual_encoder.pos_embed") ** 0.5) * patch
        own = VisionConfig(
            image_size=notes.image_size if notes.image_size and len(set(notes.image_size)) > 1 else side,
            patch_size=patch,
            width=width,
            depth=sizes.count(r"visual_encoder\.blocks\.(\d+)\."),
            num_heads=heads or (16 if width == 1408 else heads_of(width, "vision tower", path.name)),
            mlp_ratio=sizes.shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0] / width,
            layer_norm_eps=notes.vision_eps or VisionConfig.layer_norm_eps,
            final_norm=False,
        )
        return TowerConfig(source="own", own=own, drop_layers=0)
    if width not in _VISION_OF_WIDTH:
        raise UserError(
            f"{path.name} was trained over a vision tower {width} wide, which none of the published ones is; "
            'name it: vision="timm:NAME"'
        )
    return _VISION_OF_WIDTH[width]


def _language(state: Mapping[str, Tensor], named: str | None, path: Path, notes: Notes) -> LanguageConfig | None:
    """The language model by its width, or the one that is named, with what an export of ours tells of it."""
    told: dict[str, Any] = {name: getattr(notes, name) for name in ("end", "begin", "chat")}
    told = {name: value for name, value in told.items() if value is not None}
    kind = next((name for name in _PROJECTIONS if f"{name}.weight" in state), None)
    if kind is None:
        return None
    width = Sizes(state, path.name).shape(f"{kind}.weight", 2)[0]
    like = _LANGUAGE_OF_WIDTH.get((kind, width))
    if named is not None:
        config = as_language(named, LanguageConfig(end="\n") if kind == "opt_proj" else like)
        return replace(config, **told)
    if like is None:
        raise UserError(
            f"{path.name} was trained with a language model {width} wide, which none of the published ones is; "
            'name it: language="FOLDER or hub name"'
        )
    return replace(like, **told)
