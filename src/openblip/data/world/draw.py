"""Paint a scene: anti-aliased shapes with textures and shadows on a ground, then what a camera does to it.

Every object is painted on a patch of its own, four times as fine as the image (less for large images), and
reduced; the image itself is never supersampled, which keeps a 64-pixel image near a millisecond. The
camera may zoom in by up to 6% and shift by up to 2% (borders of `geometry` are further apart than that), light
the scene unevenly, blur it and add grain, each with its own probability.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, cos, pi, radians, sin, sqrt

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from openblip.core.errors import UserError
from openblip.data.world.object import Object
from openblip.data.world.scene import Scene, pick

__all__ = ["PAINTS", "draw_scene"]

Paint = tuple[int, int, int]

PAINTS: dict[str, tuple[Paint, Paint]] = {
    "red": ((222, 38, 40), (255, 214, 200)),
    "orange": ((255, 138, 18), (112, 52, 0)),
    "yellow": ((255, 222, 40), (150, 104, 0)),
    "green": ((44, 160, 60), (206, 250, 190)),
    "blue": ((38, 86, 224), (190, 220, 255)),
    "purple": ((132, 50, 176), (232, 200, 250)),
    "pink": ((255, 130, 190), (150, 20, 90)),
    "brown": ((118, 70, 30), (226, 190, 150)),
    "white": ((248, 248, 246), (140, 140, 150)),
    "black": ((26, 26, 30), (150, 150, 160)),
}
"""Each colour's paint, and the second one of its stripes, dots and checks (a tint or shade of the same)."""

_PLAIN_GROUNDS = {"white": (240, 240, 238), "gray": (150, 152, 156), "dark": (46, 48, 62)}
_TEXTURED_GROUNDS = {
    "grass": (92, 140, 58),
    "sand": (222, 198, 148),
    "water": (66, 138, 178),
    "brick": (164, 92, 70),
}
_SHADOW = 77
"""Darkness of an object's shadow, of 255."""
_TILE = 1.6
"""Side of a ground's tile in images; each image is cut from it somewhere else."""


def draw_scene(scene: Scene, rng: np.random.Generator, *, size: int = 64, disturb: float = 1.0) -> np.ndarray:
    """Paint `scene` as uint8 [size, size, 3].

    Args:
        size: side in pixels.
        disturb: scales the probability of each disturbance; 0 leaves the plain drawing.

    Raises:
        UserError: a side below 32 pixels, where textures cannot be seen, or above 1024.
    """
    if not 32 <= size <= 1024:
        raise UserError(f"images of the world are 32 to 1024 pixels wide, not {size}")
    canvas = Image.fromarray(np.clip(_paint_ground(scene.ground, rng, size), 0, 255).astype(np.uint8))
    zoom, shift_x, shift_y = 1.0, 0.0, 0.0
    if rng.random() < 0.7 * disturb:
        zoom = 1 + 0.06 * rng.random()
        shift_x, shift_y = 0.02 * (2 * rng.random() - 1), 0.02 * (2 * rng.random() - 1)
    for thing in scene.objects:
        x = 0.5 + (thing.x - 0.5) * zoom + shift_x
        y = 0.5 + (thing.y - 0.5) * zoom + shift_y
        _paint_object(canvas, thing, rng, x * size, y * size, thing.radius * zoom * size)
    return _photograph(canvas, rng, disturb)


# Shapes --------------------------------------------------------------------------------------------------


def _arc(start: float, stop: float, num: int, *, radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    turn = np.radians(np.linspace(start, stop, num))
    return np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], axis=1)


