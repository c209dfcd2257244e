"""Captions and statements about boxes of items, true or false by their items: what `nlvr_data` trains on first.

    scene = Scene(random, boxes)
    scene.statement()           # ("there is a tower with a blue block at the top", True)
    describe(boxes)             # "a tower of two blocks: black blue, and nothing"

The forms follow the sentences of the training set; whether one is true is computed from the items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import NamedTuple

__all__ = ["COLOURS", "SIDE", "Box", "Item", "Scene", "describe"]

SIDE = 100
"""of a box, in pixels"""
COLOURS = ("yellow", "black", "blue")
_SHAPES = ("circle", "square", "triangle")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
_MOST = len(_WORDS) - 1
_ANY = ("item", "object", "block")
_TOWER_LEFT, _BLOCK = 40, 20
"""pixels: towers stand in the middle of their box, of blocks of this size"""


@dataclass(frozen=True)
class Item:
    """One item of a box; the edges are pixels, the last two exclusive."""

    colour: str
    shape: str
    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> int:
        """Longer side in pixels."""
        return max(self.right - self.left, self.bottom - self.top)


Box = Sequence[Item]


def _base(item: Item) -> bool:
    return item.bottom >= SIDE - 1


def _top(item: Item) -> bool:
    return item.top <= 1


def _left(item: Item) -> bool:
    return item.left <= 1


def _right(item: Item) -> bool:
    return item.right >= SIDE - 1


def _edge(item: Item) -> bool:
    return _left(item) or _right(item) or _top(item) or _base(item)


def _free(item: Item) -> bool:
    return not _edge(item)


def _corner(item: Item) -> bool:
    return (_left(item) or _right(item)) and (_top(item) or _base(item))


def _anywhere(item: Item) -> bool:
    return True


_TOUCHING: tuple[tuple[str, Callable[[Item], bool]], ...] = (
    ("touching the edge", _edge),
    ("touching the wall", _edge),
    ("touching the base", _base),
    ("touching the bottom", _base),
    ("touching the side", _edge),
    ("closely touching a wall of a box", _edge),
    ("closely touching the bottom of a box", _base),
    ("closely touching the top of a box", _top),
    ("closely touching right wall of a box", _right),
    ("closely touching left wall of a box", _left),
    ("in the corner of the box", _corner),
    ("closely touching a corner of a box", _corner),
    ("not touching any edge", _free),
    ("not touching the edge", _free),
)
_PLACES = (*_TOUCHING, *[("", _anywhere)] * 3)


def _is_tower(box: Box) -> bool:
    return bool(box) and all((i.shape, i.size, i.left) == ("square", _BLOCK, _TOWER_LEFT) for i in box)


def _upwards(box: Box) -> list[str]:
    """Colours of a tower's blocks from its base."""
    return [item.colour for item in sorted(box, key=lambda item: -item.top)]


def _plural(noun: str, number: int) -> str:
    ending = "" if number == 1 else "es" if noun.endswith("x") else "s"
    return noun + ending


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def describe(boxes: Sequence[Box]) -> str:
    """A caption that lists the items of every box."""
    return ", and ".join(map(_described, boxes))


def _described(box: Box) -> str:
    if not box:
        return "nothing"
    number = _WORDS[min(_MOST, len(box))]
    if _is_tower(box):
        return f"a tower of {number} {_plural('block', len(box))}: " + " ".join(_upwards(box))
    counts = Counter((item.colour, item.shape, _where(item)) for item in box)
    listed = (
        f"{_WORDS[min(_MOST, count)] if count > 1 else 'a'} {colour} {_plural(shape, count)}{where}"
        for (colour, shape, where), count in sorted(counts.items())
    )
    return f"a box with {number} {_plural('item', len(box))}: " + " and ".join(listed)


def _where(item: Item) -> str:
    return " touching the base" if _base(item) else " touching the edge" if _edge(item) else ""


class _Kind(NamedTuple):
    """Items that a noun means."""

    colour: str
    shape: str

    @property
    def noun(self) -> str:
        return f"{self.colour} {self.shape}".strip()

    def means(self, item: Item) -> bool:
        return self.colour in ("", item.colour) and self.shape in (*_ANY, item.shape)

    def count(self, box: Box) -> int:
        return sum(map(self.means, box))


class _Quantity(NamedTuple):
    """A number with "exactly", "at least" and the like."""

    how: str
    number: int
    numeral: str

    def of(self, noun: str) -> str:
        return f"{self.how} {self.numeral} {_plural(noun, self.number)}".strip()

    @property
    def there(self) -> str:
        return "there is" if self.number == 1 else "there are"

    def holds(self, count: int) -> bool:
        if self.how in ("exactly", "only"):
            return count == self.number
        return count <= self.number if self.how == "at most" else count >= self.number


