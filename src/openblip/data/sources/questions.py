"""Questions about images as the texts of samples, with the answers that were given beside them.

    source = open_questions("vqa.jsonl")
    sample = source[0]
    sample.texts                # ("what color is the bus?", "is it raining?")
    answers_of(sample.meta)     # {"what color is the bus?": GivenAnswers(("red", "orange"), (0.8, 0.2)), ...}
    asked_of(sample.meta)       # the same in the order of the texts, where a question may be there twice

All questions about an image make one sample, so that it is decoded and encoded once for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from openblip.core.errors import UserError
from openblip.data.cards.find import find_split
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources.answers import GivenAnswers, by_question, question_texts, read_questions
from openblip.data.sources.base import PairsSource, Source
from openblip.data.sources.digest import Digest
from openblip.data.sources.open import open_source

__all__ = ["Asked", "QuestionSource", "answers_of", "asked_of", "open_questions"]

WORLD_QUESTIONS = 4
"""about each image of the scene world, where its spec does not say"""
_ASKED = "asked"


@dataclass(frozen=True)
class Asked:
    """The questions about an image, in the order of the sample's texts."""

    questions: tuple[str, ...]
    given: tuple[GivenAnswers, ...]
    """the answers to each"""
    rule: str = ""
    """of accuracy, see `SourceConfig.rule`"""


class QuestionSource(Source):
    """Another source's questions, read.

    Args:
        source: with texts that `question_texts` made.
        rule: see `Asked`.
        weight: of all answers, see `SourceConfig.answer_weight`.
    """

    def __init__(self, source: Source, *, rule: str = "", weight: float = 1.0) -> None:
        super().__init__()
        self.name, self.bad_rows, self.frames = source.name, source.bad_rows, source.frames
        self.blocks, self.window = source.blocks, source.window
        self._source, self._rule, self._weight = source, rule, weight

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return self._read(self._source[index])

    def without_drawing(self, index: int) -> Sample:
        return self._read(self._source.without_drawing(index))

    def _read(self, sample: Sample) -> Sample:
        questions, given = read_questions(sample.texts)
        if self._weight != 1:
            given = tuple(replace(one, weights=tuple(self._weight * w for w in one.weights)) for one in given)
        if not questions:
            raise BrokenSample("no-text", sample.key, "there is no question about this image")
        return replace(sample, texts=questions, meta={**sample.meta, _ASKED: Asked(questions, given, self._rule)})

    def text_counts(self) -> np.ndarray:
        return self._source.text_counts()

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        digest.add("questions", self._weight)
        self._source.digest(digest, span, texts=texts)

    def describe(self) -> dict[str, Any]:
        return self._source.describe()


def open_questions(spec: SourceConfig | str) -> Source:
    """Open whatever `spec` names as questions with answers; see docs/vqa.md for the formats.

    Raises:
        UserError: as `open_source`; or the source holds no questions.
    """
    config = parse_spec(spec) if isinstance(spec, str) else spec
    config = replace(config, questions=True, need_texts=True)
    found = find_split(config)
    source: Source
    if config.path.startswith("world:"):
        from openblip.data.world.dataset import WorldSource, open_world

        world = open_world(config.path)
        if not world.config.questions_per_image:
            world = WorldSource(world.config, questions_per_image=WORLD_QUESTIONS)
        source = _WorldQuestions(world)
        source.name = config.name or config.path
    else:
        source = open_source(replace(config, pairs=False))
    each = 1 if config.pairs else config.max_questions
    source = PairsSource(source, each=each) if each else source
    return QuestionSource(
        source, rule=found.rule, weight=1.0 if found.answer_weight is None else found.answer_weight
    )


class _WorldQuestions(Source):
    """The scene world with the questions in its meta as texts."""

    def __init__(self, world: Source) -> None:
        super().__init__()
        self._world = world

    def __len__(self) -> int:
        return len(self._world)

    def __getitem__(self, index: int) -> Sample:
        return self._asking(self._world[index])

    def without_drawing(self, index: int) -> Sample:
        return self._asking(self._world.without_drawing(index))

    def _asking(self, sample: Sample) -> Sample:
        return replace(sample, texts=question_texts(sample.meta, {"question": "questions"}, sample.key))

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        self._world.digest(digest, span, texts=texts)

    def describe(self) -> dict[str, Any]:
        return self._world.describe()


def asked_of(meta: Mapping[str, Any]) -> Asked:
    """The questions of a sample, in the order of its texts.

    Raises:
        UserError: the sample has no questions.
    """
    asked = meta.get(_ASKED)
    if not isinstance(asked, Asked):
        raise UserError("this sample holds no questions with answers; open its source with open_questions")
    return asked


def answers_of(meta: Mapping[str, Any]) -> dict[str, GivenAnswers]:
    """What was answered to each question of a sample; one that was asked twice has the answers of both.

    Raises:
        UserError: the sample has no questions.
    """
    asked = asked_of(meta)
    return by_question(asked.questions, asked.given)


def given_answers(source: Source, *, limit: int) -> Iterable[str]:
    """Answers in a source, of at most `limit` images spread evenly over it."""
    stride = max(1, -(-len(source) // limit))
    for index in range(0, len(source), stride):
        try:
            answers = answers_of(source.without_drawing(index).meta)
        except BrokenSample:
            continue  # counted when the loader meets it
        for given in answers.values():
            yield from filter(None, given.texts)
