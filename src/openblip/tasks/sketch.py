"""A run's training step and one batch without values: in the sizes that its configuration names, nothing is read.

    step, batch = sketch(config)
    predicted_cost(step, batch)

A starting model, tower or BERT counts by its folder's config.json alone. Texts are as long as `max_length` allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.bert import qformer_sizes
from openblip.checkpoints.blip2_parts import place_of_part
from openblip.checkpoints.recognise import KINDS
from openblip.checkpoints.state import find
from openblip.checkpoints.stored import PUBLISHED_TOKENIZER
from openblip.checkpoints.vit import read_vit
from openblip.core.config import from_dict
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageBatch
from openblip.core.meta import on_meta
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import SIZES, Blip, BlipConfig
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import QFORMERS, TextConfig, TowerConfig
from openblip.models.language import FrozenLanguage
from openblip.models.language_sizes import language_of_size
from openblip.models.nlvr import BlipNlvr
from openblip.models.tower import FrozenTower, make_tower
from openblip.models.vision import VisionEncoder
from openblip.models.vqa import BlipVqa
from openblip.objectives.answering import VqaObjective
from openblip.objectives.blip2 import Blip2Stage1, Blip2Stage2
from openblip.objectives.nlvr import NlvrObjective
from openblip.objectives.pretraining import BlipPretraining
from openblip.tasks.answering import QuestionBatch, VqaStep
from openblip.tasks.captioning import LanguagePairBatch, Stage2Step
from openblip.tasks.config import FROM_PARTS, RunConfig
from openblip.tasks.families.blip import (
    default_tokenizer,
    nlvr_sizes,
    parts_of,
    refuse_unnamed_parts,
    sizes_from_scratch,
    vqa_sizes,
)
from openblip.tasks.families.blip2_build import refuse_from_parts
from openblip.tasks.nlvr import NlvrStep, StatementBatch
from openblip.tasks.pairs import BlipStep, Stage1Step, stage1_for
from openblip.tasks.step import PairBatch, PreparedBatch, TrainingStep
from openblip.tasks.vocabulary import vocab_size_from_scratch

__all__ = ["ANSWERS", "ANSWER_TOKENS", "QUESTIONS", "ROUNDS", "sketch"]

QUESTIONS, ANSWERS, ANSWER_TOKENS = 5, 3, 6
"""an image's questions where they are not taken apart, a question's different answers, and an answer's tokens"""
ROUNDS = 10
"""of a dialog, which have an answer each"""
_ENC, _DEC = 1, 2  # of a tokenizer that is not read; without values any will do

MakeBatch = Callable[[], PreparedBatch]


def sketch(config: RunConfig) -> tuple[TrainingStep[Any], MakeBatch]:
    """The step of a run on "meta", and what makes a batch where tensors have no values.

    Raises:
        UserError: a size is not known without reading weights, or the run is of a kind that is not predicted.
    """
    if config.scst.samples:
        raise UserError("self-critical training is not predicted: how long it writes depends on the model")
    with on_meta():
        step, pixels = (_blip if config.family == "blip" else _blip2)(config)
    step.train()
    if config.train.gradient_checkpointing:
        step.gradient_checkpointing_enable(config.train.gradient_checkpointing)
    return step, _batches(config, step, pixels)


def _refused(config: RunConfig) -> UserError:
    return UserError(f'a run of task = "{config.task}" with {config.family} is not predicted')


# Models -------------------------------------------------------------------------------------------------------


