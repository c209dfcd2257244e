"""What a web crawl would put beside an image: mostly true texts, and noise of four known kinds and rates.

    clean          a true caption
    other-image  a true caption of another image of the same split, false of this one
    half-true      a caption of this image with one attribute, place, relation, count or ground changed, false
    advertising    shop and file-name talk that says nothing of the image, from a grammar of its own

Kinds are known by construction and checked by the judge: a clean text is true; texts of the other kinds never
are (advertising is not even grammatical). A spoiled text never names a held-out pair of shape and colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openblip.core.errors import UserError
from openblip.data.world.geometry import INVERSE, RELATIONS
from openblip.data.world.language import Length, plan, realise
from openblip.data.world.scene import COLOURS, GROUNDS, HELD_OUT, SHAPES, SIZES, TEXTURES, Scene, pick
from openblip.data.world.truth import is_true
from openblip.data.world.words import PLACE_WORDS, Phrase, Relation, Statement

__all__ = ["NOISE_KINDS", "NoiseConfig", "advertising", "spoil", "web_text"]

NOISE_KINDS = ("clean", "other-image", "half-true", "advertising")


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Shares of the noisy kinds among web texts; the rest is clean."""

    other_image: float = 0.15
    half_true: float = 0.15
    advertising: float = 0.10

    def __post_init__(self) -> None:
        shares = (self.other_image, self.half_true, self.advertising)
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(f"noise shares must not be negative nor add up to more than 1: {shares}")

    @property
    def rate(self) -> float:
        """Share of the texts that are not clean."""
        return self.other_image + self.half_true + self.advertising


def web_text(
    scene: Scene,
    rng: np.random.Generator,
    config: NoiseConfig,
    *,
    other: Callable[[], Scene],
    length: Length = "mixed",
) -> tuple[str, str]:
    """Write one web text for `scene`.

    Args:
        other: gives another scene at each call, for the texts that belong to another image.

    Returns:
        The text and its kind, one of `NOISE_KINDS`.
    """
    roll = rng.random()
    if roll < config.other_image:
        return _of_another(scene, rng, other, length), "other-image"
    roll -= config.other_image
    if roll < config.half_true:
        return realise(spoil(plan(scene, rng, length=length), scene, rng), rng), "half-true"
    roll -= config.half_true
    if roll < config.advertising:
        return advertising(rng), "advertising"
    return realise(plan(scene, rng, length=length), rng), "clean"


def _of_another(scene: Scene, rng: np.random.Generator, other: Callable[[], Scene], length: Length) -> str:
    for _ in range(100):
        statement = plan(other(), rng, length=length)
        if not is_true(statement, scene):
            return realise(statement, rng)
    raise AssertionError("a hundred captions of other scenes are all true of this one")


# Half-true texts -----------------------------------------------------------------------------------------


def spoil(statement: Statement, scene: Scene, rng: np.random.Generator) -> Statement:
    """Change one fact of a true `statement` so that it is false of `scene`."""
    for _ in range(200):
        changed = _change(statement, rng)
        if changed is not None and not is_true(changed, scene):
            return changed
    # "an object", say, leaves nothing to change: claim an attribute that no object has.
    for colour in sorted(COLOURS, key=lambda _: rng.random()):
        phrase = replace(statement.phrases[0], colour=colour)
        changed = replace(statement, phrases=(phrase, *statement.phrases[1:]))
        if (phrase.shape, colour) not in HELD_OUT and not is_true(changed, scene):
            return changed
    raise AssertionError("every colour is true of the scene")


