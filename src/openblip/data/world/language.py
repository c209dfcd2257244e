"""Say true things about a scene: what to mention (`plan`), and in which words (`realise`).

A caption is planned as a `Statement` that is true by construction and then put into words; the parser reads
the words back into the same statement (a test says so), and `noise` spoils statements before they are worded.

The sampler for captions of mixed length, the default, draws (a form that the scene does not allow falls back
to a single object):

    20%  single       one object                    "a small striped blue star on the left"
    35%  relation     two objects and a relation    "a red circle to the left of a green square"
     9%  count        all objects that are alike    "two red circles and a moon", "three striped objects"
    18%  all          a list of all objects         "a red circle, a moon and a blue star"
    18%  long         all objects, with relations   "a red moon above a star that is left of a ring and a heart"

As people do, seven captions in ten begin with what is most in view: large before small, then from left to
right; the others begin anywhere. Of two directions the one in which objects are further apart is named in
three captions of four. A shape is named 96% of the time, a colour 95%, a size 30%, a texture 65% (plainness
4%), the place of a listed object 12%, the ground 20%. "short" is the single form alone; "long" the last two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from openblip.core.errors import UserError, nearest
from openblip.data.world.geometry import PLACES, RELATIONS, holds, is_at
from openblip.data.world.object import Object
from openblip.data.world.scene import HELD_OUT, Scene, pick
from openblip.data.world.words import (
    COUNTS,
    GENERIC,
    GROUND_WORDS,
    NOUNS,
    PLACE_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    TEXTURE_ADJECTIVES,
    TEXTURE_TAILS,
    Phrase,
    Relation,
    Statement,
)

__all__ = ["Length", "caption", "matches", "phrase_words", "places_of", "plan", "realise"]

Length = Literal["mixed", "short", "long"]
_FORMS: dict[str, tuple[tuple[str, float], ...]] = {
    "mixed": (("single", 0.20), ("relation", 0.35), ("count", 0.09), ("all", 0.18), ("long", 0.18)),
    "short": (("single", 1.0),),
    "long": (("all", 0.4), ("long", 0.6)),
}


def caption(scene: Scene, rng: np.random.Generator, *, length: Length = "mixed") -> str:
    """Write one true caption of `scene`.

    Raises:
        UserError: unknown `length`.
    """
    return realise(plan(scene, rng, length=length), rng)


def plan(scene: Scene, rng: np.random.Generator, *, length: Length = "mixed") -> Statement:
    """Choose what to say; every statement is true of `scene`.

    A scene of the split "novel" is described by its new combination first, shape and colour both named.
    """
    if length not in _FORMS:
        raise UserError(f'captions have no length "{length}"{nearest(length, get_args(Length))}')
    things = sorted(scene.objects, key=lambda _: rng.random())
    if rng.random() < 0.7:
        things.sort(key=lambda thing: (thing.size == "small", thing.x))
    things.sort(key=lambda thing: (thing.shape, thing.colour) not in HELD_OUT)
    roll, form = rng.random(), ""
    for name, share in _FORMS[length]:
        form = name
        roll -= share
        if roll < 0:
            break
    ground = scene.ground if rng.random() < 0.20 else None
    statement = None
    if form == "count":
        statement = _plan_count(things, rng)
    elif form == "relation" and len(things) > 1:
        statement = _plan_relation(things, rng)
    elif form == "all":
        statement = Statement(tuple(_describe(thing, rng, place=True) for thing in things))
    elif form == "long":
        statement = _plan_long(things, rng)
    if statement is None:
        statement = Statement((_describe(things[0], rng, place=True),))
    return Statement(statement.phrases, statement.relations, ground)


# What to say ---------------------------------------------------------------------------------------------


def places_of(thing: Object) -> tuple[str, ...]:
    """All places where `thing` is, in the order of `PLACE_WORDS`' keys."""
    return tuple(place for place in PLACES if is_at(place, thing))


def _describe(thing: Object, rng: np.random.Generator, *, place: bool = False) -> Phrase:
    """A phrase that is true of `thing`; see the head of this file for what it mentions how often."""
    novel = (thing.shape, thing.colour) in HELD_OUT
    shape = thing.shape if novel or rng.random() < 0.96 else None
    colour = thing.colour if novel or rng.random() < 0.95 else None
    size = thing.size if rng.random() < 0.30 else None
    texture = thing.texture if rng.random() < (0.04 if thing.texture == "plain" else 0.65) else None
    if shape is None and colour is None:
        colour = thing.colour
    places: tuple[str, ...] = ()
    if place and rng.random() < 0.12:
        places = places_of(thing)
        if len(places) > 1 and rng.random() < 0.4:
            places = (pick(rng, places),)
    return Phrase(shape, colour, texture, size, places)


