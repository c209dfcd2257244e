"""Read a text of the world's grammar (see `words`) into a `Statement`; anything else is not grammatical.

Recursive descent over tokens, without look-back: the wordings are chosen so that the next tokens always tell
a relation ("on the left of a ..."), a place ("on the left") and a ground ("on a white background") apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn

from openblip.data.world.scene import COLOURS
from openblip.data.world.words import (
    COUNTS,
    GENERIC,
    GROUND_WORDS,
    INTROS,
    NOUNS,
    PLACE_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    TEXTURE_ADJECTIVES,
    TEXTURE_TAILS,
    Phrase,
    Relation,
    Statement,
    tokenize,
)

__all__ = ["UngrammaticalText", "parse", "parse_phrase"]

_MAX_PHRASES = 8
_DETERMINERS = ("a", "an", "the", "another")
_NUMBERS = {word: number for number, word in enumerate(COUNTS)} | {str(number): number for number in range(5)}


class UngrammaticalText(ValueError):
    """The text is no sentence of the world; says where it stops being one."""


def _by_first_word(table: Mapping[Any, tuple[str, ...]]) -> dict[str, list[tuple[list[str], Any]]]:
    """Index wordings by their first word, the longest first: word -> [(words, meaning)]."""
    index: dict[str, list[tuple[list[str], Any]]] = {}
    for meaning, wordings in table.items():
        for wording in wordings:
            words = wording.split()
            index.setdefault(words[0], []).append((words, meaning))
    for entries in index.values():
        entries.sort(key=lambda entry: -len(entry[0]))
    return index


@lru_cache(maxsize=1)
def _tables() -> dict[str, dict[str, Any]]:
    nouns: dict[str, tuple[str | None, bool]] = {forms[0]: (shape, False) for shape, forms in NOUNS.items()}
    nouns |= {forms[1]: (shape, True) for shape, forms in NOUNS.items()}
    nouns |= {GENERIC[0]: (None, False), GENERIC[1]: (None, True)}
    adjectives = {colour: ("colour", colour) for colour in COLOURS}
    for field, table in (("size", SIZE_WORDS), ("texture", TEXTURE_ADJECTIVES)):
        adjectives |= {word: (field, value) for value, words in table.items() for word in words}
    return {
        "noun": nouns,
        "adjective": adjectives,
        "texture": {word: texture for texture, word in TEXTURE_TAILS.items()},
        "relation": _by_first_word(RELATION_WORDS),
        "place": _by_first_word(PLACE_WORDS),
        "ground": _by_first_word(GROUND_WORDS),
        "intro": _by_first_word({intro: (intro,) for intro in INTROS}),
    }


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0
        self.tables = _tables()
        self.phrases: list[Phrase] = []
        self.relations: list[Relation] = []

    # Tokens

    def peek(self, ahead: int = 0) -> str:
        position = self.at + ahead
        return self.tokens[position] if position < len(self.tokens) else ""

    def take(self, *words: str) -> bool:
        if self.tokens[self.at : self.at + len(words)] == list(words):
            self.at += len(words)
            return True
        return False

    def wording(self, table: str, ahead: int = 0) -> tuple[int, object] | None:
        """The longest wording of `table` that comes next: (number of tokens, meaning)."""
        start = self.at + ahead
        for words, meaning in self.tables[table].get(self.peek(ahead), ()):
            if self.tokens[start : start + len(words)] == words:
                return len(words), meaning
        return None

    def fail(self, what: str) -> NoReturn:
        found = f'"{self.peek()}" (word {self.at + 1})' if self.peek() else "the end of the text"
        raise UngrammaticalText(f"{what} expected, found {found}")

    # Grammar

    def text(self) -> Statement:
        ground = self.ground()
        if ground:
            self.take(",")
        intro = self.wording("intro")
        if intro:
            self.at += intro[0]
        self.clause()
        while self.peek() and (self.take(",", "and") or self.take(",") or self.take("and")):
            if self.at_tail():
                self.tail()
            elif self.wording("ground"):
                break
            else:
                self.clause()
        if ground is None:
            ground = self.ground()
        self.take(".")
        if self.peek():
            self.fail("the end")
        if any(self.phrases[r.first].count == 0 or self.phrases[r.second].count == 0 for r in self.relations):
            raise UngrammaticalText('"no" takes no relation')
        return Statement(tuple(self.phrases), tuple(self.relations), ground)

    def ground(self) -> str | None:
        found = self.wording("ground")
        if found is None:
            return None
        self.at += found[0]
        return str(found[1])

    def clause(self) -> None:
        self.subject = self.phrase()
        if self.at_tail():
            self.tail()
        # A second relation right behind the first would leave open whose it is; "and" or "which is" tells.
        while self.peek() in ("that", "which", "with") and self.at_tail():
            self.tail()

    def at_tail(self) -> bool:
        """A relation comes next, perhaps after "is", "that is" or "which are"; or "with ... inside"."""
        ahead = 1 if self.peek() in ("that", "which") else 0
        if self.peek(ahead) in ("is", "are"):
            ahead += 1
        elif ahead:
            return False
        if ahead == 0 and self.peek() == "with":
            return True
        return self.is_relation(ahead)

    def is_relation(self, ahead: int) -> bool:
        """A relation and no ground ("in the dark") or place ("in the middle") comes next."""
        found = self.wording("relation", ahead)
        if found is None:
            return False
        other = max(
            (hit[0] for hit in (self.wording("place", ahead), self.wording("ground", ahead)) if hit),
            default=0,
        )
        return found[0] > other

    def tail(self) -> None:
        if self.take("with"):
            holder = len(self.phrases) - 1
            inner = self.phrase()
            if not self.take("inside"):
                self.fail('"inside"')
            self.take("it")
            self.relations.append(Relation(holder, "around", inner))
            return
        subject = self.subject
        if self.peek() in ("that", "which"):
            self.at += 1
            subject = len(self.phrases) - 1
        if self.peek() in ("is", "are"):
            self.at += 1
        found = self.wording("relation")
        if found is None:
            self.fail("a relation")
        self.at += found[0]
        self.relations.append(Relation(subject, str(found[1]), self.phrase()))

    def phrase(self) -> int:
        """Read a noun phrase; returns its position in `phrases`."""
        if len(self.phrases) >= _MAX_PHRASES:
            raise UngrammaticalText(f"more than {_MAX_PHRASES} noun phrases")
        determiner = self.peek()
        count: int | None = None
        if determiner in _NUMBERS:
            count = _NUMBERS[determiner]
            self.at += 1
        elif determiner in _DETERMINERS:
            self.at += 1
        else:
            self.fail("a noun phrase")
        said: dict[str, str] = {}
        while (adjective := self.tables["adjective"].get(self.peek())) is not None:
            field, value = adjective
            if field in said:
                self.fail(f"no second {field}")
            said[field] = value
            self.at += 1
        if self.peek() not in self.tables["noun"]:
            self.fail("a noun")
        shape, plural = self.tables["noun"][self.peek()]
        if plural != (count is not None and count >= 2) and count != 0:
            self.fail("a noun that agrees in number")
        self.at += 1
        if self.peek() == "with" and self.peek(1) in self.tables["texture"]:
            if "texture" in said:
                self.fail("no second texture")
            said["texture"] = self.tables["texture"][self.peek(1)]
            self.at += 2
        self.phrases.append(Phrase(shape, count=count, places=self.places(), **said))
        return len(self.phrases) - 1

    def places(self) -> tuple[str, ...]:
        place = self.wording("place")
        if place is None or self.peek(place[0]) == "of":
            return ()
        self.at += place[0]
        assert isinstance(place[1], tuple)
        return place[1]


def parse(text: str) -> Statement:
    """Read `text`.

    Raises:
        UngrammaticalText: it is no text of the grammar.
    """
    return _Reader(tokenize(text)).text()


def parse_phrase(text: str) -> Phrase:
    """Read one noun phrase, with or without its determiner ("red star", "a large red star").

    Raises:
        UngrammaticalText: it is no noun phrase.
    """
    tokens = tokenize(text)
    if tokens and tokens[0] not in _NUMBERS and tokens[0] not in _DETERMINERS:
        tokens = ["a", *tokens]
    reader = _Reader(tokens)
    reader.phrase()
    reader.take(".")
    if reader.peek():
        reader.fail("the end")
    return reader.phrases[0]
