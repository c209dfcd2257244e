"""The words of the world and what a text can state: shared by those who write texts and by the parser.

A text is a `Statement`: `Phrase`s ("two small striped red stars on the left"), relations between them, and a
ground. Every list of wordings below is used in both directions; the first wording is the usual one.

Grammar (upper case: words in the tables below; [] optional; * repeated):

    text      := [GROUND [","]] [INTRO] clause ((","|"and"|", and") (clause | tail))* [GROUND] ["."]
    clause    := phrase [tail] further*
    tail      := ["is"|"are"|"that is"|"which is"|...] RELATION phrase | "with" phrase "inside" ["it"]
    further   := a tail that begins with "that", "which" or "with"
                 (these speak of the phrase just before them, all others of the clause's first phrase)
    phrase    := [DETERMINER] ADJECTIVE* NOUN ["with stripes"|"with dots"|"with checks"] [PLACE]

What a text states (`truth` decides it): there are distinct objects, one for each singular phrase and as many
as it says for a counted one, with every named attribute, place and relation, on the ground that is named.
"two red stars" and "one red star" mean exactly as many in the whole scene, "no star" none; "a" and "the" mean
that there is one. A relation of a counted phrase holds for each of its objects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from openblip.data.world.scene import COLOURS, SHAPES

__all__ = [
    "COUNTS",
    "GENERIC",
    "GROUND_WORDS",
    "INTROS",
    "NOUNS",
    "PLACE_WORDS",
    "RELATION_WORDS",
    "SIZE_WORDS",
    "TEXTURE_ADJECTIVES",
    "TEXTURE_TAILS",
    "Phrase",
    "Relation",
    "Statement",
    "tokenize",
    "vocabulary",
]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun phrase; None where nothing is specified."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None
    places: tuple[str, ...] = ()
    count: int | None = None
    """exact number in the whole scene; None for "a", "an", "the", "another": at least one"""

    @property
    def num_objects(self) -> int:
        """How many objects the phrase speaks of."""
        return 1 if self.count is None else self.count


@dataclass(frozen=True, slots=True)
class Relation:
    """`first` and `second` are positions in `Statement.phrases`."""

    first: int
    kind: str
    second: int


@dataclass(frozen=True, slots=True)
class Statement:
    """What a text says of an image."""

    phrases: tuple[Phrase, ...]
    relations: tuple[Relation, ...] = ()
    ground: str | None = None


GENERIC = ("object", "objects")
NOUNS: dict[str, tuple[str, str]] = {shape: (shape, f"{shape}s") for shape in SHAPES}
NOUNS["cross"] = ("cross", "crosses")
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
TEXTURE_ADJECTIVES = {
    "plain": ("plain",),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered",),
}
TEXTURE_TAILS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
COUNTS = ("no", "one", "two", "three", "four")
DETERMINERS = ("a", "an", "the", "another")
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "inside": ("inside", "in", "within"),
    "around": ("around", "containing"),
    "front": ("in front of",),
    "behind": ("behind", "partly behind"),
}
PLACE_WORDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("left",): ("on the left", "at the left", "on the left side"),
    ("right",): ("on the right", "at the right", "on the right side"),
    ("top",): ("at the top",),
    ("bottom",): ("at the bottom",),
    ("left", "top"): ("at the top left", "in the top left corner"),
    ("right", "top"): ("at the top right", "in the top right corner"),
    ("left", "bottom"): ("at the bottom left", "in the bottom left corner"),
    ("right", "bottom"): ("at the bottom right", "in the bottom right corner"),
    ("middle",): ("in the middle", "in the center"),
}
GROUND_WORDS: dict[str, tuple[str, ...]] = {
    "white": ("on a white background", "on white"),
    "gray": ("on a gray background", "on gray"),
    "dark": ("on a dark background", "in the dark"),
    "grass": ("on grass", "on the grass", "on green grass"),
    "sand": ("on sand", "on the sand"),
    "water": ("on water", "on the water", "on blue water"),
    "brick": ("on a brick wall", "on bricks"),
}
INTROS = (
    "there is",
    "there are",
    "we see",
    "you can see",
    "this is",
    "these are",
    "a picture of",
    "a photo of",
    "an image of",
    "the picture shows",
    "this picture shows",
)
OTHER_WORDS = ("and", "with", "is", "are", "that", "which", "it", "inside")

_TOKEN = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")


def tokenize(text: str) -> list[str]:
    """Words in lower case; every other sign is a token of its own."""
    return _TOKEN.findall(text.lower())


def vocabulary() -> tuple[str, ...]:
    """All words that a text of the grammar can hold, sorted (questions and advertising have others)."""
    words: set[str] = {*GENERIC, *COLOURS, *COUNTS, *DETERMINERS, *OTHER_WORDS, *TEXTURE_TAILS.values()}
    words.update(word for forms in NOUNS.values() for word in forms)
    for table in (SIZE_WORDS, TEXTURE_ADJECTIVES, RELATION_WORDS, PLACE_WORDS, GROUND_WORDS):
        words.update(word for wordings in table.values() for phrase in wordings for word in phrase.split())
    words.update(word for intro in INTROS for word in intro.split())
    return tuple(sorted(words))
