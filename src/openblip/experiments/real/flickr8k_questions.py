"""Questions about photographs, made from what people wrote about them, and how they are answered.

Rules, all over the captions of one image (Flickr8k has five):

* "count": how many dogs, people, ... there are: the number that at least two captions name with the noun, when no
  caption names another one. "a dog" counts as one only where no caption has the plural. At most half of them are
  answered by "one", which would else be right four times in five.
* "colour": the colour that at least two captions give a garment or an animal, when no caption gives it another one.
* "exists": whether there is a thing: yes where at least three captions name it or a synonym, no where none does; as
  many yes as no for each thing, so that neither answer is right more often.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.generation.config import DecodeConfig
from openblip.generation.language import decode_after, score_after
from openblip.metrics.words import split_words
from openblip.models.language import FrozenLanguage
from openblip.tasks.config import QUESTION_PROMPTS

__all__ = ["CHOICES", "KINDS", "Asked", "accuracy", "answer", "ask_about", "guessing"]

KINDS = ("count", "colour", "exists")
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_COUNTED = {
    "dog": ("dogs", "How many dogs are there?"),
    "man": ("men", "How many men are there?"),
    "woman": ("women", "How many women are there?"),
    "boy": ("boys", "How many boys are there?"),
    "girl": ("girls", "How many girls are there?"),
    "person": ("people", "How many people are there?"),
    "child": ("children", "How many children are there?"),
}
_COLOURS = ("black", "white", "red", "blue", "green", "yellow", "brown", "orange", "pink", "purple", "gray")
_SPELLED = {"grey": "gray", "tan": "brown"}
_COLOURED = ("shirt", "jacket", "coat", "hat", "dress", "shorts", "helmet", "uniform", "jersey", "dog")
_THINGS = {
    "dog": ("dog", "dogs", "puppy", "puppies"),
    "man": ("man", "men", "guy", "guys", "person", "people", "adult", "male"),
    "woman": ("woman", "women", "lady", "ladies", "person", "people", "adult", "female"),
    "ball": ("ball", "balls", "football", "basketball", "soccer", "baseball", "tennis", "volleyball"),
    "bicycle": ("bicycle", "bicycles", "bike", "bikes", "cyclist", "bicyclist", "biker", "cycling"),
    "snow": ("snow", "snowy", "snowboarder", "skier", "ski", "skis", "skiing", "snowboard", "ice"),
    "water": ("water", "ocean", "sea", "lake", "pool", "river", "beach", "wave", "waves", "pond", "stream"),
    "grass": ("grass", "grassy", "lawn", "field", "meadow"),
    "beach": ("beach", "sand", "sandy", "shore", "ocean", "sea"),
    "horse": ("horse", "horses", "pony"),
    "car": ("car", "cars", "truck", "vehicle", "vehicles", "suv", "van"),
}
"""what is asked for, and words that speak of it: where one of them stands in a caption the answer is not "no" """
CHOICES: dict[str, tuple[str, ...]] = {
    "count": ("one", "two", "three", "four"),
    "colour": _COLOURS,
    "exists": ("yes", "no"),
}
_SAME = {"1": "one", "2": "two", "3": "three", "4": "four", "grey": "gray", "yeah": "yes"}
_SHORT = DecodeConfig(max_new_tokens=4)
_ROWS = 128


@dataclass(frozen=True)
class Asked:
    """A question about the image of number `row`."""

    row: int
    kind: str
    text: str
    answer: str


def ask_about(captions: Sequence[Sequence[str]], *, most: int, seed: int = 0) -> list[Asked]:
    """Questions about images by their captions, at most `most` of each kind, spread evenly over the images."""
    words = [[split_words(text.lower()) for text in texts] for texts in captions]
    found: dict[str, list[Asked]] = {
        "count": _balanced([one for row, texts in enumerate(words) for one in _counts(row, texts)]),
        "colour": [one for row, texts in enumerate(words) for one in _colours(row, texts)],
        "exists": _exists(words, most, np.random.default_rng(seed)),
    }
    return [one for kind in KINDS for one in _spread(found[kind], most)]


def _spread(asked: Sequence[Asked], most: int) -> list[Asked]:
    """At most `most` of them, evenly from the first to the last."""
    places = np.linspace(0, len(asked) - 1, min(most, len(asked))).astype(int)
    return [asked[place] for place in places.tolist()]


def _balanced(asked: Sequence[Asked]) -> list[Asked]:
    """With no more answers "one" than others, by image."""
    more = [one for one in asked if one.answer != "one"]
    single = _spread([one for one in asked if one.answer == "one"], len(more))
    return sorted((*more, *single), key=lambda one: one.row)


def _counts(row: int, texts: Sequence[Sequence[str]]) -> Iterable[Asked]:
    for singular, (plural, question) in _COUNTED.items():
        named: Counter[int] = Counter()
        several = False
        for text in texts:
            numbers = set(_numbers(text, singular, plural))
            several |= plural in text and not numbers - {1}
            named.update(numbers)
        if len(named) == 1:
            ((number, times),) = named.items()
            # "a dog" may be said of one of several: more captions have to say so, and none speaks of several.
            certain = times >= 2 if number > 1 else times >= 3 and not several
            if certain:
                yield Asked(row, "count", question, CHOICES["count"][number - 1])


def _numbers(text: Sequence[str], singular: str, plural: str) -> Iterable[int]:
    """Numbers that stand before the noun with at most two words between."""
    for place, word in enumerate(text):
        if word not in (singular, plural):
            continue
        for before in range(place - 1, max(place - 4, -1), -1):
            number = _NUMBERS.get(text[before])
            if number is not None and (number == 1) == (word == singular):
                yield number
            if number is not None or text[before] in ("and", "with", "of"):
                break


def _colours(row: int, texts: Sequence[Sequence[str]]) -> Iterable[Asked]:
    for noun in _COLOURED:
        named: Counter[str] = Counter()
        clear = True
        for text in texts:
            for place, word in enumerate(text):
                if word != noun or not place:
                    continue
                colour = _SPELLED.get(text[place - 1], text[place - 1])
                # "black and white dog", "red striped shirt": more than one colour, or none that is plain
                mixed = place > 1 and text[place - 2] in ("and", *_COLOURS, *_SPELLED)
                if colour in _COLOURS and not mixed:
                    named[colour] += 1
                clear &= not mixed
        if clear and len(named) == 1:
            ((colour, times),) = named.items()
            if times >= 2:
                verb = "are" if noun == "shorts" else "is"
                yield Asked(row, "colour", f"What color {verb} the {noun}?", colour)


def _exists(words: Sequence[Sequence[Sequence[str]]], most: int, rng: np.random.Generator) -> list[Asked]:
    found: list[Asked] = []
    each = max(1, most // (2 * len(_THINGS)))
    for thing, others in _THINGS.items():
        times = [sum(bool({thing, f"{thing}s"} & set(text)) for text in texts) for texts in words]
        named = [any(set(others) & set(text) for text in texts) for texts in words]
        yes = [row for row, count in enumerate(times) if count >= 3]
        no = [row for row, known in enumerate(named) if not known]
        count = min(each, len(yes), len(no))
        named_thing = thing if thing in ("snow", "water", "grass") else f"a {thing}"
        question = f"Is there {named_thing} in the image?"
        for rows, answer in ((yes, "yes"), (no, "no")):
            drawn = sorted(rng.choice(rows, count, replace=False).tolist()) if count else []
            found += [Asked(row, "exists", question, answer) for row in drawn]
    return found


@torch.no_grad()
def answer(
    llm: FrozenLanguage, tokenizer: LanguageTokenizer, asked: Sequence[Asked], *, soft: Tensor | None
) -> tuple[list[str], list[str]]:
    """What a language model writes, and which of the usual answers of the kind it finds likeliest.

    Args:
        soft: soft prompts [images, Q, L]; None shows no image.

    Returns:
        two lists, one answer for each of `asked`.
    """
    weight = llm.hf.get_input_embeddings().weight
    written: list[str] = []
    ranked: list[str] = [""] * len(asked)
    prompts = [QUESTION_PROMPTS[llm.is_encoder_decoder].replace("{}", one.text) for one in asked]

    def seen(rows: Sequence[int]) -> Tensor:
        if soft is None:
            return weight.new_zeros(len(rows), 0, llm.width)
        return soft[torch.tensor([asked[row].row for row in rows])]

    for start in range(0, len(asked), _ROWS):
        part = range(start, min(start + _ROWS, len(asked)))
        decoded = decode_after(llm, tokenizer, seen(part), _SHORT, prompts=[prompts[row] for row in part])
        written += [tokenizer.decode(ids) for _, ids, _, _ in decoded.texts()]
    by_kind: dict[str, list[int]] = defaultdict(list)
    for row, one in enumerate(asked):
        by_kind[one.kind].append(row)
    for kind, rows in by_kind.items():
        choices = CHOICES[kind]
        own = [prompts[row] for row in rows]
        sums, _ = score_after(llm, tokenizer, seen(rows), [choices] * len(rows), prompts=own)
        for row, best in zip(rows, sums.argmax(1).tolist(), strict=True):
            ranked[row] = choices[best]
    return written, ranked


def accuracy(asked: Sequence[Asked], given: Sequence[str]) -> dict[str, float]:
    """Share of right answers, by kind and in the mean of the kinds ("all"); the first known word counts."""
    shares = {}
    for kind in KINDS:
        right = [
            _first(text, kind) == one.answer for one, text in zip(asked, given, strict=True) if one.kind == kind
        ]
        if right:
            shares[kind] = sum(right) / len(right)
    return {"all": sum(shares.values()) / len(shares), **shares}


def _first(text: str, kind: str) -> str:
    words = [_SAME.get(word, word) for word in re.findall(r"[a-z0-9]+", text.lower())]
    return next((word for word in words if word in CHOICES[kind]), "")


def guessing(asked: Sequence[Asked]) -> dict[str, float]:
    """What one reaches who always gives the most frequent answer to each question."""
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for one in asked:
        by_question[one.text][one.answer] += 1
    return accuracy(asked, [by_question[one.text].most_common(1)[0][0] for one in asked])
