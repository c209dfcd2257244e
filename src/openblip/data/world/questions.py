"""Questions about a scene with answers of known truth, for VQA.

    colour    what color is the small circle?                    red
    shape     what shape is the red object?                      circle
    texture   what pattern does the red circle have?             striped
    size      what size is the star?                             small
    count     how many red objects are there?                    two        (zero to four)
    exists    is there a striped star?                           yes / no
    relation  is the red circle to the left of the star?         yes / no
    place     is the star at the top?                            yes / no
    which     what is to the left of the blue square?            red circle
    ground    what is the background?                            grass

"The small circle" always fits exactly one object. Yes and no are drawn with equal chances before the question
is made, and so is the number requested by "how many" (among those that the scene has), so that one who cannot
see gains little. Outside the split "novel" no question names a held-out pair of shape and colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from openblip.core.errors import UserError, nearest
from openblip.data.world.geometry import INVERSE, PLACES, RELATIONS, holds, is_at
from openblip.data.world.language import matches, phrase_words
from openblip.data.world.object import Object
from openblip.data.world.parser import UngrammaticalText, parse_phrase
from openblip.data.world.scene import COLOURS, GROUNDS, HELD_OUT, SHAPES, SIZES, TEXTURES, Scene, pick
from openblip.data.world.words import (
    PLACE_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    TEXTURE_ADJECTIVES,
    TEXTURE_TAILS,
    Phrase,
    tokenize,
)

__all__ = ["ANSWERS", "QUESTION_KINDS", "Question", "check_answer", "questions"]

QUESTION_KINDS = (
    "colour",
    "shape",
    "texture",
    "size",
    "count",
    "exists",
    "relation",
    "place",
    "which",
    "ground",
)
_NUMBERS = ("zero", "one", "two", "three", "four")
ANSWERS = (
    "yes",
    "no",
    *_NUMBERS,
    *COLOURS,
    *SHAPES,
    *TEXTURES,
    *SIZES,
    *(g for g in GROUNDS if g not in COLOURS),
)
"""All usual answers but those of "which", which are a colour and a shape."""

_VALUES = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}
_ATTRIBUTES = tuple(_VALUES)
_SAME: dict[str, tuple[str, ...]] = {
    **{value: words[1:] for value, words in SIZE_WORDS.items()},
    "plain": ("none", "no pattern", "solid"),
    "striped": (TEXTURE_TAILS["striped"], "stripe"),
    "dotted": (*TEXTURE_ADJECTIVES["dotted"][1:], TEXTURE_TAILS["dotted"], "spots"),
    "checkered": (TEXTURE_TAILS["checkered"], "checked"),
    "zero": ("0", "none", "no"),
    **{word: (str(number),) for number, word in enumerate(_NUMBERS) if number},
    "brick": ("bricks", "brick wall", "wall"),
    "dark": ("black",),
    "gray": ("grey",),
    "yes": ("true",),
}
"""Other answers that mean the same; "no" and "black" count only where a number or a ground was requested."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its kind, and what is accepted as an answer."""

    text: str
    kind: str
    answer: str
    """the usual answer"""
    answers: tuple[str, ...]
    """all accepted answers but, for "which", other true descriptions of the target"""
    target: Phrase | None = None
    """for "which": the object that is requested, all its attributes named"""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `Sample.meta` and files."""
        return {**asdict(self), "answers": list(self.answers)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Question:
        """Read what `to_dict` wrote."""
        try:
            target = data["target"]
            phrase = None if target is None else Phrase(**{**target, "places": tuple(target["places"])})
            return cls(data["text"], data["kind"], data["answer"], tuple(data["answers"]), phrase)
        except (KeyError, TypeError) as error:
            raise UserError(f"this is not a question of the world: {error}") from error


def check_answer(question: Question, answer: str) -> bool:
    """True if `answer` is right: case, articles and the final stop do not count, synonyms do."""
    words = [word for word in tokenize(answer) if word not in ("a", "an", "the", ".", "?", "!", ",")]
    given = " ".join(words)
    if given in question.answers:
        return True
    if question.target is None:
        return False
    try:
        said = parse_phrase(given)
    except UngrammaticalText:
        return False
    named = {name: value for name in _ATTRIBUTES if (value := getattr(said, name)) is not None}
    plain = said.count is None and not said.places and "shape" in named
    return plain and all(getattr(question.target, name) == value for name, value in named.items())


def questions(
    scene: Scene,
    rng: np.random.Generator,
    num: int,
    *,
    kinds: Sequence[str] = QUESTION_KINDS,
    novel: bool = False,
) -> list[Question]:
    """Ask up to `num` different questions about `scene`; fewer if it does not give so many.

    Args:
        novel: whether held-out pairs of shape and colour may be named.

    Raises:
        UserError: unknown kind.
    """
    for kind in kinds:
        if kind not in _MAKERS:
            raise UserError(f'the world has no questions of kind "{kind}"{nearest(kind, QUESTION_KINDS)}')
    found: dict[str, Question] = {}
    for _ in range(num * 20):
        if len(found) == num:
            break
        question = _MAKERS[pick(rng, kinds)](scene, rng, novel)
        if question is not None:
            found.setdefault(question.text, question)
    return list(found.values())


# Makers: each gives a question of one kind, or None where the scene or the lot does not allow one ----------


def _make(text: str, kind: str, answer: str, *, target: Phrase | None = None) -> Question:
    same = _SAME.get(answer, ())
    if kind in ("exists", "relation", "place"):
        same = ()
    return Question(text, kind, answer, (answer, *same), target)


def _refer(
    thing: Object, scene: Scene, rng: np.random.Generator, *, without: str = "", novel: bool = False
) -> Phrase | None:
    """A short phrase that fits `thing` alone and does not name the attribute `without`."""
    names = [name for name in _ATTRIBUTES if name != without]
    names.sort(key=lambda _: rng.random())
    unique: list[Phrase] = []
    for length in (1, 2, 3):
        for chosen in combinations(names, length):
            phrase = Phrase(**{name: getattr(thing, name) for name in chosen})
            if _is_hidden(phrase, novel=novel):
                continue
            if sum(matches(phrase, other) for other in scene.objects) == 1:
                unique.append(phrase)
        # The shortest are preferred, yet not always: "the small red circle" should be known too.
        if unique and (len(unique) > 2 or rng.random() < 0.6):
            break
    return pick(rng, unique) if unique else None


def _is_hidden(phrase: Phrase, *, novel: bool) -> bool:
    return not novel and (phrase.shape, phrase.colour) in HELD_OUT


def _the(phrase: Phrase, rng: np.random.Generator) -> str:
    return phrase_words(phrase, rng, determiner="the")


def _ask_attribute(scene: Scene, rng: np.random.Generator, novel: bool, name: str, wording: str) -> Question | None:
    thing = pick(rng, scene.objects)
    phrase = _refer(thing, scene, rng, without=name, novel=novel)
    if phrase is None:
        return None
    return _make(wording.format(_the(phrase, rng)), name, getattr(thing, name))


def _ask_colour(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    return _ask_attribute(scene, rng, novel, "colour", "what color is {}?")


def _ask_shape(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    return _ask_attribute(scene, rng, novel, "shape", pick(rng, ("what shape is {}?", "what is {}?")))


def _ask_texture(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    return _ask_attribute(scene, rng, novel, "texture", "what pattern does {} have?")


def _ask_size(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    return _ask_attribute(scene, rng, novel, "size", pick(rng, ("what size is {}?", "how big is {}?")))


def _ask_count(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    choices: dict[int, list[Phrase]] = {}
    phrases = [Phrase()]
    phrases += [Phrase(shape=shape) for shape in SHAPES] + [Phrase(colour=colour) for colour in COLOURS]
    phrases += [Phrase(texture=texture) for texture in TEXTURES[1:]] + [Phrase(size=size) for size in SIZES]
    phrases += [Phrase(shape=thing.shape, colour=thing.colour) for thing in scene.objects]
    for phrase in phrases:
        if not _is_hidden(phrase, novel=novel):
            choices.setdefault(sum(matches(phrase, thing) for thing in scene.objects), []).append(phrase)
    number = pick(rng, sorted(choices))
    phrase = pick(rng, choices[number])
    # Worded as a plural without its number: "how many red stars are there?"
    words = phrase_words(replace(phrase, count=2), rng).removeprefix("two ")
    return _make(f"how many {words} are there?", "count", _NUMBERS[number])


def _ask_exists(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    yes = rng.random() < 0.5
    # Many a changed attribute is still true of some object; without several tries most answers would be yes.
    for _ in range(20):
        thing = pick(rng, scene.objects)
        names = sorted(_ATTRIBUTES, key=lambda _: rng.random())[: 1 + int(rng.random() * 3)]
        values = {name: getattr(thing, name) for name in names}
        if not yes:
            name = pick(rng, names)
            values[name] = pick(rng, _VALUES[name])
        phrase = Phrase(**values)
        there = any(matches(phrase, other) for other in scene.objects)
        if there == yes and not _is_hidden(phrase, novel=novel):
            return _make(f"is there {phrase_words(phrase, rng)}?", "exists", "yes" if yes else "no")
    return None


def _ask_relation(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    if len(scene.objects) < 2:
        return None
    first, second = sorted(scene.objects, key=lambda _: rng.random())[:2]
    phrases = [_refer(thing, scene, rng, novel=novel) for thing in (first, second)]
    if phrases[0] is None or phrases[1] is None:
        return None
    yes = rng.random() < 0.5
    true = [kind for kind in RELATIONS if holds(kind, first, second)]
    kind = pick(rng, true)
    if true[-1] in ("inside", "around", "front", "behind") and rng.random() < 0.5:
        kind = true[-1]
    if not yes:
        kind = INVERSE[kind]
    words = RELATION_WORDS[kind][0]
    text = f"is {_the(phrases[0], rng)} {words} {_the(phrases[1], rng)}?"
    return _make(text, "relation", "yes" if yes else "no")


def _ask_place(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    thing = pick(rng, scene.objects)
    phrase = _refer(thing, scene, rng, novel=novel)
    yes = rng.random() < 0.5
    places = [place for place in PLACES if is_at(place, thing) == yes]
    if phrase is None or not places:
        return None
    place = PLACE_WORDS[(pick(rng, places),)][0]
    return _make(f"is {_the(phrase, rng)} {place}?", "place", "yes" if yes else "no")


def _ask_which(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    anchor = pick(rng, scene.objects)
    phrase = _refer(anchor, scene, rng, novel=novel)
    if phrase is None:
        return None
    choices: list[tuple[str, Object]] = []
    for kind in RELATIONS:
        there = [thing for thing in scene.objects if thing is not anchor and holds(kind, thing, anchor)]
        if len(there) == 1 and (novel or (there[0].shape, there[0].colour) not in HELD_OUT):
            choices.append((kind, there[0]))
    if not choices:
        return None
    kind, thing = pick(rng, choices)
    target = Phrase(thing.shape, thing.colour, thing.texture, thing.size)
    text = f"what is {RELATION_WORDS[kind][0]} {_the(phrase, rng)}?"
    short = f"{thing.colour} {thing.shape}"
    return Question(text, "which", short, (short, thing.shape), target)


def _ask_ground(scene: Scene, rng: np.random.Generator, novel: bool) -> Question | None:
    return _make("what is the background?", "ground", scene.ground)


_MAKERS = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "texture": _ask_texture,
    "size": _ask_size,
    "count": _ask_count,
    "exists": _ask_exists,
    "relation": _ask_relation,
    "place": _ask_place,
    "which": _ask_which,
    "ground": _ask_ground,
}
