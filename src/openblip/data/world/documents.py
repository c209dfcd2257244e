"""Texts of the world for a language model that is to know the language and see no image.

    document(scene, rng)   # [Line("a dotted red star and ..."), Line("red", question="what color is ..."), ...]

A document is a few lines about one scene that nobody is shown: mostly a description first, then captions and
questions with answers, which only the lines before can tell. One that has read many knows the grammar, answers
questions about what was said, and can only guess where nothing was said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openblip.data.clean import clean_caption
from openblip.data.world.language import caption, realise
from openblip.data.world.questions import questions
from openblip.data.world.scene import Scene, random_stream, sample_scene
from openblip.data.world.words import Phrase, Statement

__all__ = ["ASKED", "Line", "document", "documents"]

ASKED = ("colour", "shape", "texture", "count", "exists")
"""kinds of questions whose answers a description tells"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a document: something said, or the answer to a question."""

    text: str
    question: str = ""


def document(
    scene: Scene, rng: np.random.Generator, *, lines: int = 3, described: float = 0.85, kinds: Sequence[str] = ASKED
) -> list[Line]:
    """Lines about `scene`, all true.

    Args:
        lines: after the description.
        described: share of documents that begin with one; the others leave the reader to guess.
    """
    found = []
    if rng.random() < described:
        told = describe(scene, rng) if rng.random() < 0.5 else caption(scene, rng, length="long")
        found.append(Line(clean_caption(told, None)))
    asked = iter(questions(scene, rng, lines, kinds=kinds))
    for _ in range(lines):
        question = next(asked, None) if rng.random() < 0.7 else None
        if question is None:
            found.append(Line(clean_caption(caption(scene, rng), None)))
        else:
            found.append(Line(question.answer, question.text))
    return found


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """All objects with all their attributes."""
    phrases = [Phrase(thing.shape, thing.colour, thing.texture, thing.size) for thing in scene.objects]
    return realise(Statement(tuple(phrases)), rng)


def documents(count: int, *, seed: int) -> list[list[Line]]:
    """Documents about `count` scenes of the split "train"."""
    return [
        document(sample_scene(seed, "train", index), random_stream(seed, "train", index, "captions"))
        for index in range(count)
    ]
