"""Scenes, their geometry and their images: deterministic, clear of every border, drawn where they say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from math import hypot

import numpy as np
import pytest

from openblip.core.errors import UserError
from openblip.data.world.draw import PAINTS, draw_scene
from openblip.data.world.geometry import INVERSE, PLACES, RELATIONS, holds, is_at, true_relations
from openblip.data.world.object import Object
from openblip.data.world.scene import (
    CLASHES,
    COLOURS,
    HELD_OUT,
    SHAPES,
    Scene,
    random_stream,
    sample_scene,
    scene_from_dict,
    scene_to_dict,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(3, "train", i) for i in range(600)]


def thing(shape: str, colour: str, x: float, y: float, radius: float, order: int, texture: str = "plain") -> Object:
    return Object(shape, colour, texture, "large" if radius > 0.15 else "small", x, y, radius, 0.0, order)


def test_scenes_are_a_function_of_seed_split_and_index() -> None:
    assert sample_scene(1, "train", 5) == sample_scene(1, "train", 5)
    others = [sample_scene(2, "train", 5), sample_scene(1, "val", 5), sample_scene(1, "train", 6)]
    assert all(other != sample_scene(1, "train", 5) for other in others)


def test_scenes_of_few_objects(scenes: list[Scene]) -> None:
    for index, scene in enumerate(scenes[:100]):
        few = sample_scene(3, "train", index, max_objects=2)
        assert len(few.objects) == min(2, len(scene.objects))
        if len(scene.objects) <= 2:
            assert few == scene
        assert len(sample_scene(3, "train", index, max_objects=1).objects) == 1


def test_scenes_hold_what_is_promised(scenes: list[Scene]) -> None:
    counts = Counter(len(scene.objects) for scene in scenes)
    for number, share in zip((1, 2, 3, 4), (0.15, 0.30, 0.30, 0.25), strict=True):
        assert counts[number] / len(scenes) == pytest.approx(share, abs=0.06)
    kinds = Counter(
        kind
        for scene in scenes
        for kind in {k for pair in permutations(scene.objects, 2) for k in true_relations(*pair)}
    )
    # 85% of the scenes have two objects; 16% of those one inside another, 22% one in front of another.
    assert kinds["inside"] / len(scenes) == pytest.approx(0.85 * 0.16, abs=0.04)
    assert kinds["front"] / len(scenes) == pytest.approx(0.85 * 0.22, abs=0.05)
    for scene in scenes:
        for item in scene.objects:
            assert (item.shape, item.colour) not in HELD_OUT
            assert item.colour not in CLASHES[scene.ground]
            assert item.radius + 0.02 <= min(item.x, item.y, 1 - item.x, 1 - item.y)


def test_nothing_lies_near_a_border(scenes: list[Scene]) -> None:
    for scene in scenes:
        for a in scene.objects:
            assert all(abs(value - edge) >= 0.0249 for value in (a.x, a.y) for edge in (0.4, 0.6))
        for a, b in permutations(scene.objects, 2):
            for offset in (abs(a.x - b.x), abs(a.y - b.y)):
                assert not 0.0801 < offset < 0.1599
            stacked = {"front", "behind", "inside", "around"} & set(true_relations(a, b))
            apart = hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + 0.0199
            assert apart != bool(stacked)
            assert true_relations(a, b), "any two objects can be related"


def test_relations_are_each_others_inverse(scenes: list[Scene]) -> None:
    for scene in scenes[:200]:
        for a, b in permutations(scene.objects, 2):
            assert {INVERSE[kind] for kind in true_relations(a, b)} == set(true_relations(b, a))


def test_relations_by_hand() -> None:
    plate = thing("circle", "red", 0.3, 0.3, 0.24, 0)
    dot = thing("star", "blue", 0.32, 0.3, 0.09, 1)
    far = thing("square", "green", 0.7, 0.32, 0.12, 2)
    leaf = thing("circle", "pink", 0.7, 0.5, 0.12, 3)
    assert true_relations(dot, plate) == ["inside"]
    assert true_relations(plate, dot) == ["around"]
    assert true_relations(plate, far) == ["left"]
    assert true_relations(leaf, far) == ["below", "front"]
    assert true_relations(far, leaf) == ["above", "behind"]
    # Drawn before it, the same dot would be hidden, not inside.
    assert true_relations(replace(dot, order=-1), plate) == []
    assert [place for place in PLACES if is_at(place, plate)] == ["left", "top"]
    assert [place for place in PLACES if is_at(place, leaf)] == ["right"]
    assert is_at("middle", thing("ring", "red", 0.5, 0.55, 0.2, 0))
    assert not any(holds(kind, far, far) for kind in RELATIONS if kind not in ("inside", "around"))


def test_held_out_pairs_cover_every_shape_and_colour_once() -> None:
    assert sorted(shape for shape, _ in HELD_OUT) == sorted(SHAPES)
    assert sorted(colour for _, colour in HELD_OUT) == sorted(COLOURS)
    for index in range(100):
        novel = [(item.shape, item.colour) in HELD_OUT for item in sample_scene(0, "novel", index).objects]
        assert sum(novel) == 1


def test_scenes_survive_plain_values(scenes: list[Scene]) -> None:
    assert all(scene_from_dict(scene_to_dict(scene)) == scene for scene in scenes[:50])
    data = scene_to_dict(scenes[0])
    data["objects"][0]["colour"] = "gren"
    with pytest.raises(UserError, match=r'no colour "gren".*green'):
        scene_from_dict(data)
    with pytest.raises(UserError, match="not a scene"):
        scene_from_dict({"objects": [{"shape": "star"}], "ground": "sand"})


def test_bad_settings_are_named() -> None:
    with pytest.raises(UserError, match=r'no split "tset".*test'):
        sample_scene(0, "tset", 0)
    with pytest.raises(UserError, match="negative"):
        sample_scene(-1, "train", 0)
    with pytest.raises(UserError, match="32 to 1024"):
        draw_scene(sample_scene(0, "train", 0), np.random.default_rng(0), size=16)


# Images


def plain(scene: Scene) -> Scene:
    return replace(scene, objects=tuple(replace(item, texture="plain") for item in scene.objects))


def paint(scene: Scene, *, size: int = 96) -> np.ndarray:
    return draw_scene(scene, np.random.default_rng(0), size=size, disturb=0.0).astype(int)


def test_images_are_repeatable_and_disturbed_by_lot(scenes: list[Scene]) -> None:
    first, again = (draw_scene(scenes[7], random_stream(0, "train", 7, "image")) for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    images = {draw_scene(scenes[7], random_stream(0, "train", i, "image")).tobytes() for i in range(8)}
    assert len(images) == 8


def test_an_object_is_painted_where_it_says_and_in_its_colour() -> None:
    for shape in ("circle", "square", "diamond", "star"):
        for colour in COLOURS:
            item = thing(shape, colour, 0.3, 0.7, 0.2, 0)
            image = paint(Scene((item,), "gray"), size=64)
            np.testing.assert_allclose(image[int(0.7 * 64), int(0.3 * 64)], PAINTS[colour][0], atol=3)


def test_textures_show_both_paints() -> None:
    for texture in ("striped", "dotted", "checkered"):
        image = paint(Scene((thing("square", "blue", 0.5, 0.5, 0.2, 0, texture),), "gray"), size=64)
        body = image[24:40, 24:40].reshape(-1, 3)
        for colour in PAINTS["blue"]:
            share = (np.abs(body - colour).sum(axis=1) < 90).mean()
            assert 0.12 < share < 0.88


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_leaves_its_disc(shape: str) -> None:
    item = replace(thing(shape, "red", 0.5, 0.5, 0.2, 0), angle=10.0)
    empty, full = paint(Scene((), "gray")), paint(Scene((item,), "gray"))
    rows, columns = np.nonzero(np.abs(full - empty).sum(axis=2) > 25)
    distance = np.hypot((columns + 0.5) / 96 - 0.5, (rows + 0.5) / 96 - 0.5)
    # The shadow falls two pixels beside it.
    assert distance.max() < 0.2 + 3.5 / 96
    assert len(rows) > 0.25 * np.pi * (0.2 * 96) ** 2


def test_what_is_inside_is_painted_inside_and_what_is_behind_stays_visible(scenes: list[Scene]) -> None:
    seen = Counter[str]()
    for scene in map(plain, scenes):
        for back, front in permutations(scene.objects, 2):
            if holds("inside", front, back):
                without = paint(Scene((back,), scene.ground))
                changed = np.argwhere(np.abs(paint(Scene((back, front), scene.ground)) - without).sum(axis=2) > 25)
                distance = np.hypot((changed[:, 1] + 0.5) / 96 - back.x, (changed[:, 0] + 0.5) / 96 - back.y)
                assert distance.max() < back.radius
                seen["inside"] += 1
            elif holds("front", front, back):
                empty, alone = paint(Scene((), scene.ground)), paint(Scene((back,), scene.ground))
                only_front, both = paint(Scene((front,), scene.ground)), paint(Scene((back, front), scene.ground))
                whole = (np.abs(alone - empty).sum(axis=2) > 60).sum()
                visible = (np.abs(both - only_front).sum(axis=2) > 60).sum()
                assert 0.35 * whole < visible < whole, (back, front)
                seen["front"] += 1
        if min(seen["inside"], seen["front"]) >= 25:
            return
    pytest.fail(f"too few scenes to test: {seen}")
