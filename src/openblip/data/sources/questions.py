"""Questions about images as the texts of samples, with the answers that were given beside them.

    source = open_questions("vqa.jsonl")
    sample = source[0]
    sample.texts                # ("what color is the bus?", "is it raining?")
    answers_of(sample.meta)     # {"what color is the bus?": GivenAnswers(("red", "orange"), (0.8, 0.2)), ...}

All questions about an image make one sample, so that it is decoded and encoded once for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample, Sample
from openblip.data.sources.answers import GivenAnswers, question_texts, read_questions
from openblip.data.sources.base import PairsSource, Source, SourceConfig
from openblip.data.sources.digest import Digest
from openblip.data.sources.open import open_source, parse_spec

__all__ = ["QuestionSource", "answers_of", "open_questions"]

WORLD_QUESTIONS = 4
"""about each image of the scene world, where its spec does not say"""
_ANSWERS = "answers"


class QuestionSource(Source):
    """Another source's questions, read.

    Args:
        source: with texts that `question_texts` made, or with questions in `Sample.meta`.
        column: the name in `Sample.meta`; "" takes the texts.
    """

    def __init__(self, source: Source, *, column: str = "") -> None:
        super().__init__()
        self.name, self.bad_rows = source.name, source.bad_rows
        self.blocks, self.window = source.blocks, source.window
        self._source, self._column = source, column

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[index]
        texts = sample.texts
        if self._column:
            texts = question_texts(sample.meta, {"question": self._column}, sample.key)
        questions, answers = read_questions(texts)
        if not questions:
            raise BrokenSample("no-text", sample.key, "there is no question about this image")
        return replace(sample, texts=questions, meta={**sample.meta, _ANSWERS: answers})

    def text_counts(self) -> np.ndarray:
        return super().text_counts() if self._column else self._source.text_counts()

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        digest.add("questions", self._column)
        self._source.digest(digest, span, texts=texts)

    def describe(self) -> dict[str, Any]:
        return self._source.describe()


def open_questions(spec: SourceConfig | str) -> Source:
    """Open whatever `spec` names as questions with answers; see docs/vqa.md for the formats.

    Raises:
        UserError: as `open_source`; or the source holds no questions.
    """
    config = parse_spec(spec) if isinstance(spec, str) else spec
    source: Source
    if config.path.startswith("world:"):
        from openblip.data.world.dataset import WorldSource, open_world

        world = open_world(config.path)
        if not world.config.questions_per_image:
            world = WorldSource(world.config, questions_per_image=WORLD_QUESTIONS)
        source = QuestionSource(world, column="questions")
        source.name = config.name or config.path
    else:
        source = QuestionSource(open_source(replace(config, questions=True, pairs=False, need_texts=True)))
    each = 1 if config.pairs else config.max_questions
    return PairsSource(source, each=each) if each else source


def answers_of(meta: Mapping[str, Any]) -> dict[str, GivenAnswers]:
    """What was answered to each question of a sample.

    Raises:
        UserError: the sample has no questions.
    """
    answers = meta.get(_ANSWERS)
    if not isinstance(answers, dict):
        raise UserError("this sample holds no questions with answers; open its source with open_questions")
    return answers


def given_answers(source: Source, *, limit: int) -> Iterable[str]:
    """Answers in a source, of at most `limit` images spread evenly over it."""
    stride = max(1, -(-len(source) // limit))
    for index in range(0, len(source), stride):
        try:
            answers = answers_of(source[index].meta)
        except BrokenSample:
            continue  # counted when the loader meets it
        for given in answers.values():
            yield from given.texts