class Scene:
    """The boxes of one or two images, and random statements about them."""

    def __init__(self, random: Random, boxes: Sequence[Box]) -> None:
        self.random, self.boxes = random, boxes
        self.items = [item for box in boxes for item in box]
        self.towers = all(map(_is_tower, boxes))
        self.forms = _OF_TOWERS if self.towers else _OF_BOXES

    def statement(self) -> tuple[str, bool]:
        """A statement and whether it is true."""
        return self.random.choice(self.forms)(self)

    @property
    def unit(self) -> str:
        return "tower" if self.towers else self.random.choice(("box", "grey box", "box"))

    @property
    def colour(self) -> str:
        return self.random.choice(COLOURS)

    def kind(self) -> _Kind:
        nouns = ("block", "item") if self.towers else (*_SHAPES, *_SHAPES, "item", "object")
        return _Kind(self.random.choice((*COLOURS, "")), self.random.choice(nouns))

    def numeral(self, number: int) -> str:
        return str(number) if self.random.random() < 0.45 else _WORDS[number]

    def quantity(self, near: int) -> _Quantity:
        number = min(_MOST, max(1, max(1, near) + self.random.choice((-1, 0, 0, 0, 1))))
        how = ("exactly", "exactly", "", "", "only", "at least", "at least", "at most", "at most")
        return _Quantity(self.random.choice(how), number, self.numeral(number))


Form = Callable[[Scene], tuple[str, bool]]


def _number(scene: Scene) -> tuple[str, bool]:
    kind = scene.kind()
    count = kind.count(scene.items)
    quantity = scene.quantity(count)
    return f"{quantity.there} {quantity.of(kind.noun)}", quantity.holds(count)


def _number_touching(scene: Scene) -> tuple[str, bool]:
    kind, (words, where) = scene.kind(), scene.random.choice(_PLACES)
    count = kind.count([item for item in scene.items if where(item)])
    quantity = scene.quantity(count)
    return f"{quantity.there} {quantity.of(kind.noun)} {words}".strip(), quantity.holds(count)


def _with(scene: Scene) -> tuple[str, bool]:
    kind = scene.kind()
    counts = [kind.count(box) for box in scene.boxes]
    quantity = scene.quantity(scene.random.choice(counts))
    if quantity.number == 1 and scene.random.random() < 0.4:
        return f"there is a {scene.unit} with {_a(kind.noun)}", any(counts)
    return f"there is a {scene.unit} with {quantity.of(kind.noun)}", any(map(quantity.holds, counts))


def _with_both(scene: Scene) -> tuple[str, bool]:
    kind, other = scene.kind(), scene.kind()
    quantity = scene.quantity(kind.count(scene.random.choice(scene.boxes)))

    def both(box: Box) -> bool:
        either = sum(kind.means(item) or other.means(item) for item in box)
        return kind.count(box) > 0 and other.count(box) > 0 and either >= 2

    if scene.random.random() < 0.5:
        return f"there is a {scene.unit} with {_a(kind.noun)} and {_a(other.noun)}", any(map(both, scene.boxes))
    true = any(quantity.holds(kind.count(box)) and other.count(box) > 0 for box in scene.boxes)
    return f"there is a {scene.unit} with {quantity.of(kind.noun)} and {_a(other.noun)}", true


def _boxes_with(scene: Scene) -> tuple[str, bool]:
    kind = scene.kind()
    count = sum(kind.count(box) > 0 for box in scene.boxes)
    quantity = scene.quantity(count)
    return f"{quantity.there} {quantity.of('box')} with {_a(kind.noun)}", quantity.holds(count)


def _different_colours(scene: Scene) -> tuple[str, bool]:
    def colours(box: Box) -> int:
        return len({item.colour for item in box})

    box, random = scene.random.choice(scene.boxes), scene.random
    number = min(len(COLOURS), max(1, colours(box) + random.choice((0, 0, -1, 1))))
    size = min(_MOST, max(1, len(box) + random.choice((0, 0, 0, -1, 1))))
    noun = _plural("block" if scene.towers and random.random() < 0.5 else "item", size)
    text = f"there is a {scene.unit} with {scene.numeral(size)} {noun} of {scene.numeral(number)} different "
    true = any(len(box) == size and colours(box) == number for box in scene.boxes)
    return text + _plural("color", number), true


def _only(scene: Scene) -> tuple[str, bool]:
    colour, noun = scene.colour, "blocks" if scene.towers else "items"
    true = any(box and all(item.colour == colour for item in box) for box in scene.boxes)
    return f"there is a {scene.unit} with only {colour} {noun}", bool(true)