def _plan_relation(things: Sequence[Object], rng: np.random.Generator) -> Statement:
    first = things[0]
    second = things[1] if rng.random() < 0.6 else things[1 + int(rng.random() * (len(things) - 1))]
    if rng.random() < 0.25 and (first.shape, first.colour) not in HELD_OUT:
        first, second = second, first
    phrases = (_describe(first, rng), _describe(second, rng))
    return Statement(phrases, (Relation(0, _relation(first, second, rng), 1),))


def _relation(first: Object, second: Object, rng: np.random.Generator) -> str:
    """One of the true relations; inside and behind, the rare ones, are preferred where they hold."""
    true = [kind for kind in RELATIONS if holds(kind, first, second)]
    assert true, "scenes are made so that any two objects stand in some relation"
    if true[-1] in ("inside", "around", "front", "behind") and rng.random() < 0.7:
        return true[-1]
    if len(true) > 1 and rng.random() < 0.5:
        wide = abs(first.x - second.x) > abs(first.y - second.y)
        return true[0] if wide else true[1]
    return pick(rng, true)


def _plan_long(things: Sequence[Object], rng: np.random.Generator) -> Statement | None:
    """All objects: a relation of the first two, perhaps one to the third, the rest listed."""
    if len(things) < 2:
        return None
    phrases = tuple(_describe(thing, rng, place=i > 1) for i, thing in enumerate(things))
    relations = [Relation(0, _relation(things[0], things[1], rng), 1)]
    if len(things) > 2 and (roll := rng.random()) < 0.6:
        subject = 0 if roll < 0.3 else 1
        relations.append(Relation(subject, _relation(things[subject], things[2], rng), 2))
        phrases = (*phrases[:2], _without_places(phrases[2]), *phrases[3:])
    elif len(things) == 4 and rng.random() < 0.5:
        relations.append(Relation(2, _relation(things[2], things[3], rng), 3))
        phrases = (*phrases[:2], _without_places(phrases[2]), _without_places(phrases[3]))
    return Statement(phrases, tuple(relations))


def _without_places(phrase: Phrase) -> Phrase:
    return Phrase(phrase.shape, phrase.colour, phrase.texture, phrase.size)


def matches(phrase: Phrase, thing: Object) -> bool:
    """True if every attribute and place that `phrase` names is that of `thing` (its count is not asked)."""
    return (
        phrase.shape in (None, thing.shape)
        and phrase.colour in (None, thing.colour)
        and phrase.texture in (None, thing.texture)
        and phrase.size in (None, thing.size)
        and all(is_at(place, thing) for place in phrase.places)
    )


def _plan_count(things: Sequence[Object], rng: np.random.Generator) -> Statement | None:
    """Count two or more objects that have something in common; None where nothing is to be counted.

    The other object that may be named is never one that the counted phrase fits as well.
    """
    model = things[0]
    choices = [
        Phrase(shape=model.shape),
        Phrase(colour=model.colour),
        Phrase(shape=model.shape, colour=model.colour),
        Phrase(texture=model.texture),
        Phrase(size=model.size),
    ]
    if (model.shape, model.colour) in HELD_OUT:
        return None
    counted = [phrase for phrase in choices if sum(matches(phrase, thing) for thing in things) > 1]
    if len(things) > 1 and (not counted or rng.random() < 0.15):
        counted = [Phrase()]
    if not counted:
        return None
    chosen = pick(rng, counted)
    alike = [thing for thing in things if matches(chosen, thing)]
    chosen = Phrase(chosen.shape, chosen.colour, chosen.texture, chosen.size, count=len(alike))
    others = [thing for thing in things if not matches(chosen, thing)]
    if not others or rng.random() < 0.4:
        return Statement((chosen,))
    other = pick(rng, others)
    kinds = [kind for kind in RELATIONS if all(holds(kind, thing, other) for thing in alike)]
    if kinds and rng.random() < 0.5:
        return Statement((chosen, _describe(other, rng)), (Relation(0, pick(rng, kinds), 1),))
    pair = (chosen, _describe(other, rng))
    return Statement(pair if rng.random() < 0.5 else pair[::-1])


