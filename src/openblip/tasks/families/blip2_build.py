"""The BLIP-2 model that a run trains: from scratch, from a starting one, or a language model behind stage 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from openblip.checkpoints.bert import load_bert_into_qformer, qformer_sizes
from openblip.checkpoints.blip2_parts import build_blip2, open_language, open_language_tokenizer, open_tower
from openblip.core.compute import DTYPES, frozen_dtype
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.data.sources.base import Source
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import QFORMERS, LanguageConfig, TowerConfig
from openblip.tasks.config import FROM_PARTS, RunConfig
from openblip.tasks.families.blip2 import Blip2Adapter, open_blip2
from openblip.tasks.families.blip2_text_side import give_text_side
from openblip.tasks.families.family import Family
from openblip.tasks.protocols import Adapter
from openblip.tasks.vocabulary import tokenizer_from_scratch, tokenizer_of_start

__all__ = ["BLIP2", "refuse_from_parts"]


def build(config: RunConfig, sources: Sequence[Source], out: Path) -> Adapter:
    """The model that a run trains: from scratch, from a starting one, or a language model behind stage 1.

    Args:
        out: the run's folder, where a tokenizer that is learned is kept.

    Raises:
        UserError: a part is not to be had, or the starting model is of another kind.
    """
    refuse_from_parts(config)
    scratch = config.model in ("", *QFORMERS)
    stored = None if scratch else _open_start(config)
    if stored is not None:
        _refuse_other_parts(stored.model, config)
        if config.text_pretrained:
            give_text_side(stored, config)
    if config.fit_soft_prompts and (config.task != "captioning" or (stored and stored.model.language)):
        kept = (
            f"{config.model} has its projection and keeps it" if config.task == "captioning" else "captions fit it"
        )
        raise UserError(f"fit_soft_prompts starts a new projection by captions; {kept}; leave it out")
    if config.task in ("pretraining", "retrieval"):
        made = _from_scratch(config, sources, out) if stored is None else _with_heads(stored, config.model)
    elif stored is not None and stored.model.language is not None:
        made = _with_lora_and_chat(stored, config)
    else:
        made = _before_language(config, stored, sources, out)
    if config.reads_prompts:
        _read_prompts(made, config)
    if config.task == "answering" and made.tokenizer is None:
        made.begun.append(
            f"the Q-Former of {config.model} reads no text: the language model alone reads the questions "
            "(--set text_pretrained=STAGE1 gives it the text side of a model of stage 1)"
        )
    if config.unfreeze_vision:
        _unfreeze(made.model)
    if made.model.config.vision.trained:
        made.model.vision.freeze_unread()
    return made


def _read_prompts(made: Blip2Adapter, config: RunConfig) -> None:
    """Let the Q-Former read what the language model is prompted with."""
    if made.tokenizer is None:
        raise UserError(
            f"the Q-Former of {config.model} reads no text, so no prompt; start from a model of stage 1, or leave "
            "reads_prompts out"
        )
    made.info["reads_prompts"] = True


def _open_start(config: RunConfig) -> Blip2Adapter:
    """The starting model, its language model at once in the dtype and quantized as the configuration asks."""
    language, default = config.language, LanguageConfig().dtype
    stored = open_blip2(
        config.model,
        tokenizer_of_start(config),
        image_size=config.vision.image_size,
        language_dtype=frozen_dtype(language.dtype),
        quantize=language.quantize,
    )
    if stored.model.language is None or language.dtype in ("auto", default, stored.model.llm.config.dtype):
        return stored
    llm = stored.model.llm
    if llm.config.dtype != default or llm.config.quantize != "none":
        raise UserError(
            f"the language model of {config.model} is in {llm.config.dtype}, as it was trained with; leave "
            "language.dtype out"
        )
    llm.to_dtype(DTYPES[language.dtype])
    llm.config = replace(llm.config, dtype=language.dtype)
    stored.model.config = replace(stored.model.config, language=llm.config)
    return stored


def refuse_from_parts(config: RunConfig) -> None:
    """Refuse a size that only BLIP has.

    Raises:
        UserError: says what takes its place.
    """
    if config.model == FROM_PARTS:
        raise UserError(
            f'"{FROM_PARTS}" is a size of BLIP; a Q-Former takes its sizes from the BERT that --text names, so '
            "leave --model out"
        )


def _refuse_other_parts(model: Blip2, config: RunConfig) -> None:
    """A starting model keeps its frozen parts; another one that is named would not be trained with."""
    own = model.config
    for name, kept, wanted in (("vision", own.vision, config.vision), ("language", own.language, config.language)):
        if kept is None or wanted.source in (kept.source, type(wanted)().source):
            continue
        # One written into the model's folder says nothing of where it came from; a folder has several spellings.
        if kept.source != "own" and "./" not in kept.source and not _same_place(wanted, kept):
            raise UserError(
                f"{config.model} has its {name} part {kept.source} and keeps it; leave {wanted.source} out"
            )


def _same_place(*parts: TowerConfig | LanguageConfig) -> bool:
    places = [Path(part.place[1] if isinstance(part, TowerConfig) else part.source) for part in parts]
    return all(place.exists() for place in places) and places[0].samefile(places[1])


def _with_heads(stored: Blip2Adapter, source: str) -> Blip2Adapter:
    if not stored.model.config.matches:
        raise UserError(f"{source} has no heads for ITC and ITM; stage 1 starts from a model of stage 1")
    return stored


def _from_scratch(config: RunConfig, sources: Sequence[Source], out: Path) -> Blip2Adapter:
    tokenizer = tokenizer_from_scratch(config, sources, out, default="train")
    # A tower that is trained starts from whole weights, not from those rounded to the dtype of a frozen one.
    vision = replace(config.vision, dtype="float32") if config.unfreeze_vision else config.vision
    tower = open_tower(vision)
    sizes = replace(
        qformer_sizes(config.qformer, QFORMERS[config.model or "base"], config.text_pretrained),
        memory_width=tower.width,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
    )
    model = build_blip2(Blip2Config(vision=vision, qformer=sizes, embed_dim=config.embed_dim), vision=tower)
    adapter = Blip2Adapter(model, tokenizer)
    if config.text_pretrained:
        adapter.begun.append(load_bert_into_qformer(model.qformer, config.text_pretrained))
    else:
        model.qformer.start_queries_as_text()
    return adapter


def _with_lora_and_chat(stored: Blip2Adapter, config: RunConfig) -> Blip2Adapter:
    """A model of stage 2 whose language model gets LoRA where that is asked for, and is asked in a chat or not."""
    model, wanted = stored.model, config.language
    names = ("lora_rank", "lora_alpha", "lora_targets")
    lora, own = ({name: getattr(one, name) for name in names} for one in (wanted, model.llm.config))
    if wanted.lora_rank and not own["lora_rank"]:
        model.llm.add_lora(replace(model.llm.config, **lora))
    elif wanted.lora_rank and lora != own:
        kept = ", ".join(f"{name} = {value}" for name, value in own.items())
        raise UserError(f"{config.model} has LoRA and keeps it ({kept}); leave language.lora_rank out")
    model.llm.config = _with_chat(model.llm.config, stored.llm_tokenizer, config)
    model.config = replace(model.config, language=model.llm.config)
    return stored


def _with_chat(language: LanguageConfig, tokenizer: LanguageTokenizer, config: RunConfig) -> LanguageConfig:
    """A run settles whether its prompts stand in a chat, so that the model is used as it was trained."""
    chat = config.language.chat if config.language.chat != "auto" else language.chat
    if chat == "auto" and config.task == "answering":
        chat = "yes" if tokenizer.has_chat else "no"
    if chat == "yes":
        tokenizer.chat("")  # refuses where there is no template
    return replace(language, chat=chat)


def _before_language(
    config: RunConfig, stored: Blip2Adapter | None, sources: Sequence[Source], out: Path
) -> Blip2Adapter:
    """Stage 2: the Q-Former of stage 1, or one from scratch, before a language model."""
    started = _from_scratch(config, sources, out) if stored is None else stored
    first, language = started.model, open_language(config.language)
    language_tokenizer = open_language_tokenizer(config.language)
    language.settle_bos(language_tokenizer.puts_bos)
    language.config = _with_chat(language.config, language_tokenizer, config)
    reads = (config.task == "answering" or config.reads_prompts) and first.config.qformer.vocab_size is not None
    sizes = replace(first.config.qformer, writes=False)
    sizes = sizes if reads else replace(sizes, vocab_size=None)
    described = replace(first.config, qformer=sizes, matches=False, language=language.config)
    model = build_blip2(described, vision=first.vision, language=language)
    wanted = dict(model.named_parameters())
    kept = {name: value for name, value in first.state_dict().items() if name in wanted}
    model.load_state_dict(kept, strict=False)
    return Blip2Adapter(model, started.tokenizer if reads else None, language_tokenizer=language_tokenizer)


def _unfreeze(model: Blip2) -> None:
    tower = model.vision
    tower.config = replace(tower.config, trained=True, dtype="float32")
    tower.encoder.float().requires_grad_(True)
    model.config = replace(model.config, vision=tower.config)


BLIP2 = Family(name="blip2", build=build, adapters={Blip2: Blip2Adapter})
