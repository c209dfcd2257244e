"""What is in an image of the synthetic world, and how scenes are drawn by lot.

A `Scene` is one to four `Object`s on a ground. `sample_scene(seed, split, index)` is a pure function: the same
three values give the same scene in every process and on every machine with the same NumPy.

Splits: "train", "val" and "test" are drawn alike, from different streams. They never hold one of the ten
HELD_OUT pairs of shape and colour (every shape and every colour is in one of them, so each is well known from
its other pairs); every scene of "novel" holds one object with such a pair, so "novel" against "test"
measures what a model makes of known words in a new combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import cos, pi, sin
from typing import Any, TypeVar

import numpy as np

from openblip.core.errors import UserError, nearest
from openblip.data.world.geometry import HOLLOW, REACH, clear_offset, clear_pair, clear_place, overlapping
from openblip.data.world.object import Object

__all__ = [
    "COLOURS",
    "GROUNDS",
    "HELD_OUT",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TEXTURES",
    "VERSION",
    "Scene",
    "pick",
    "random_stream",
    "sample_scene",
    "scene_from_dict",
    "scene_to_dict",
]

VERSION = 1
"""Changes whenever the same (seed, split, index) would give another scene, image or text."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring", "moon", "arrow")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "large")
GROUNDS = ("white", "gray", "dark", "grass", "sand", "water", "brick")
SPLITS = ("train", "val", "test", "novel")

# Three and ten share no divisor, so every shape and every colour occurs in exactly one pair.
HELD_OUT = frozenset((shape, COLOURS[(3 * i + 2) % len(COLOURS)]) for i, shape in enumerate(SHAPES))
"""Pairs of shape and colour that only the split "novel" holds."""

CLASHES = {
    "white": {"white"},
    "gray": {"black"},
    "dark": {"black", "brown"},
    "grass": {"green"},
    "sand": {"brown", "orange"},
    "water": {"blue"},
    "brick": {"red", "brown"},
}
"""Colours that would drown in a ground and are not put on it."""

_STREAMS = ("scene", "image", "captions", "web", "questions", "pairs")
_NUM_OBJECTS = (0.15, 0.30, 0.30, 0.25)
_INSIDE, _STACKED = 0.16, 0.22
"""Shares of the scenes of two and more objects in which one is inside, or in front of, another."""
_SMALL, _LARGE = (0.115, 0.14), (0.185, 0.225)
_CONTAINER, _CONTENT = (0.24, 0.27), (0.095, 0.12)
_SHARE_LARGE = (0.5, 0.5, 0.4, 0.3)
"""Chance that an object is large, by their number: four large ones find no room."""
_BORDER = 0.03
_MIN_VISIBLE = 0.55
"""Least distance of stacked centres as a share of both radii, so that the one behind can still be seen."""
_MAX_ANGLE = 10.0

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Scene:
    """One to four objects, in drawing order, on a ground."""

    objects: tuple[Object, ...]
    ground: str


_FIELDS = tuple(field.name for field in fields(Object))


def _to_dict(thing: Object) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in _FIELDS}


def scene_to_dict(scene: Scene) -> dict[str, Any]:
    """Return `scene` as plain values, for `Sample.meta` and files."""
    return {"ground": scene.ground, "objects": [_to_dict(thing) for thing in scene.objects]}


def scene_from_dict(data: dict[str, Any]) -> Scene:
    """Read what `scene_to_dict` wrote.

    Raises:
        UserError: this is not a scene of this version.
    """
    try:
        scene = Scene(tuple(Object(**thing) for thing in data["objects"]), data["ground"])
    except (KeyError, TypeError) as error:
        raise UserError(f"this is not a scene of the world (version {VERSION}): {error}") from error
    for thing in scene.objects:
        for kind, value, known in (
            ("shape", thing.shape, SHAPES),
            ("colour", thing.colour, COLOURS),
            ("texture", thing.texture, TEXTURES),
            ("size", thing.size, SIZES),
        ):
            if value not in known:
                raise UserError(f'the world has no {kind} "{value}"{nearest(str(value), known)}')
    if scene.ground not in GROUNDS:
        raise UserError(f'the world has no ground "{scene.ground}"{nearest(str(scene.ground), GROUNDS)}')
    return scene


