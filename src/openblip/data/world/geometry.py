"""When one object is left of, above, inside or behind another: the only definition, for makers and judges.

Coordinates are shares of the image's side: x grows to the right, y downwards, an object's centre is (x, y)
and every drawn part of it lies within `radius` of its centre. With REACH (how far every shape is solid around
its centre, as a share of its radius) and HOLLOW (how large a disc a container holds), the relations are:

    a left of b      b.x - a.x >= 0.12, whatever the other axis (right of, above, below likewise)
    a inside b       distance + a.radius <= HOLLOW[b.shape] * b.radius, and a is drawn after b
    b around a       a inside b
    a in front of b  distance <= REACH[a] * a.radius + REACH[b] * b.radius - 0.015, a is drawn after b,
                     and neither is inside the other
    b behind a       a in front of b
    on the left      x <= 0.40                (right: x >= 0.60; top: y <= 0.40; bottom: y >= 0.60)
    in the middle    neither left, right, top nor bottom

Every one of these has a border, and near it no caption could be called true or false in good conscience. So
scenes are made with nothing near a border (`clear_offset`, `clear_place`, `clear_pair`): two centres are never
between 0.08 and 0.16 apart along an axis, no centre is within 0.025 of 0.40 or 0.60, and two objects either
keep a gap between them, or overlap visibly, or one lies wholly in the other.
"""

from __future__ import annotations

from math import hypot

from openblip.data.world.object import Object

__all__ = [
    "HOLLOW",
    "INVERSE",
    "MARGIN",
    "PLACES",
    "REACH",
    "RELATIONS",
    "clear_offset",
    "clear_pair",
    "clear_place",
    "holds",
    "is_at",
    "overlapping",
    "true_relations",
]

RELATIONS = ("left", "right", "above", "below", "inside", "around", "front", "behind")
INVERSE = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "inside": "around",
    "around": "inside",
    "front": "behind",
    "behind": "front",
}
PLACES = ("left", "right", "top", "bottom", "middle")

MARGIN = 0.12
"""Least distance along an axis for left of, right of, above, below."""
_CLEAR_OFFSET = (0.08, 0.16)
_EDGES = (0.40, 0.60)
_CLEAR_EDGE = 0.025
_OVERLAP = 0.015
_GAP = 0.02

REACH = {
    "circle": 1.0,
    "square": 0.70,
    "triangle": 0.5,
    "star": 0.45,
    "heart": 0.6,
    "cross": 0.45,
    "diamond": 0.65,
    "ring": 1.0,
}
"""Radius of the largest disc around the centre that a shape fills up to its rim; a ring counts as full, since
its band is what another object covers first. Moons and arrows have no solid centre and are never stacked."""
HOLLOW = {"circle": 1.0, "square": 0.70, "diamond": 0.65, "heart": 0.6, "ring": 0.6}
"""Radius of the disc that an object inside a shape keeps to; only these shapes hold others."""


def _distance(a: Object, b: Object) -> float:
    return hypot(a.x - b.x, a.y - b.y)


def _within(a: Object, b: Object) -> bool:
    hollow = HOLLOW.get(b.shape)
    return hollow is not None and _distance(a, b) + a.radius <= hollow * b.radius


def overlapping(a: Object, b: Object) -> bool:
    """True if the two cover each other in part and neither lies inside the other (order is not asked)."""
    if a.shape not in REACH or b.shape not in REACH or _within(a, b) or _within(b, a):
        return False
    return _distance(a, b) <= REACH[a.shape] * a.radius + REACH[b.shape] * b.radius - _OVERLAP


def holds(relation: str, a: Object, b: Object) -> bool:
    """True if `a` stands in `relation` to `b`; see the head of this file."""
    if relation == "left":
        return b.x - a.x >= MARGIN
    if relation == "right":
        return a.x - b.x >= MARGIN
    if relation == "above":
        return b.y - a.y >= MARGIN
    if relation == "below":
        return a.y - b.y >= MARGIN
    if relation == "inside":
        return a.order > b.order and _within(a, b)
    if relation == "around":
        return b.order > a.order and _within(b, a)
    if relation == "front":
        return a.order > b.order and overlapping(a, b)
    if relation == "behind":
        return b.order > a.order and overlapping(a, b)
    raise AssertionError(f"no relation {relation}")


def true_relations(a: Object, b: Object) -> list[str]:
    """All relations in which `a` stands to `b`."""
    return [relation for relation in RELATIONS if holds(relation, a, b)]


def is_at(place: str, thing: Object) -> bool:
    """True if `thing` is on the left, right, top or bottom, or in the middle, of the image."""
    low, high = _EDGES
    if place == "left":
        return thing.x <= low
    if place == "right":
        return thing.x >= high
    if place == "top":
        return thing.y <= low
    if place == "bottom":
        return thing.y >= high
    if place == "middle":
        return low < thing.x < high and low < thing.y < high
    raise AssertionError(f"no place {place}")


def clear_offset(a: Object, b: Object) -> bool:
    """True if the two are clearly apart or clearly level along both axes."""
    low, high = _CLEAR_OFFSET
    return not (low < abs(a.x - b.x) < high or low < abs(a.y - b.y) < high)


def clear_place(x: float, y: float) -> bool:
    """True if (x, y) is at no border between the left, middle and right, or top, middle and bottom."""
    # The edges lie evenly around the middle, so one comparison does for both.
    edge = _EDGES[1] - 0.5
    return abs(abs(x - 0.5) - edge) >= _CLEAR_EDGE and abs(abs(y - 0.5) - edge) >= _CLEAR_EDGE


def clear_pair(a: Object, b: Object) -> bool:
    """True if the two are clearly apart: a gap is left between their outer discs."""
    return _distance(a, b) >= a.radius + b.radius + _GAP
