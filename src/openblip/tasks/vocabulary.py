"""Texts of the training data, and the tokenizer of a text transformer that is trained from scratch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from openblip.checkpoints.bert import bert_config
from openblip.checkpoints.stored import PUBLISHED_TOKENIZER
from openblip.core.errors import UserError
from openblip.core.runtime import rank
from openblip.core.tokenizer import TextTokenizer
from openblip.data.clean import CleanText, cleaned
from openblip.data.sample import BrokenSample, name_of_image, stable_id
from openblip.data.sources.base import Source
from openblip.data.sources.questions import given_answers
from openblip.models.configs import TextConfig
from openblip.tasks.config import RunConfig

__all__ = [
    "all_answers",
    "texts_of_images",
    "tokenizer_from_scratch",
    "tokenizer_of_start",
    "training_texts",
    "vocab_size_from_scratch",
]

_MOST_TEXTS = 200_000


def training_texts(sources: Sequence[Source], *, clean: CleanText, limit: int) -> Iterator[str]:
    """Texts of the sources as training reads them, at most `limit`, spread evenly over each source."""
    each = max(1, limit // len(sources))
    for source in sources:
        stride = max(1, len(source) // each)
        for index in range(0, len(source), stride):
            with suppress(BrokenSample):  # counted when the loader meets it
                yield from (cleaned(text, clean) for text in source.without_drawing(index).texts)


def texts_of_images(sources: Sequence[Source], *, clean: CleanText) -> dict[int, list[str]]:
    """Every text of every image, by its id in the batches of these sources, as training reads them."""
    texts: dict[int, list[str]] = {}
    for source in sources:
        for index in range(len(source)):
            with suppress(BrokenSample):  # counted when the loader meets it
                sample = source.without_drawing(index)
                name = name_of_image(sample, source.name if len(sources) > 1 else None)
                own = texts.setdefault(stable_id(name), [])
                own += [read for text in sample.texts if (read := cleaned(text, clean))]
    return texts


def all_answers(sources: Sequence[Source]) -> Iterator[str]:
    """Every answer that the sources hold, as often as it was given, evenly shortened to a bound."""
    for source in sources:
        yield from given_answers(source, limit=max(1, _MOST_TEXTS // len(sources)))


def tokenizer_of_start(config: RunConfig) -> str | None:
    """The tokenizer to open the starting model with; None is its own.

    Raises:
        UserError: one is to be learned, whose ids would mean other texts than those that the model was trained on.
    """
    if config.tokenizer == "train":
        raise UserError(
            f'{config.model} has a tokenizer, whose ids it was trained on; leave tokenizer = "train" out'
        )
    return config.tokenizer or None


def tokenizer_from_scratch(
    config: RunConfig, sources: Sequence[Source], out: Path, *, default: str
) -> TextTokenizer:
    """The tokenizer that a configuration names, that of `text_pretrained`, or `default`.

    Args:
        out: the run's folder, where a tokenizer that is learned is kept.
        default: a hub name, or "train" to learn one from the texts.

    Raises:
        UserError: it cannot be had, or one is to be learned for a BERT that has its own.
    """
    name = _name_from_scratch(config, default)
    if name != "train":
        return TextTokenizer.load(name)
    folder = out / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        return TextTokenizer.load(folder)
    texts = training_texts(sources, clean=config.clean, limit=_MOST_TEXTS)
    if config.task == "answering" and config.family == "blip":
        texts = itertools.chain(texts, all_answers(sources))
    tokenizer = TextTokenizer.train(texts, vocab_size=config.vocab_size)
    if rank() == 0:
        tokenizer.save(folder)
    return tokenizer


def vocab_size_from_scratch(config: RunConfig, *, default: str) -> int:
    """Ids of the tokenizer that `tokenizer_from_scratch` gives; of one that is learned, the most that it may have.

    The published tokenizer is known, and one that comes with a BERT of the hub by the size of that BERT.

    Raises:
        UserError: as of `tokenizer_from_scratch`.
    """
    name = _name_from_scratch(config, default)
    if name == "train":
        return config.vocab_size
    if not Path(name).exists():
        if name == PUBLISHED_TOKENIZER:
            return TextConfig().vocab_size
        if not config.tokenizer:
            return bert_config(name).vocab_size + 2  # [DEC] and [ENC]
    return TextTokenizer.load(name).vocab_size


def _name_from_scratch(config: RunConfig, default: str) -> str:
    name = config.tokenizer or config.text_pretrained or default
    if name == "train" and config.text_pretrained:
        raise UserError(f'"{config.text_pretrained}" knows its own tokens only: leave tokenizer = "train" out')
    return name