def _box_touching(scene: Scene) -> tuple[str, bool]:
    kind, (words, where) = scene.kind(), scene.random.choice(_TOUCHING)
    words = words.removesuffix(" of a box").removesuffix(" of the box")
    return f"there is a box with {_a(kind.noun)} {words}", any(kind.means(i) and where(i) for i in scene.items)


def _none(scene: Scene) -> tuple[str, bool]:
    kind, (words, where) = scene.kind(), scene.random.choice(_PLACES)
    true = not any(kind.means(item) and where(item) for item in scene.items)
    return f"there is no {kind.noun} {words}".strip(), true


def _all(scene: Scene) -> tuple[str, bool]:
    kind, (words, where) = scene.kind(), scene.random.choice(_TOUCHING[:4])
    return f"all {_plural(kind.noun, 2)} are {words}", all(where(i) for i in scene.items if kind.means(i))


def _sizes(scene: Scene) -> tuple[str, bool]:
    quantity = scene.quantity(len(scene.random.choice(scene.boxes)))
    begin = "one of the grey box has" if scene.random.random() < 0.4 else f"there is a {scene.unit} with"
    noun = scene.random.choice(("item", "object"))
    return f"{begin} {quantity.of(noun)}", any(quantity.holds(len(box)) for box in scene.boxes)


def _tower_end(scene: Scene, word: str, end: int) -> tuple[str, bool]:
    colour = scene.colour
    fits = [_upwards(box)[end] == colour for box in scene.boxes]
    block, count = f"{colour} block", sum(fits)
    form = scene.random.randrange(6)
    if form == 0:
        return f"there is a {block} as the {word} of a tower", count > 0
    if form == 1:
        quantity = scene.quantity(len(scene.random.choice(scene.boxes)))
        true = any(fit and quantity.holds(len(box)) for fit, box in zip(fits, scene.boxes, strict=True))
        return f"there is a {block} as the {word} of a tower with {quantity.of('block')}", true
    if form == 2:
        how = scene.random.choice(("exactly", "only"))
        return f"there is {how} one {block} as the {word} of a tower", count == 1
    if form == 3:
        quantity = scene.quantity(count)
        text = f"{quantity.there} {quantity.of('tower')} with a {block} at the {word}"
        return text, quantity.holds(count)
    if form == 4:
        return f"there is a tower with a {block} at the {word}", count > 0
    if end == 0:
        return f"there is a tower that has a {colour} base", count > 0
    return f"there is a tower with a {colour} {scene.random.choice(('item', 'block'))} on top", count > 0


def _tower_base(scene: Scene) -> tuple[str, bool]:
    return _tower_end(scene, "base", 0)


def _tower_top(scene: Scene) -> tuple[str, bool]:
    return _tower_end(scene, "top", -1)


def _over(scene: Scene) -> tuple[str, bool]:
    one, two = scene.colour, scene.colour
    word = scene.random.choice(("above", "on", "over", "below", "on top of"))
    upwards = (one, two) if word == "below" else (two, one)
    true = any(pair == upwards for box in scene.boxes for pair in pairwise(_upwards(box)))
    return f"there is a {one} block {word} a {two} block", true


def _tower_sizes(scene: Scene) -> tuple[str, bool]:
    quantity = scene.quantity(len(scene.random.choice(scene.boxes)))
    count = sum(quantity.holds(len(box)) for box in scene.boxes)
    if scene.random.random() < 0.3:
        towers = scene.quantity(count)
        return f"{towers.there} {towers.of('tower')} with {quantity.of('block')}", towers.holds(count)
    return f"there is a tower with {quantity.of('block')}", count > 0


def _tower_colour(scene: Scene) -> tuple[str, bool]:
    kind = _Kind(scene.colour, "block")
    counts = [kind.count(box) for box in scene.boxes]
    quantity = scene.quantity(scene.random.choice(counts))
    return f"there is a tower with {quantity.of(kind.noun)}", any(map(quantity.holds, counts))


def _both_ends(scene: Scene) -> tuple[str, bool]:
    base, top = scene.colour, scene.colour
    true = any((_upwards(box)[0], _upwards(box)[-1]) == (base, top) for box in scene.boxes)
    return f"there is a tower with a {base} block at the base and a {top} block at the top", true


_OF_TOWERS: tuple[Form, ...] = (
    *(_tower_base, _tower_base, _tower_top, _tower_top, _over, _tower_sizes, _tower_sizes, _only, _tower_colour),
    *(_different_colours, _both_ends, _with, _number),
)
_OF_BOXES: tuple[Form, ...] = (
    *[_number] * 3,
    *[_number_touching] * 3,
    *(_with, _with, _with_both, _boxes_with, _different_colours, _only, _box_touching, _none, _sizes, _all),
)
"""a form that is named more than once is that much more frequent"""