# In which words ------------------------------------------------------------------------------------------


def _usual(rng: np.random.Generator, wordings: Sequence[str], share: float = 0.7) -> str:
    """The first wording most of the time, else any of the others."""
    return wordings[0] if len(wordings) == 1 or rng.random() < share else pick(rng, wordings[1:])


def phrase_words(phrase: Phrase, rng: np.random.Generator, *, determiner: str | None = None) -> str:
    """Put one phrase into words; `determiner` replaces "a" or "an" ("the"), and "" leaves it out."""
    plural = phrase.count is not None and phrase.count != 1
    words: list[str] = []
    if phrase.size is not None:
        words.append(_usual(rng, SIZE_WORDS[phrase.size]))
    tail = ""
    if phrase.texture in TEXTURE_TAILS and rng.random() < 0.25:
        tail = f" with {TEXTURE_TAILS[phrase.texture]}"
    elif phrase.texture is not None:
        words.append(_usual(rng, TEXTURE_ADJECTIVES[phrase.texture]))
    if phrase.colour is not None:
        words.append(phrase.colour)
    words.append((GENERIC if phrase.shape is None else NOUNS[phrase.shape])[plural])
    if phrase.count is not None:
        words.insert(0, COUNTS[phrase.count])
    else:
        first = ("an" if words[0][0] in "aeiou" else "a") if determiner is None else determiner
        words = [first, *words] if first else words
    place = ""
    if phrase.places:
        place = " " + _usual(rng, PLACE_WORDS[phrase.places])
    return " ".join(words) + tail + place


def realise(statement: Statement, rng: np.random.Generator, *, opening: str | None = None) -> str:
    """Put a statement into words that the parser reads back as the same statement.

    `opening` begins the text; by default one caption in seven begins with "there is" and the like.

    Relations must be as `plan` makes them: of each phrase with the next one, or of the first with the third.
    """
    opening = _intro(statement, rng) if opening is None else opening
    words = [phrase_words(phrase, rng) for phrase in statement.phrases]
    clauses: list[str] = []
    position = 0
    while position < len(words):
        clause, used = _clause(statement, words, position, rng, sentence=not opening)
        clauses.append(clause)
        position += used
    comma = ", and " if len(clauses) > 2 and rng.random() < 0.3 else " and "
    text = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + comma + clauses[-1]
    text = opening + text
    if statement.ground is not None:
        ground = _usual(rng, GROUND_WORDS[statement.ground])
        text = f"{ground}, {text}" if rng.random() < 0.12 else f"{text} {ground}"
    return text


def _intro(statement: Statement, rng: np.random.Generator) -> str:
    roll = rng.random()
    if roll < 0.10:
        listed = len(statement.phrases) > 1 and not statement.relations
        return "there are " if listed or statement.phrases[0].num_objects != 1 else "there is "
    return pick(rng, ("we see ", "you can see ")) if roll < 0.14 else ""


def _clause(
    statement: Statement, words: Sequence[str], position: int, rng: np.random.Generator, *, sentence: bool
) -> tuple[str, int]:
    """The clause that begins with phrase `position`, and how many phrases it holds.

    `sentence` allows "a star is above a moon", which cannot follow "there is".
    """
    text, used = words[position], 1
    for relation in statement.relations:
        if relation.first not in range(position, position + used) or relation.second != position + used:
            continue
        wording = _usual(rng, RELATION_WORDS[relation.kind])
        verb = "are" if statement.phrases[relation.first].num_objects != 1 else "is"
        if used == 1:
            if relation.kind == "around" and statement.phrases[position].num_objects == 1 and rng.random() < 0.6:
                text += f" with {words[relation.second]} inside"
            else:
                links = (f" that {verb}", f" which {verb}", f" {verb}")[: 3 if sentence else 2]
                link = pick(rng, links) if rng.random() < 0.12 else ""
                text += f"{link} {wording} {words[relation.second]}"
        elif relation.first == position:
            text += f" and {wording} {words[relation.second]}"
        else:
            text += f" {pick(rng, ('that', 'which'))} {verb} {wording} {words[relation.second]}"
        used += 1
    return text, used
