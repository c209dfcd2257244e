"""The BLIP-2 model that a run trains, with its tokenizers: fresh, gone on from, or stage 2 over stage 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from openblip.checkpoints.bert import load_bert_into_qformer
from openblip.checkpoints.blip2_parts import build_blip2, open_language, open_language_tokenizer, open_tower
from openblip.checkpoints.store import StoredModel, open_model
from openblip.core.errors import UserError
from openblip.core.runtime import rank
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sources.base import Source
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.tasks.blip2.config import Blip2RunConfig
from openblip.tasks.build import training_texts

__all__ = ["build", "open_blip2"]

_MOST_TEXTS = 200_000


def build(config: Blip2RunConfig, sources: Sequence[Source], out: Path) -> StoredModel:
    """What is trained.

    Args:
        out: the run's folder, where a tokenizer that is learned is kept.

    Raises:
        UserError: a part is not to be had, or the model to go on from is of another kind.
    """
    named = None if config.tokenizer in ("", "train") else config.tokenizer
    stored = open_blip2(config.model, named) if config.model else None
    if config.stage == "stage1":
        made = _fresh(config, sources, out) if stored is None else _with_heads(stored, config.model)
    elif stored is not None and stored.model.language is not None:
        made = _with_options(stored, config)
    else:
        made = _before_language(config, stored, sources, out)
    if config.task == "questions" and made.tokenizer is None:
        raise UserError(
            f"the Q-Former of {config.model} reads no text, and questions are for it to read too; "
            "start from a model of stage 1"
        )
    if config.unfreeze_vision:
        _unfreeze(made.model)
    return made


def open_blip2(source: Path | str, tokenizer: str | None = None) -> StoredModel:
    """Open a BLIP-2 model from anywhere; `tokenizer` as for `open_model`.

    Raises:
        UserError: as `open_model`, or it is a model of another kind.
    """
    stored = open_model(source, tokenizer=tokenizer)
    if not isinstance(stored.model, Blip2):
        raise UserError(f"{source} is no BLIP-2 model; one with a Q-Former is needed")
    return stored


def _with_heads(stored: StoredModel, source: str) -> StoredModel:
    if not stored.model.config.matches:
        raise UserError(f"{source} has no heads for ITC and ITM; stage 1 goes on from a model of stage 1")
    return stored


def _fresh(config: Blip2RunConfig, sources: Sequence[Source], out: Path) -> StoredModel:
    tokenizer = _tokenizer(config, sources, out)
    tower = open_tower(config.vision)
    sizes = replace(config.qformer, memory_width=tower.width, vocab_size=tokenizer.vocab_size)
    model = build_blip2(Blip2Config(vision=config.vision, qformer=sizes, embed_dim=config.embed_dim), vision=tower)
    if config.text_pretrained:
        load_bert_into_qformer(model.qformer, config.text_pretrained)
    _start_query_layers(model)
    return StoredModel(model, tokenizer)


@torch.no_grad()
def _start_query_layers(model: Blip2) -> None:
    """The queries' feed-forwards start as the text's, as in the reference."""
    for block in model.qformer.qformer_blocks:
        if block.text_feed_forward is not None:
            block.query_feed_forward.load_state_dict(block.text_feed_forward.state_dict())


def _with_options(stored: StoredModel, config: Blip2RunConfig) -> StoredModel:
    """A model of stage 2 whose language model gets LoRA, or fewer bits, where the configuration asks for them."""
    model, wanted = stored.model, config.language
    kept = model.llm.config
    if wanted.quantize not in ("none", kept.quantize):
        if kept.lora_rank:
            raise UserError(f"{config.model} has LoRA over whole matrices; leave language.quantize out")
        fewer = replace(kept, quantize=wanted.quantize)
        model.language = None
        model.language = open_language(fewer, base=Path(config.model))
    if wanted.lora_rank and not kept.lora_rank:
        lora = {name: getattr(wanted, name) for name in ("lora_rank", "lora_alpha", "lora_targets")}
        model.llm.add_lora(replace(model.llm.config, **lora))
    model.config = replace(model.config, language=model.llm.config)
    return stored


def _before_language(
    config: Blip2RunConfig, stored: StoredModel | None, sources: Sequence[Source], out: Path
) -> StoredModel:
    """Stage 2: the Q-Former of stage 1, or a fresh one, before a language model."""
    started = _fresh(config, sources, out) if stored is None else stored
    first, language = started.model, open_language(config.language)
    reads = config.task == "questions" and first.config.qformer.vocab_size is not None
    sizes = replace(first.config.qformer, writes=False)
    sizes = sizes if reads else replace(sizes, vocab_size=None)
    described = replace(first.config, qformer=sizes, matches=False, language=config.language)
    model = build_blip2(described, vision=first.vision, language=language)
    wanted = dict(model.named_parameters())
    kept = {name: value for name, value in first.state_dict().items() if name in wanted}
    model.load_state_dict(kept, strict=False)
    words = open_language_tokenizer(config.language)
    return StoredModel(model, started.tokenizer if reads else None, {}, [], words)


def _unfreeze(model: Blip2) -> None:
    tower = model.vision
    tower.config = replace(tower.config, trained=True, dtype="float32")
    tower.encoder.float().requires_grad_(True)
    model.config = replace(model.config, vision=tower.config)


def _tokenizer(config: Blip2RunConfig, sources: Sequence[Source], out: Path) -> TextTokenizer:
    name = config.tokenizer or config.text_pretrained or "train"
    if name != "train":
        return TextTokenizer.load(name)
    if config.text_pretrained:
        raise UserError(f'"{config.text_pretrained}" knows its own tokens only: leave tokenizer = "train" out')
    folder = out / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        return TextTokenizer.load(folder)
    texts = training_texts(sources, clean=config.clean, limit=_MOST_TEXTS)
    tokenizer = TextTokenizer.train(texts, vocab_size=config.vocab_size)
    if rank() == 0:
        tokenizer.save(folder)
    return tokenizer