def _blip(config: RunConfig) -> tuple[TrainingStep[Any], tuple[int, ...]]:
    sizes = _blip_sizes(config)
    pixels = (3, *sizes.vision.pixels)
    if config.task in ("answering", "dialog"):
        smoothing = config.answering.label_smoothing
        objective = VqaObjective(BlipVqa(vqa_sizes(sizes)), enc_id=_ENC, dec_id=_DEC, label_smoothing=smoothing)
        return VqaStep(objective), pixels
    if config.task == "nlvr":
        return NlvrStep(NlvrObjective(BlipNlvr(nlvr_sizes(sizes)), enc_id=_ENC)), (2, *pixels)
    wanted = {
        "pretraining": config.objective.objectives,
        "captioning": ("lm",),
        "retrieval": ("itc", "itm"),
    }.get(config.task)
    if wanted is None:
        raise _refused(config)
    parts: dict[str, Any] = parts_of(config)
    model = Blip(replace(sizes, **parts))
    chosen = replace(config.objective, objectives=tuple(wanted))
    return BlipStep(BlipPretraining(model, chosen, enc_id=_ENC, dec_id=_DEC)), pixels


def _blip_sizes(config: RunConfig) -> BlipConfig:
    size = config.model or "base"
    if size in (*SIZES, FROM_PARTS):
        refuse_unnamed_parts(config)
        vocab_size = vocab_size_from_scratch(config, default=default_tokenizer(size))
        # What a pretrained tower changes in the sizes of a preset is nothing that counts.
        donor = read_vit(config.vision_pretrained, weights=False) if size == FROM_PARTS else None
        return sizes_from_scratch(config, size, donor, vocab_size=vocab_size)
    found = _described(size, "blip")
    sizes = BlipConfig(vision=found.vision, text=found.text)
    if config.image_size is None:
        return sizes
    return replace(sizes, vision=replace(sizes.vision, image_size=config.image_size))


def _blip2(config: RunConfig) -> tuple[TrainingStep[Any], tuple[int, ...]]:
    writes = config.task in ("captioning", "answering")
    if not writes and config.task not in ("pretraining", "retrieval"):
        raise _refused(config)
    sizes = _blip2_sizes(config)
    tower = _tower(_on_gpu(sizes.vision, trained=config.unfreeze_vision), config.model)
    qformer = replace(sizes.qformer, memory_width=tower.width)
    if not writes:
        model = Blip2(replace(sizes, qformer=qformer, language=None), tower, None)
        chosen = stage1_for(config, writes=model.qformer.head is not None)
        return Stage1Step(Blip2Stage1(model, chosen, dec_id=_DEC)), (3, *tower.pixels)
    asks = config.task == "answering" or config.reads_prompts
    reads = asks and sizes.qformer.vocab_size is not None
    qformer = replace(qformer, writes=False, vocab_size=qformer.vocab_size if reads else None)
    language = _on_gpu(sizes.language or config.language)
    if language.quantize != "none":
        raise UserError("quantized language models are not predicted; leave language.quantize out")
    llm = FrozenLanguage(language_of_size(language.source), language)
    described = replace(sizes, vision=tower.config, qformer=qformer, matches=False, language=language)
    return Stage2Step(Blip2Stage2(Blip2(described, tower, llm), eos_id=_DEC)), (3, *tower.pixels)


def _blip2_sizes(config: RunConfig) -> Blip2Config:
    """Those of the starting model, or of a Q-Former from scratch: as it is set, or as the BERT has it."""
    refuse_from_parts(config)
    if config.model in ("", *QFORMERS):
        name = config.text_pretrained
        # What is published under this name is known without asking the hub.
        known = TextConfig() if name == PUBLISHED_TOKENIZER and not Path(name).exists() else None
        sizes = qformer_sizes(config.qformer, QFORMERS[config.model or "base"], name, known)
        sizes = replace(sizes, vocab_size=vocab_size_from_scratch(config, default="train"))
        return Blip2Config(vision=config.vision, qformer=sizes, embed_dim=config.embed_dim)
    found: Blip2Config = _described(config.model, "blip2")
    # One of stage 2 may have no text side; what is predicted of stage 1 in other formats has BERT's.
    reads = found.language is None or (config.task == "answering" and config.text_pretrained)
    vocab_size = found.qformer.vocab_size or (30524 if reads else None)
    if config.vision.image_size is not None:
        found = replace(found, vision=found.vision.at(config.vision.image_size))
    return replace(found, qformer=replace(found.qformer, vocab_size=vocab_size))


