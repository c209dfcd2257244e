"""Statements about two images, true or false, for NLVR: "the left picture shows a red star".

    left, right  "the left picture shows S"              both     "both pictures show S"
    only         "only one picture shows S"              neither  "neither picture shows S"
    more         "the left picture has more stars than the right picture"

S is a phrase or a relation of two. Form and label are drawn first, evenly, then a statement from a scene of its
own (never one of the two), and then images that fit the label: so the words alone tell nothing of it.
`pair_is_true` reads the words and decides; a test holds every label against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from openblip.core.errors import UserError
from openblip.data.world.draw import draw_scene
from openblip.data.world.geometry import RELATIONS, holds
from openblip.data.world.language import matches, phrase_words, realise
from openblip.data.world.parser import UngrammaticalText, parse, parse_phrase
from openblip.data.world.scene import HELD_OUT, Scene, pick, random_stream, sample_scene
from openblip.data.world.truth import is_true
from openblip.data.world.words import Phrase, Relation, Statement

__all__ = ["PAIR_FORMS", "PairSource", "ScenePair", "pair_is_true", "sample_pair"]

PAIR_FORMS = ("left", "right", "both", "only", "neither", "more")
_OPENINGS = {
    "left": "the left picture shows ",
    "right": "the right picture shows ",
    "both": "both pictures show ",
    "only": "only one picture shows ",
    "neither": "neither picture shows ",
}
_MORE = ("the left picture has more ", "the right picture has more ")
_THAN = (" than the right picture", " than the left picture")
_ANY_INDEX = 1 << 20
_MAX_DRAWS = 400


@dataclass(frozen=True, slots=True)
class ScenePair:
    """Two scenes, a statement about them, and whether it is true."""

    left: Scene
    right: Scene
    text: str
    label: bool
    form: str


def sample_pair(seed: int, split: str, index: int) -> ScenePair:
    """Draw pair `index`; a pure function of its arguments, labels are true and false in turn.

    Raises:
        UserError: unknown split, or a negative number.
    """
    rng = random_stream(seed, split, index, "pairs")
    form, label = pick(rng, PAIR_FORMS), index % 2 == 0

    def scene() -> Scene:
        return sample_scene(seed, split, int(rng.integers(_ANY_INDEX)))

    for _ in range(50):
        if form == "more":
            pair = _compare(scene, rng, label)
        else:
            pair = _show(scene, rng, form, label, novel=split == "novel")
        if pair is not None:
            return pair
    raise AssertionError(f"no pair found for {seed}, {split}, {index}")


def _show(
    scene: Callable[[], Scene], rng: np.random.Generator, form: str, label: bool, *, novel: bool
) -> ScenePair | None:
    statement = _weak_statement(scene(), rng, novel=novel)
    # What the statement must be of (left, right); None: whatever comes.
    side = rng.random() < 0.5
    wanted: dict[tuple[str, bool], tuple[bool | None, bool | None]] = {
        ("left", True): (True, None),
        ("left", False): (False, None),
        ("right", True): (None, True),
        ("right", False): (None, False),
        ("both", True): (True, True),
        ("both", False): (side, not side),
        ("only", True): (side, not side),
        ("only", False): (side, side),
        ("neither", True): (False, False),
        ("neither", False): (side, not side),
    }
    truths = wanted[form, label]
    found = []
    for truth in truths:
        if truth is None and form in ("left", "right"):
            # The other image tries to mislead: half of the time the statement is true of it.
            truth = rng.random() < 0.5
        for _ in range(_MAX_DRAWS):
            candidate = scene()
            if is_true(statement, candidate) == truth:
                found.append(candidate)
                break
        else:
            return None
    return ScenePair(found[0], found[1], realise(statement, rng, opening=_OPENINGS[form]), label, form)


def _compare(scene: Callable[[], Scene], rng: np.random.Generator, label: bool) -> ScenePair | None:
    model = pick(rng, scene().objects)
    name = pick(rng, ("shape", "colour", "texture", "size", ""))
    phrase = Phrase(**{name: getattr(model, name)}) if name else Phrase()
    for _ in range(_MAX_DRAWS):
        left, right = scene(), scene()
        difference = _count(phrase, left) - _count(phrase, right)
        if difference:
            break
    else:
        return None
    first = 0 if (difference > 0) == label else 1
    plural = phrase_words(replace(phrase, count=2), rng).removeprefix("two ")
    return ScenePair(left, right, _MORE[first] + plural + _THAN[first], label, "more")


def _count(phrase: Phrase, scene: Scene) -> int:
    return sum(matches(phrase, thing) for thing in scene.objects)


def _weak_statement(scene: Scene, rng: np.random.Generator, *, novel: bool) -> Statement:
    """A statement that is true of `scene` and of a fair share of others: few attributes, at most one relation."""
    things = sorted(scene.objects, key=lambda _: rng.random())

    def weak(position: int, most: int) -> Phrase:
        thing = things[position]
        names = sorted(("shape", "colour", "texture", "size"), key=lambda _: rng.random())
        phrase = Phrase(**{name: getattr(thing, name) for name in names[: 1 + int(rng.random() * most)]})
        if not novel and (phrase.shape, phrase.colour) in HELD_OUT:
            return Phrase(shape=phrase.shape)
        return phrase

    if len(things) > 1 and rng.random() < 0.4:
        kinds = [kind for kind in RELATIONS if holds(kind, things[0], things[1])]
        return Statement((weak(0, 1), weak(1, 1)), (Relation(0, pick(rng, kinds), 1),))
    return Statement((weak(0, 2),))


def pair_is_true(text: str, left: Scene, right: Scene) -> bool:
    """Read a statement of this file's forms and decide it.

    Raises:
        UserError: it is of none of the forms.
    """
    text = text.lower().strip().removesuffix(".").strip()
    try:
        for first, opening in enumerate(_MORE):
            if text.startswith(opening) and text.endswith(_THAN[first]):
                plural = text.removeprefix(opening).removesuffix(_THAN[first])
                phrase = replace(parse_phrase("two " + plural), count=None)
                numbers = _count(phrase, left), _count(phrase, right)
                return numbers[first] > numbers[1 - first]
        for form, opening in _OPENINGS.items():
            if text.startswith(opening):
                statement = parse(text.removeprefix(opening))
                truths = is_true(statement, left), is_true(statement, right)
                return {
                    "left": truths[0],
                    "right": truths[1],
                    "both": all(truths),
                    "only": truths[0] != truths[1],
                    "neither": not any(truths),
                }[form]
    except UngrammaticalText as error:
        raise UserError(f'"{text}" is no statement about two images: {error}') from error
    raise UserError(f'"{text}" is no statement about two images; it begins with none of the known forms')


class PairSource:
    """An indexable source of pairs: `source[i]` gives (left, right, pair), images as uint8 [size, size, 3]."""

    def __init__(
        self, *, split: str = "train", num_samples: int = 1000, seed: int = 0, size: int = 64, disturb: float = 1.0
    ) -> None:
        if num_samples < 1:
            raise UserError(f"num_samples must be at least 1, not {num_samples}")
        random_stream(seed, split, 0, "pairs")  # refuses what it does not know, before the first sample
        self.split, self.num_samples, self.seed, self.size, self.disturb = split, num_samples, seed, size, disturb

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, ScenePair]:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        pair = sample_pair(self.seed, self.split, index)
        rng = random_stream(self.seed, self.split, index, "image")
        left, right = (draw_scene(s, rng, size=self.size, disturb=self.disturb) for s in (pair.left, pair.right))
        return left, right, pair
