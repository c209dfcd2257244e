"""The pointing game, played with maps whose right score is known; and the drawing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import hypot
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openblip.core.errors import MissingExtra, UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.world.dataset import WorldSource
from openblip.data.world.object import Object
from openblip.experiments.judges import pointing
from openblip.experiments.judges.pointing import measure_pointing
from openblip.explain.cam import WordMap, peak_of
from openblip.explain.drawing import draw_maps
from openblip.models.blip import Blip, blip_config

WORLD = WorldSource(split="test", num_samples=400, size=32)
WORDS = TextTokenizer.train(["a red circle", "a blue square"] * 3, vocab_size=60)
GRID = 8


@pytest.fixture(scope="module")
def model() -> Blip:
    torch.manual_seed(0)
    return Blip(blip_config("nano", vocab_size=WORDS.vocab_size, image_size=64)).eval()


def map_of(thing: Object) -> Tensor:
    """A map that is largest at the centre of `thing`."""
    centres = (torch.arange(GRID) + 0.5) / GRID
    distance = (centres[None, :] - thing.x) ** 2 + (centres[:, None] - thing.y) ** 2
    return 1 - distance


def play(model: Blip, monkeypatch: pytest.MonkeyPatch, maps: Iterator[Tensor]) -> pointing.Pointing:
    def answer(model: Blip, tokenizer: TextTokenizer, memory: object, text: str, **more: object) -> list[WordMap]:
        _, colour, shape = text.split()
        weights = next(maps)
        return [WordMap("a", torch.zeros(GRID, GRID)), WordMap(colour, weights), WordMap(shape, weights)]

    monkeypatch.setattr(pointing, "match_maps", answer)
    return measure_pointing(model, WORDS, WORLD, images=100)


def test_a_map_of_the_named_object_always_hits(model: Blip, monkeypatch: pytest.MonkeyPatch) -> None:
    found = play(model, monkeypatch, (map_of(thing) for _, thing, _ in pointing._plain(WORLD)))
    assert found.images == 100
    assert found.named > 0.97, "but for objects smaller than a patch"
    assert found.other == 0


def test_a_map_of_another_object_never_does(model: Blip, monkeypatch: pytest.MonkeyPatch) -> None:
    found = play(model, monkeypatch, (map_of(rival) for _, _, rival in pointing._plain(WORLD)))
    assert found.named == 0
    assert found.other > 0.97


def test_peaks_anywhere_hit_by_chance(model: Blip, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    found = play(model, monkeypatch, (torch.rand(GRID, GRID, generator=draw) for _ in range(400)))
    areas = [
        3.14159 * thing.radius**2 for _, (_, thing, _) in zip(range(100), pointing._plain(WORLD), strict=False)
    ]
    assert found.chance == pytest.approx(np.mean(areas), rel=0.1)
    assert abs(found.named - found.chance) < 3 * (found.chance * (1 - found.chance) / 100) ** 0.5


def test_only_plain_images_are_asked_about() -> None:
    asked = list(pointing._plain(WORLD))
    assert len(asked) > 100
    for index, thing, rival in asked:
        things = WORLD.scene(index).objects
        assert len(things) > 1
        assert rival in things
        for other in things:
            if other != thing:
                assert (other.colour, other.shape) != (thing.colour, thing.shape)
                assert hypot(other.x - thing.x, other.y - thing.y) > thing.radius + other.radius


def test_too_few_images_are_reported(model: Blip) -> None:
    few = WorldSource(split="test", num_samples=3, size=32)
    with pytest.raises(UserError, match=r"world:test has \d images that are plain enough"):
        measure_pointing(model, WORDS, few, images=50)


def test_by_a_model_as_it_is(model: Blip) -> None:
    for by in ("match", "caption"):
        found = measure_pointing(model, WORDS, WORLD, images=3, by=by)
        assert 0 <= found.named <= 1
        assert found.deviation <= 0.3


def test_peaks_are_centres_of_patches() -> None:
    weights = torch.zeros(2, 4)
    weights[1, 2] = 1
    assert peak_of(weights) == (2.5 / 4, 1.5 / 2)


def test_a_drawing_has_a_panel_for_each_word(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 30), "white")
    maps = [WordMap(word, torch.rand(4, 4)) for word in ("a", "red", "$x$", "on", "a", "road")]
    sizes = {}
    for count in (1, 3, 6):
        draw_maps(tmp_path / f"{count}.png", image, maps[:count], title="a red $x$")
        with Image.open(tmp_path / f"{count}.png") as drawn:
            sizes[count] = drawn.size
            assert drawn.format == "PNG"
            assert len(drawn.convert("RGB").getcolors(2**20)) > 50, "the map is in colours"
    assert sizes[3][0] > sizes[1][0], "five panels stand in a row: image, all words, words"
    assert sizes[3][1] == sizes[1][1]
    assert sizes[1][0] < sizes[6][0] < sizes[3][0], "eight panels stand in two rows of four"
    assert sizes[6][1] > sizes[1][1]
    with pytest.raises(UserError, match=r"name the file .*x\.png"):
        draw_maps(tmp_path / "x.pdf", image, maps)
    with pytest.raises(UserError, match="no word"):
        draw_maps(tmp_path / "x.png", image, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "3.png", "6.png"]


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r'pip install "openblip\[report\]"'):
        draw_maps(tmp_path / "x.png", Image.new("RGB", (4, 4)), [WordMap("a", torch.rand(2, 2))])