def _change(statement: Statement, rng: np.random.Generator) -> Statement | None:
    """Change one thing that `statement` names, whether or not it becomes false; None for an unlucky draw."""
    num_phrases = len(statement.phrases)
    facts: list[tuple[str, int]] = [("ground", 0)] * (statement.ground is not None)
    facts += [("relation", i) for i in range(len(statement.relations))] * 2
    for i, phrase in enumerate(statement.phrases):
        facts += [(name, i) for name in ("shape", "colour", "texture", "size", "count") if getattr(phrase, name)]
        facts += [("places", i)] * bool(phrase.places)
    if not facts:
        return None
    name, at = pick(rng, facts)
    if name == "ground":
        return replace(statement, ground=_another(rng, GROUNDS, statement.ground))
    if name == "relation":
        old = statement.relations[at]
        kind = INVERSE[old.kind] if rng.random() < 0.6 else _another(rng, RELATIONS, old.kind)
        relations = list(statement.relations)
        relations[at] = Relation(old.first, kind, old.second)
        return replace(statement, relations=tuple(relations))
    phrase = _change_phrase(statement.phrases[at], name, rng)
    if (phrase.shape, phrase.colour) in HELD_OUT:
        return None
    phrases = tuple(phrase if i == at else statement.phrases[i] for i in range(num_phrases))
    return replace(statement, phrases=phrases)


def _change_phrase(phrase: Phrase, name: str, rng: np.random.Generator) -> Phrase:
    if name == "shape":
        return replace(phrase, shape=_another(rng, SHAPES, phrase.shape))
    if name == "colour":
        return replace(phrase, colour=_another(rng, COLOURS, phrase.colour))
    if name == "texture":
        return replace(phrase, texture=_another(rng, TEXTURES, phrase.texture))
    if name == "size":
        return replace(phrase, size=_another(rng, SIZES, phrase.size))
    if name == "places":
        return replace(phrase, places=pick(rng, [places for places in PLACE_WORDS if places != phrase.places]))
    assert name == "count"
    return replace(phrase, count=pick(rng, [number for number in (2, 3, 4) if number != phrase.count]))


def _another(rng: np.random.Generator, values: Sequence[str], value: str | None) -> str:
    return pick(rng, [other for other in values if other != value])


# Advertising ---------------------------------------------------------------------------------------------

_PRODUCTS = (
    "poster",
    "wall art",
    "t-shirt",
    "phone case",
    "sticker set",
    "wallpaper",
    "mug",
    "clip art",
    "logo",
)
_PRAISE = ("best", "cheap", "premium", "new", "vintage", "custom", "trendy", "official")
_SHOPS = ("printshop24", "artmart", "megadeals", "stockpix", "giftbay", "decohome")
_TEMPLATES = (
    "buy {praise} {product} online at {shop} , only $ {price} !",
    "{praise} {product} {year} - free shipping - {shop}",
    "{praise} {praise2} {product} | {shop} | sku {number}",
    "download {praise} {product} hd {number} free",
    "stock photo {number} {shop}",
    "img {number} jpg",
    "sale ! {product} now $ {price} ({percent} % off)",
    "{colour} {product} for kids room , item {number}",
    "click here for more {product} ideas {year}",
    "{shop} - {product} with {colour} {shape} print $ {price}",
    "dsc {number} copyright {shop} {year} all rights reserved",
    "top {percent} {praise} {product} designs of {year}",
)


def advertising(rng: np.random.Generator) -> str:
    """One line of shop talk; colours and shapes in it are those of the product, not of the image."""
    colour, shape = pick(rng, COLOURS), pick(rng, SHAPES)
    while (shape, colour) in HELD_OUT:
        colour = pick(rng, COLOURS)
    return pick(rng, _TEMPLATES).format(
        praise=pick(rng, _PRAISE),
        praise2=pick(rng, _PRAISE),
        product=pick(rng, _PRODUCTS),
        shop=pick(rng, _SHOPS),
        colour=colour,
        shape=shape,
        price=f"{int(rng.integers(3, 60))} . {pick(rng, ('99', '95', '49', '00'))}",
        percent=int(rng.integers(1, 10)) * 5,
        year=int(rng.integers(2016, 2027)),
        number=int(rng.integers(1000, 99999)),
    )
