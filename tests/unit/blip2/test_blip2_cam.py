"""Grad-CAM of BLIP-2's ITM against brute force, and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_blip2 import make_image, model, tokenizer
from test_store import stored
from torch import Tensor

import openblip
from openblip.checkpoints.store import save_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.explain.cam import match_maps, reading_layer
from openblip.models.blip2 import Blip2
from openblip.models.layers import ImageMemory

STEP = 1e-5


@pytest.fixture(scope="module")
def made() -> Blip2:
    torch.manual_seed(0)
    blip2 = model().double().eval()
    with torch.no_grad():
        for name, parameter in blip2.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return blip2


@pytest.fixture(scope="module")
def memory(made: Blip2) -> ImageMemory:
    pixels = torch.randn(1, 3, *made.vision.pixels, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        return made.remember(made.encode_image(pixels))


@torch.no_grad()
def moved(made: Blip2, memory: ImageMemory, layer: int, text: str) -> tuple[Tensor, Tensor]:
    """Attention weights [H, Q, N] of a layer that reads the image, and the slope of the match by each of them."""
    ids = tokenizer().encode([text]).input_ids
    readers = [block.cross_attention for block in made.qformer.qformer_blocks if block.cross_attention is not None]
    seen: list[Tensor] = []

    def score(place: tuple[int, ...] | None, step: float) -> float:
        def observer(probabilities: Tensor) -> Tensor:
            seen.append(probabilities.clone())
            if place is not None:
                probabilities = probabilities.clone()
                probabilities[0, *place] += step
            return probabilities

        with readers[layer].observed(observer):
            logits = made.match(ids, None, memory)[0]
        return float(logits[1] - logits[0])

    score(None, 0.0)
    weights = seen[0][0]
    slope = torch.zeros_like(weights)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in weights.shape)).tolist():
        slope[*place] = (score(tuple(place), STEP) - score(tuple(place), -STEP)) / (2 * STEP)
    return weights, slope


@pytest.mark.parametrize("layer", [0, None])
def test_the_map_of_a_match(made: Blip2, memory: ImageMemory, layer: int | None) -> None:
    weights, slope = moved(made, memory, reading_layer(made, layer), "a red bus")
    rows, columns = made.vision.grid
    expected = (weights * slope.clamp(min=0)).mean(0).sum(0)[-rows * columns :].view(rows, columns)
    (one,) = match_maps(made, tokenizer(), memory, "a red bus", layer=layer)
    assert one.word == "a red bus"
    assert float(expected.max()) > 1e-4, "there is something to see"
    torch.testing.assert_close(one.weights.double(), expected, rtol=1e-3, atol=1e-7)
    (other,) = match_maps(made, tokenizer(), memory, "two dogs", layer=layer)
    assert not torch.allclose(one.weights, other.weights)


def test_no_such_layer(made: Blip2, memory: ImageMemory) -> None:
    with pytest.raises(UserError, match="there is no layer 9; those that read the image are 0 to"):
        match_maps(made, tokenizer(), memory, "a red bus", layer=9)


def test_the_command_draws_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    save_model(tmp_path / "m", stored(model()))
    make_image(0).save(tmp_path / "1.png")
    assert "explain" in openblip.load(tmp_path / "m", device="cpu").can
    command = ["explain", str(tmp_path / "1.png"), "--model", str(tmp_path / "m"), "--text", "a red bus"]
    assert main([*command, "--out", str(tmp_path / "a.png")]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["by"], [one["word"] for one in told["words"]]) == ("match", ["a red bus"])
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert main([*command, "--by", "caption", "--out", str(tmp_path / "b.png")]) == 2
    assert "leave --by caption out" in capfd.readouterr().err
