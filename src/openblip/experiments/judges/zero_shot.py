"""Zero-shot answers in the scene world: questions to a language model that met none together with an image.

    asked = ask_about(scenes, seed=0)                                # one question of each kind about each scene
    accuracy(asked, answers(llm, words, asked, soft=soft))           # BLIP-2
    accuracy(asked, answers(llm, words, asked))                      # the same language model, which sees nothing
    accuracy(asked, answers(llm, words, asked, told=descriptions))   # and which is told what is there

Answers are written freely, as `openblip ask` writes them, and compared with those that the world accepts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.data.clean import clean_caption
from openblip.data.world.documents import ASKED, describe
from openblip.data.world.questions import Question, check_answer, questions
from openblip.data.world.scene import COLOURS, SHAPES, TEXTURES, Scene, random_stream
from openblip.experiments.judges.text_only import BETWEEN_LINES
from openblip.generation.config import DecodeConfig
from openblip.generation.language import decode_after
from openblip.models.language import FrozenLanguage
from openblip.tasks.config import QUESTION_PROMPTS

__all__ = ["CHOICES", "Asked", "accuracy", "answers", "ask_about", "descriptions", "guessing"]

_SHORT = DecodeConfig(max_new_tokens=4)
_BATCH = 256
CHOICES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "texture": TEXTURES,
    "count": ("zero", "one", "two", "three", "four"),
    "exists": ("yes", "no"),
}
"""the usual answers to each kind of question"""


@dataclass(frozen=True)
class Asked:
    """A question about the scene of number `row`."""

    row: int
    question: Question


def ask_about(scenes: Sequence[Scene], *, seed: int = 0, novel: bool = False) -> list[Asked]:
    """One question of each kind about each scene that allows it; rows of one scene stand together.

    Args:
        seed: of what is drawn for each question.
        novel: whether held-out pairs of shape and colour may be named.
    """
    found = []
    for row, scene in enumerate(scenes):
        rng = random_stream(seed, "test", row, "questions")
        for kind in ASKED:
            found += [Asked(row, question) for question in questions(scene, rng, 1, kinds=(kind,), novel=novel)]
    return found


def descriptions(scenes: Sequence[Scene], *, seed: int, split: str) -> list[str]:
    """Each scene in words, all objects with all attributes, for `answers` to be told."""
    drawn = [random_stream(seed, split, row, "captions") for row in range(len(scenes))]
    return [clean_caption(describe(scene, rng), None) for scene, rng in zip(scenes, drawn, strict=True)]


def answers(
    llm: FrozenLanguage,
    language_tokenizer: LanguageTokenizer,
    asked: Sequence[Asked],
    *,
    soft: Tensor | None = None,
    told: Sequence[str] | None = None,
) -> list[str]:
    """What the language model writes, most probable word by word.

    Args:
        soft: soft prompts [scenes, Q, L] of a BLIP-2 model; None shows no image.
        told: a text about each scene to read before the question.
    """
    found: list[str] = []
    weight = llm.hf.get_input_embeddings().weight
    between = (
        BETWEEN_LINES
        if llm.is_encoder_decoder
        else f" {language_tokenizer.hf.eos_token} {language_tokenizer.hf.bos_token} "
    )
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        prompts = [QUESTION_PROMPTS[llm.is_encoder_decoder].replace("{}", one.question.text) for one in part]
        if told is not None:
            prompts = [told[one.row] + between + prompt for one, prompt in zip(part, prompts, strict=True)]
        rows = torch.tensor([one.row for one in part], device=weight.device)
        prompt = weight.new_zeros(len(part), 0, llm.width) if soft is None else soft[rows]
        decoded = decode_after(llm, language_tokenizer, prompt, _SHORT, prompts=prompts)
        found += [language_tokenizer.decode(ids) for _, ids, _, _ in decoded.texts()]
    return found


def accuracy(asked: Sequence[Asked], given: Sequence[str]) -> dict[str, float]:
    """Share of right answers, "all" and by kind."""
    right: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for one, answer in zip(asked, given, strict=True):
        for name in ("all", one.question.kind):
            number[name] += 1
            right[name] += check_answer(one.question, answer)
    return {name: right[name] / number[name] for name in ("all", *ASKED) if number[name]}


def guessing(asked: Sequence[Asked]) -> dict[str, float]:
    """What one reaches who knows the possible answers of each kind and draws one evenly."""
    share = {kind: 1 / len(choices) for kind, choices in CHOICES.items()}
    number = Counter(one.question.kind for one in asked)
    total = sum(share[kind] * count for kind, count in number.items()) / max(1, len(asked))
    return {"all": total, **{kind: share[kind] for kind in ASKED if number[kind]}}
