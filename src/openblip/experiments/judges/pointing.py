"""The pointing game in the synthetic world: does the map's peak fall on the object that the text names?

Only images where the answer is plain are asked about: two or more objects, one of the named shape and colour, and
nothing touching it. A peak is on an object when the centre of its patch lies within the object's radius.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import hypot

import numpy as np
import torch
from PIL import Image

from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.transforms import evaluation_transform
from openblip.data.world.dataset import WorldSource
from openblip.data.world.object import Object
from openblip.explain.cam import WordMap, caption_maps, match_maps, peak_of
from openblip.models.blip import Blip

__all__ = ["Pointing", "measure_pointing"]


@dataclass(frozen=True, slots=True)
class Pointing:
    """How often peaks fall where."""

    images: int
    named: float
    """share of the images in which the peak lies on the named object"""
    other: float
    """on another given object of the same image: what a map that follows any object, unasked, would reach
    for the named one too"""
    chance: float
    """share of the patches that the named objects cover: what a peak anywhere would reach"""

    @property
    def deviation(self) -> float:
        """Standard error of `named`."""
        return (self.named * (1 - self.named) / self.images) ** 0.5


def measure_pointing(
    model: Blip,
    tokenizer: TextTokenizer,
    world: WorldSource,
    *,
    images: int = 200,
    by: str = "match",
    prompt: str = "",
    layer: int | None = None,
) -> Pointing:
    """Ask for one object in each of the first `images` plain images of `world`.

    Args:
        by: "match" looks by ITM, "caption" by writing.
        prompt: how the captioner begins.

    Raises:
        UserError: the world has too few such images.
    """
    transform = evaluation_transform(model.config.vision.image_size)
    maps: Callable[..., list[WordMap]] = match_maps if by == "match" else caption_maps
    more = {} if by == "match" else {"prompt": prompt}
    first = next(model.parameters())
    named, other, chance, asked = 0, 0, 0.0, 0
    for index, thing, rival in _plain(world):
        image = transform(Image.fromarray(world.image(index)), np.random.default_rng(0))
        with torch.no_grad():
            memory = model.remember(model.encode_pixels(image[None].to(first.device)))
        words = maps(model, tokenizer, memory, f"a {thing.colour} {thing.shape}", layer=layer, **more)
        weights = torch.stack([word.weights for word in words[1:]]).mean(0)  # of colour and shape, not of "a"
        x, y = peak_of(weights)
        named += _on(thing, x, y)
        other += _on(rival, x, y)
        chance += _covered(thing, weights.shape[0], weights.shape[1])
        asked += 1
        if asked == images:
            return Pointing(asked, named / asked, other / asked, chance / asked)
    raise UserError(f"{world.name} has {asked} images that are plain enough to ask about, not {images}")


def _plain(world: WorldSource) -> Iterator[tuple[int, Object, Object]]:
    """Images to ask about: index, the object to name, another one; both drawn by the index."""
    for index in range(len(world)):
        things = world.scene(index).objects
        clear = [thing for thing in things if all(_apart(thing, rival) for rival in things if rival is not thing)]
        if len(things) > 1 and clear:
            thing = clear[index % len(clear)]
            rivals = [rival for rival in things if rival is not thing]
            yield index, thing, rivals[index % len(rivals)]


def _apart(thing: Object, rival: Object) -> bool:
    """Neither touching nor of the same name."""
    distance = hypot(thing.x - rival.x, thing.y - rival.y)
    return distance > thing.radius + rival.radius and (thing.shape, thing.colour) != (rival.shape, rival.colour)


def _on(thing: Object, x: float, y: float) -> bool:
    return hypot(x - thing.x, y - thing.y) <= thing.radius


def _covered(thing: Object, rows: int, columns: int) -> float:
    """Share of the patches whose centre lies on `thing`."""
    centres = (((i + 0.5) / columns, (j + 0.5) / rows) for j in range(rows) for i in range(columns))
    return sum(_on(thing, x, y) for x, y in centres) / (rows * columns)
