"""Models to train with their tokenizers: of a size, from a pre-trained one, or from one of another kind."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from openblip.checkpoints.bert import load_bert
from openblip.checkpoints.store import StoredModel, open_model
from openblip.core.errors import UserError
from openblip.core.files import write_text
from openblip.core.runtime import rank
from openblip.core.text import read_list
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import BrokenSample
from openblip.data.sources.base import Source
from openblip.data.sources.questions import given_answers
from openblip.data.transforms import clean_caption
from openblip.models.blip import SIZES, Blip, blip_config
from openblip.models.vqa import BlipVqa, VqaConfig
from openblip.tasks.run_config import RunConfig

__all__ = ["answer_list", "build_blip", "build_vqa", "training_texts"]

_MOST_TEXTS = 200_000


def build_blip(config: RunConfig, sources: Sequence[Source], out: Path) -> tuple[Blip, TextTokenizer]:
    """The model to train on captions, and its tokenizer.

    Args:
        out: the run's folder, where a tokenizer that is learned is kept.
    """
    if config.model in SIZES:
        wanted = config.objective.objectives
        return _fresh(config, sources, out, encoder="itc" in wanted, decoder="lm" in wanted)
    stored = _stored(config)
    model = stored.blip
    if config.parts != "both":
        model = model.part(encoder=config.parts == "matcher", decoder=config.parts == "captioner")
    return model, stored.tokenizer


def build_vqa(config: RunConfig, sources: Sequence[Source], out: Path) -> tuple[BlipVqa, TextTokenizer]:
    """The model to train on questions, from a pre-trained BLIP, from one that answers already, or afresh."""
    if config.model in SIZES:
        start, tokenizer = _fresh(config, sources, out, encoder=True, decoder=True)
    else:
        stored = _stored(config)
        tokenizer = stored.tokenizer
        if isinstance(stored.model, BlipVqa):
            return stored.model, tokenizer
        start = stored.blip
    model = BlipVqa(VqaConfig(vision=start.config.vision, text=start.config.text))
    model.start_from(start)
    return model, tokenizer


def _stored(config: RunConfig) -> StoredModel:
    named = None if config.tokenizer in ("", "train") else config.tokenizer
    return open_model(config.model, tokenizer=named, image_size=config.image_size)


def _fresh(
    config: RunConfig, sources: Sequence[Source], out: Path, *, encoder: bool, decoder: bool
) -> tuple[Blip, TextTokenizer]:
    tokenizer = _fresh_tokenizer(config, sources, out)
    sizes = blip_config(config.model, vocab_size=tokenizer.vocab_size, image_size=config.image_size)
    sizes = replace(sizes, encoder=encoder, decoder=decoder)
    if config.vision_pretrained:
        sizes = replace(sizes, vision=replace(sizes.vision, pretrained=config.vision_pretrained))
    model = Blip(sizes)
    if config.vision_pretrained:
        model.vision.load_pretrained()
    if config.text_pretrained:
        load_bert(model, config.text_pretrained)
    return model, tokenizer


def _fresh_tokenizer(config: RunConfig, sources: Sequence[Source], out: Path) -> TextTokenizer:
    small = config.model in ("nano", "micro")
    name = config.tokenizer or config.text_pretrained or ("train" if small else "bert-base-uncased")
    if name == "train" and config.text_pretrained:
        raise UserError(f'"{config.text_pretrained}" knows its own tokens only: leave tokenizer = "train" out')
    if name != "train":
        return TextTokenizer.load(name)
    folder = out / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        return TextTokenizer.load(folder)
    texts = training_texts(sources, clean=config.clean, limit=_MOST_TEXTS)
    if config.task == "vqa":
        texts = itertools.chain(texts, _all_answers(sources))
    tokenizer = TextTokenizer.train(texts, vocab_size=config.vocab_size)
    if rank() == 0:
        tokenizer.save(folder)
    return tokenizer


def training_texts(sources: Sequence[Source], *, clean: str, limit: int) -> Iterator[str]:
    """Texts of the sources as training sees them, at most `limit`, spread evenly over each source."""
    each = max(1, limit // len(sources))
    for source in sources:
        stride = max(1, len(source) // each)
        for index in range(0, len(source), stride):
            with suppress(BrokenSample):  # counted when the loader meets it
                yield from (_cleaned(text, clean) for text in source[index].texts)


def _cleaned(text: str, clean: str) -> str:
    return text if clean == "none" else clean_caption(text, None, simplify=clean == "simplify")


def _all_answers(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        yield from given_answers(source, limit=max(1, _MOST_TEXTS // len(sources)))


def answer_list(config: RunConfig, sources: Sequence[Source], out: Path) -> list[str]:
    """The answers to choose from when ranking: those of a file, or of the training data, the most frequent first.

    Args:
        out: the run's folder, where they are kept as answers.txt.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    named = config.answering.answers
    file = Path(named) if named else out / "answers.txt"
    if named or file.is_file():
        try:
            lines = read_list(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read as a list of answers: {error}") from error
        if answers := list(dict.fromkeys(lines)):
            return answers
        raise UserError(f"{file} holds no answers; write one on each line")
    counts = Counter(" ".join(answer.split()) for answer in _all_answers(sources))
    answers = sorted(counts, key=lambda answer: (-counts[answer], answer))[: config.answering.max_answers]
    if rank() == 0:
        write_text(file, "".join(f"{answer}\n" for answer in answers))
    return answers
