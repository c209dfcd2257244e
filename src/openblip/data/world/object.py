"""One thing in a scene of the synthetic world: what it looks like and where it is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Object"]


@dataclass(frozen=True, slots=True)
class Object:
    """One thing in a scene; lengths are shares of the image's side."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    """centre, from the left"""
    y: float
    """centre, from the top"""
    radius: float
    """nothing of it is drawn further from its centre"""
    angle: float
    """small turn in degrees, for variety; no word speaks of it"""
    order: int
    """place in the drawing order: a higher one is in front"""