def _on_gpu(part: Any, **changes: Any) -> Any:
    """A frozen part as a GPU keeps it where "auto" leaves that open; one that is trained in float32."""
    dtype = "bfloat16" if part.dtype == "auto" else part.dtype
    return replace(part, **changes, dtype="float32" if changes.get("trained") else dtype)


def _tower(config: TowerConfig, model: str) -> FrozenTower:
    """The tower without its weights; that of a BLIP model by the sizes in its folder."""
    if config.kind != "openblip":
        return make_tower(config, pretrained=False)
    folder = place_of_part(config.place[1], Path(model) if model else None)
    return make_tower(config, pretrained=False, blip_vision=VisionEncoder(_described(folder, "blip").vision))


def _described(source: str, family: str) -> Any:
    """The sizes in the config.json of a model's folder.

    Raises:
        UserError: there is no such folder, it is of another format than ours, or of another family.
    """
    if not Path(source).is_dir():
        raise UserError(f"the sizes of {source} are not known; give a size or a folder, or leave --model out")
    found = find(source)
    if not found.own:
        raise UserError(f"{source} is of transformers; openblip convert writes a folder whose sizes are known")
    kind = next(own for own, known in KINDS.items() if known.name == found.description["model_type"])
    if KINDS[kind].family != family:
        raise UserError(f"{source} is of {KINDS[kind].family}, and the run of {family}")
    return from_dict(kind, found.description.get("model"), where="model")


# Batches ------------------------------------------------------------------------------------------------------


def _tokens(rows: int, length: int) -> TokenBatch:
    return TokenBatch(torch.zeros(rows, length, dtype=torch.int64), torch.ones(rows, length, dtype=torch.bool))


def _written(rows: int, read: int, scored: int) -> LanguageBatch:
    """Texts of which the last tokens are scored, at places that are named: what has no values is not searched."""
    ids = torch.zeros(rows, read + scored, dtype=torch.int64)
    mask = torch.ones_like(ids, dtype=torch.bool)
    return LanguageBatch(ids, mask, mask, mask, torch.arange(rows * scored))


def _batches(config: RunConfig, step: TrainingStep[Any], pixels: tuple[int, ...]) -> MakeBatch:
    rows, length, model = config.batch_size, config.max_length, step.model

    def images() -> Tensor:
        if not config.features:
            return torch.zeros(rows, *pixels, dtype=torch.uint8)
        features = model.vision(torch.zeros(1, *pixels)).expand(rows, -1, -1).contiguous()
        model.vision.encoder = nn.Identity()  # it is not there: the features are cached
        return features

    def make() -> PreparedBatch:
        shown, ids = images(), torch.zeros(rows, dtype=torch.int64)
        if config.task == "nlvr":
            return StatementBatch(shown, _tokens(rows, length), None, ids)
        if config.family == "blip" and config.task in ("answering", "dialog"):
            apart, each = all(source.pairs for source in config.sources), ANSWERS
            asked = rows * (1 if apart else QUESTIONS)
            if config.task == "dialog":
                asked, each = rows * ROUNDS, 1
            answers = _tokens(asked * each, ANSWER_TOKENS)
            weights = torch.ones(len(answers.input_ids))
            return QuestionBatch(shown, _tokens(asked, length), None, answers, None, weights)
        if config.family == "blip" or config.task in ("pretraining", "retrieval"):
            return PairBatch(shown, _tokens(rows, length), ids)
        asks = config.task == "answering"
        # A Q-Former without a text side leaves the questions to the language model.
        reads = (asks or config.reads_prompts) and model.config.qformer.vocab_size is not None
        questions = _tokens(rows, length) if reads else None
        read, scored = (length, ANSWER_TOKENS) if asks else (0, length)
        if not model.llm.is_encoder_decoder:
            return LanguagePairBatch(shown, _written(rows, read, scored), ids, questions=questions)
        read, scored = (read, scored) if asks else (length // 2, length - length // 2)
        prefix = _written(rows, 0, read)
        return LanguagePairBatch(shown, _written(rows, 0, scored), ids, questions=questions, prefix=prefix)

    return make