def random_stream(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """Return the random numbers for one purpose ("scene", "image", "captions", ...) of one sample.

    Purposes have streams of their own, so that asking for more captions changes no image.
    """
    if split not in SPLITS:
        raise UserError(f'the world has no split "{split}"{nearest(split, SPLITS)}')
    if seed < 0 or index < 0:
        raise UserError(f"seed and index must not be negative: {seed}, {index}")
    key = (seed, SPLITS.index(split), index, _STREAMS.index(purpose))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of `items`, each with the same chance (several times faster than `Generator.choice`)."""
    return items[int(rng.random() * len(items))]


def sample_scene(seed: int, split: str, index: int, *, max_objects: int = len(_NUM_OBJECTS)) -> Scene:
    """Draw scene `index` of a split.

    Args:
        max_objects: scenes of more objects become scenes of so many.

    Raises:
        UserError: unknown split, or a negative number.
    """
    rng = random_stream(seed, split, index, "scene")
    roll, count = rng.random(), 1
    for share in _NUM_OBJECTS[:-1]:
        roll -= share
        if roll < 0:
            break
        count += 1
    count = min(count, max_objects)
    structure, ground = rng.random(), pick(rng, GROUNDS)
    # Count, structure and ground stay while looks and places are drawn anew, so that crowded scenes, which
    # fail more often, are no rarer than they should be.
    for _ in range(10_000):
        placed = _attempt(rng, count, structure, ground, novel=split == "novel")
        if placed is not None:
            return Scene(tuple(placed), ground)
    raise AssertionError(f"no scene found for {seed}, {split}, {index}")


def _attempt(
    rng: np.random.Generator, count: int, structure: float, ground: str, *, novel: bool
) -> list[Object] | None:
    """Draw looks and places once; None where the objects find no room."""
    looks = _sample_looks(rng, count, ground, novel=novel)
    placed: list[Object] | None = []
    if count > 1 and structure < _INSIDE:
        placed = _place_inside(rng, looks)
    elif count > 1 and structure < _INSIDE + _STACKED:
        placed = _place_stacked(rng, looks)
    if placed is None:
        return None
    for look in looks[len(placed) :]:
        thing = _place_apart(rng, look, placed, share_large=_SHARE_LARGE[count - 1])
        if thing is None:
            return None
        placed.append(thing)
    return placed


def _sample_looks(rng: np.random.Generator, count: int, ground: str, *, novel: bool) -> list[tuple[str, str, str]]:
    """Draw (shape, colour, texture) for each object; alike objects are frequent enough to be counted."""
    special = int(rng.random() * count) if novel else -1
    pairs = sorted(pair for pair in HELD_OUT if pair[1] not in CLASHES[ground])
    looks: list[tuple[str, str, str]] = []
    while len(looks) < count:
        if len(looks) == special:
            shape, colour = pick(rng, pairs)
        else:
            shape, colour = pick(rng, SHAPES), pick(rng, COLOURS)
            if looks and (roll := rng.random()) < 0.36:
                model = pick(rng, looks)
                shape = model[0] if roll < 0.26 else shape
                colour = model[1] if not 0.12 <= roll < 0.26 else colour
            if colour in CLASHES[ground] or (shape, colour) in HELD_OUT:
                continue
        texture = "plain" if rng.random() < 0.5 else pick(rng, TEXTURES[1:])
        looks.append((shape, colour, texture))
    return looks


def _make(
    rng: np.random.Generator, look: tuple[str, str, str], radii: tuple[float, float], size: str, order: int
) -> Object:
    shape, colour, texture = look
    radius = radii[0] + (radii[1] - radii[0]) * rng.random()
    low, span = _BORDER + radius, 1 - 2 * (_BORDER + radius)
    x, y = low + span * rng.random(), low + span * rng.random()
    while not clear_place(x, y):
        x, y = low + span * rng.random(), low + span * rng.random()
    angle = _MAX_ANGLE * (2 * rng.random() - 1)
    return Object(shape, colour, texture, size, x, y, radius, angle, order)


def _fits(thing: Object, placed: Sequence[Object]) -> bool:
    return clear_place(thing.x, thing.y) and all(clear_offset(thing, other) for other in placed)


def _in_image(thing: Object) -> bool:
    reach = _BORDER + thing.radius
    return reach <= thing.x <= 1 - reach and reach <= thing.y <= 1 - reach


def _place_apart(
    rng: np.random.Generator, look: tuple[str, str, str], placed: Sequence[Object], *, share_large: float
) -> Object | None:
    size, radii = ("large", _LARGE) if rng.random() < share_large else ("small", _SMALL)
    for _ in range(30):
        thing = _make(rng, look, radii, size, len(placed))
        if _fits(thing, placed) and all(clear_pair(thing, other) for other in placed):
            return thing
    return None


def _place_inside(rng: np.random.Generator, looks: Sequence[tuple[str, str, str]]) -> list[Object] | None:
    """Put the second object into the first, if the first can hold one and their colours differ."""
    (shape, colour, _), (_, other_colour, _) = looks[:2]
    if shape not in HOLLOW or (colour == other_colour and shape != "ring"):
        return None
    for _ in range(30):
        outer = _make(rng, looks[0], _CONTAINER, "large", 0)
        inner = _make(rng, looks[1], _CONTENT, "small", 1)
        room = max(0.0, HOLLOW[shape] * outer.radius - inner.radius - 0.005)
        distance, turn = room * rng.random(), 2 * pi * rng.random()
        inner = replace(inner, x=outer.x + distance * cos(turn), y=outer.y + distance * sin(turn))
        if room > 0 and _fits(inner, (outer,)):
            return [outer, inner]
    return None


def _place_stacked(rng: np.random.Generator, looks: Sequence[tuple[str, str, str]]) -> list[Object] | None:
    """Put the second object in front of the first, hiding part of it, if their shapes and colours allow it."""
    (shape, colour, _), (other_shape, other_colour, _) = looks[:2]
    if shape not in REACH or other_shape not in REACH or colour == other_colour:
        return None
    for _ in range(30):
        sizes = [("large", _LARGE) if rng.random() < 0.6 else ("small", _SMALL) for _ in range(2)]
        back = _make(rng, looks[0], sizes[0][1], sizes[0][0], 0)
        front = _make(rng, looks[1], sizes[1][1], sizes[1][0], 1)
        reaches = REACH[shape] * back.radius, REACH[other_shape] * front.radius
        depth = max(0.03, min(reaches) * (0.25 + 0.25 * rng.random()))
        distance, turn = sum(reaches) - depth, 2 * pi * rng.random()
        front = replace(front, x=back.x + distance * cos(turn), y=back.y + distance * sin(turn))
        if distance < _MIN_VISIBLE * (front.radius + back.radius):
            continue
        if _in_image(front) and _fits(front, (back,)) and overlapping(front, back):
            return [back, front]
    return None