@lru_cache(maxsize=1)
def _outlines() -> dict[str, np.ndarray]:
    """Polygons [num_points, 2] within the unit disc, y downwards."""
    half = 0.71
    star_turn = np.radians(np.arange(10) * 36 - 90)
    star_radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.46)
    t = np.linspace(0, 2 * pi, 40, endpoint=False)
    # The well-known heart curve, scaled into the disc.
    heart = np.stack(
        [16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))]
    )
    arm = 0.34
    plus = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    plus += [(arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
    shapes = {
        "circle": _arc(0, 360, 48),
        "ring": _arc(0, 360, 48),
        "square": np.array([(-half, -half), (half, -half), (half, half), (-half, half)]),
        "triangle": _arc(-90, 150, 3),
        "star": np.stack([star_radius * np.cos(star_turn), star_radius * np.sin(star_turn)], axis=1),
        "heart": heart.T / 17.5 + np.array([0, -0.08]),
        "cross": np.array(plus) * 0.93,
        "diamond": np.array([(0, -1), (0.8, 0), (0, 1), (-0.8, 0)]),
        "moon": np.concatenate([_arc(50, 310, 32), _arc(290.9, 69.1, 24, radius=0.82, x=0.35)]),
        "arrow": np.array(
            [(0, -1), (0.86, 0.02), (0.32, 0.02), (0.32, 0.94), (-0.32, 0.94), (-0.32, 0.02), (-0.86, 0.02)]
        ),
    }
    assert all(np.hypot(*points.T).max() <= 1.01 for points in shapes.values())
    return shapes


def _paint_object(
    canvas: Image.Image, thing: Object, rng: np.random.Generator, x: float, y: float, radius: float
) -> None:
    """Paint one object onto `canvas`; x, y and radius in pixels."""
    side = canvas.width
    scale = 4 if side <= 128 else 2
    margin = 2
    left, top = int(x - radius) - margin, int(y - radius) - margin
    width = ceil(2 * radius) + 2 * margin + 1
    turn = radians(thing.angle)
    matrix = np.array([[cos(turn), sin(turn)], [-sin(turn), cos(turn)]]) * (radius * scale)
    points = _outlines()[thing.shape] @ matrix + np.array([(x - left) * scale, (y - top) * scale])
    flat = list(map(tuple, points.tolist()))

    paint, second = PAINTS[thing.colour]
    edge = tuple(int(0.45 * value) for value in paint) if thing.colour != "black" else (92, 92, 100)
    patch = _fill(thing.texture, rng, width * scale, radius * scale, side * scale, paint, second)
    mask = Image.new("L", (width * scale, width * scale), 0)
    ImageDraw.Draw(mask).polygon(flat, fill=255)
    pen = ImageDraw.Draw(patch)
    line = max(2, round(0.014 * side * scale))
    pen.line([*flat, flat[0], flat[1]], fill=edge, width=line)
    if thing.shape == "ring":
        middle_x, middle_y, hole = (x - left) * scale, (y - top) * scale, 0.6 * radius * scale
        box = (middle_x - hole, middle_y - hole, middle_x + hole, middle_y + hole)
        ImageDraw.Draw(mask).ellipse(box, fill=0)
        pen.ellipse(box, outline=edge, width=line)
    alpha = mask.reduce(scale)
    drop = max(1, round(side / 48))
    shadow = ImageChops.multiply(alpha, Image.new("L", alpha.size, _SHADOW))
    canvas.paste((0, 0, 0), (left + drop, top + drop), shadow)
    canvas.paste(patch.reduce(scale), (left, top), alpha)


def _fill(
    texture: str, rng: np.random.Generator, width: int, radius: float, side: int, paint: Paint, second: Paint
) -> Image.Image:
    """A patch of `width` fine pixels in a texture that follows the radius, but stays visible on small objects."""
    patch = Image.new("RGB", (width, width), paint)
    if texture == "plain":
        return patch
    line = np.arange(width, dtype=np.float32)
    phase, other = rng.random(), rng.random()
    if texture == "striped":
        turn = pick(rng, (0.0, 0.25, 0.5, 0.75)) * pi + 0.1
        period = max(0.40 * radius, 0.060 * side)
        along = (line * (cos(turn) / period))[None, :] + (line * (sin(turn) / period))[:, None] + phase
        chosen = along - np.floor(along) < 0.46
    elif texture == "dotted":
        period = max(0.44 * radius, 0.066 * side)
        across, down = line / period + phase, line / period + other
        across, down = across - np.floor(across) - 0.5, down - np.floor(down) - 0.5
        chosen = (across * across)[None, :] + (down * down)[:, None] < 0.31**2
    else:
        cell = max(0.42 * radius, 0.052 * side)
        chosen = (np.floor(line / cell + phase)[None, :] + np.floor(line / cell + other)[:, None]) % 2 == 0
    patch.paste(second, (0, 0), Image.fromarray(chosen).convert("L"))
    return patch


# Grounds -------------------------------------------------------------------------------------------------


def _paint_ground(ground: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """The ground alone as float32 [size, size, 3]."""
    tint = 0.94 + 0.12 * rng.random()
    if ground in _PLAIN_GROUNDS:
        base = np.array(_PLAIN_GROUNDS[ground], dtype=np.float32) * min(tint, 1.04)
        canvas = np.empty((size, size, 3), dtype=np.float32)
        slope = np.linspace(1 - 0.10 * rng.random(), 1.0, size, dtype=np.float32)
        canvas[:] = base * slope[:: -1 if rng.random() < 0.5 else 1, None, None]
        return canvas
    tile = _ground_tile(ground, size)
    room = tile.shape[0] - size
    x, y = int(rng.random() * room), int(rng.random() * room)
    return tile[y : y + size, x : x + size] * np.float32(tint)


@lru_cache(maxsize=32)
def _ground_tile(ground: str, size: int) -> np.ndarray:
    """float32 [S, S, 3] with S = 1.6 sizes: a ground to cut images from, the same in every process."""
    side = int(size * _TILE)
    rng = np.random.Generator(np.random.Philox(key=[sorted(_TEXTURED_GROUNDS).index(ground), 7]))
    base = np.array(_TEXTURED_GROUNDS[ground], dtype=np.float32)
    row, column = np.mgrid[0:side, 0:side] / size
    if ground == "grass":
        light = 0.75 * _smooth(rng, side, (size / 80, size / 28)) + 0.45 * _smooth(rng, side, (size / 8, size / 8))
        tile = base * (1 + 0.11 * light)[..., None]
    elif ground == "sand":
        waves = np.sin(2 * pi * (row * 7 + 0.35 * np.sin(2 * pi * column * 1.1 + 1) + 0.2 * column))
        grain = rng.standard_normal((side, side))
        tile = base * (1 + 0.035 * waves + 0.035 * grain)[..., None]
    elif ground == "water":
        waves = np.sin(
            2 * pi * (row * 6 + 0.22 * np.sin(2 * pi * column * 2.3) + 0.1 * np.sin(2 * pi * column * 5.1))
        )
        glints = np.clip(waves, 0.55, 1) - 0.55
        tile = base * (1 + 0.05 * waves)[..., None] + 55 * glints[..., None]
    else:
        course = row * 9
        joint_y = course - np.floor(course)
        along = column * 4.5 + 0.5 * (np.floor(course) % 2)
        joint_x = along - np.floor(along)
        mortar = (joint_y < 0.16) | (joint_x < 0.08)
        shades = rng.uniform(0.91, 1.07, size=(16, 9))
        brick = shades[np.floor(course).astype(int) % 16, np.floor(along).astype(int) % 9]
        tile = np.where(mortar[..., None], np.array([184, 150, 132]), base * brick[..., None])
        tile = tile * (1 + 0.025 * rng.standard_normal((side, side)))[..., None]
    tile = np.clip(tile, 0, 255).astype(np.float32)
    tile.flags.writeable = False
    return tile


def _smooth(rng: np.random.Generator, side: int, radius: tuple[float, float]) -> np.ndarray:
    """Noise of mean 0 and standard deviation 1, smoothed by (x, y) pixels."""
    noise = Image.fromarray(rng.standard_normal((side, side)).astype(np.float32) * 40 + 128).convert("L")
    smooth = np.asarray(noise.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    return (smooth - smooth.mean()) / max(float(smooth.std()), 1e-3)


# Camera --------------------------------------------------------------------------------------------------


def _photograph(canvas: Image.Image, rng: np.random.Generator, disturb: float) -> np.ndarray:
    """Blur, uneven light and grain, each with its probability; returns uint8 [size, size, 3]."""
    side = canvas.width
    light: np.ndarray | np.floating | float = 1.0
    if rng.random() < 0.5 * disturb:
        turn, depth = 2 * pi * rng.random(), 0.10 + 0.20 * rng.random()
        line = np.linspace(-0.5, 0.5, side, dtype=np.float32)
        ramp = (line * cos(turn))[None, :] + (line * sin(turn))[:, None]
        light = (0.96 + (depth / sqrt(2)) * ramp)[..., None]
    if rng.random() < 0.4 * disturb:
        light = light * np.float32(0.85 + 0.25 * rng.random())
    if rng.random() < 0.3 * disturb:
        canvas = canvas.filter(ImageFilter.GaussianBlur((0.4 + 0.5 * rng.random()) * side / 64))
    grain: np.ndarray | float = 0.0
    if rng.random() < 0.4 * disturb:
        grain = rng.standard_normal((side, side, 3), dtype=np.float32) * np.float32(3 + 7 * rng.random())
    if isinstance(light, float) and isinstance(grain, float):  # both untouched
        return np.array(canvas)
    return np.clip(np.asarray(canvas) * light + grain, 0, 255).astype(np.uint8)
