"""Grad-CAM against brute force: every attention weight is moved, and the score read again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.explain.cam import caption_maps, default_layer, match_maps
from openblip.models import layers
from openblip.models.blip import Blip, blip_config
from openblip.models.layers import ImageMemory

TEXTS = ("a red bus on a road", "two dogs beside a bus", "a busboy")
PATCHES = 16
STEP = 1e-5


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS * 3, vocab_size=60)


@pytest.fixture(scope="module")
def model(tokenizer: TextTokenizer) -> Blip:
    torch.manual_seed(0)
    blip = Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=32)).double().eval()
    with torch.no_grad():
        for name, parameter in blip.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return blip


@pytest.fixture(scope="module")
def memory(model: Blip) -> ImageMemory:
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.remember(model.encode_image(images))


class MovedAttention:
    """Attention written out, where one weight of one cross-attention layer may be moved."""

    def __init__(self, layer: int) -> None:
        self.layer, self.calls = layer, 0
        self.place: tuple[int, int, int] | None = None
        self.step = 0.0
        self.weights = torch.empty(0)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None,
        causal: bool = False,
        dropout: float,
        observe: None = None,
    ) -> Tensor:
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
        weights = scores.softmax(-1)
        if key.shape[2] == 1 + PATCHES:
            if self.calls == self.layer:
                self.weights = weights.clone()
                if self.place is not None:
                    weights[0, *self.place] += self.step
            self.calls += 1
        return weights @ value


@torch.no_grad()
def gradients_by_moving(
    score: Callable[[], Tensor], layer: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """Attention weights [H, T, N] of a layer and the slope of `score()` by each of them."""
    attention = MovedAttention(layer)
    monkeypatch.setattr(layers, "attend", attention)
    heads, slope = 4, torch.zeros(4, length, 1 + PATCHES, dtype=torch.float64)
    for head in range(heads):
        for token in range(length):
            for patch in range(1 + PATCHES):
                values = []
                for step in (STEP, -STEP):
                    attention.calls, attention.place, attention.step = 0, (head, token, patch), step
                    values.append(float(score()))
                slope[head, token, patch] = (values[0] - values[1]) / (2 * STEP)
    monkeypatch.undo()
    return attention.weights[0], slope


def test_a_matchs_maps(
    model: Blip, tokenizer: TextTokenizer, memory: ImageMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = 0
    ids = tokenizer.encode(["a red bus"], first="enc").input_ids
    assert ids.shape[1] == 5

    def score() -> Tensor:
        logits = model.match(ids, None, memory)[0]
        return logits[1] - logits[0]

    weights, slope = gradients_by_moving(score, layer, ids.shape[1], monkeypatch)
    expected = (weights * slope.clamp(min=0)).mean(0)[1:-1, 1:]
    maps = match_maps(model, tokenizer, memory, "a red bus", layer=layer)
    assert [one.word for one in maps] == ["a", "red", "bus"]
    assert float(expected.max()) > 1e-4, "there is something to see"
    for one, wanted in zip(maps, expected, strict=True):
        assert one.weights.shape == (4, 4)
        torch.testing.assert_close(one.weights.flatten().double(), wanted, rtol=1e-4, atol=1e-8)


def test_a_captions_maps(
    model: Blip, tokenizer: TextTokenizer, memory: ImageMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, text, layer = "two dogs ", "a bus", 1
    ids = tokenizer.encode([prompt + text], first="dec").input_ids
    maps = caption_maps(model, tokenizer, memory, text, prompt=prompt, layer=layer)
    assert [one.word for one in maps] == ["a", "bus"]
    for number, one in enumerate(maps):
        place = ids.shape[1] - 2 - len(maps) + number  # where the word is foretold

        def score(place: int = place) -> Tensor:
            return model.decoder(ids, memory=memory)[0, place].log_softmax(-1)[ids[0, place + 1]]

        weights, slope = gradients_by_moving(score, layer, ids.shape[1], monkeypatch)
        expected = (weights * slope.clamp(min=0)).mean(0)[place, 1:]
        torch.testing.assert_close(one.weights.flatten().double(), expected, rtol=1e-4, atol=1e-8)


def test_pieces_of_a_word_are_averaged(model: Blip, tokenizer: TextTokenizer, memory: ImageMemory) -> None:
    pieces = tokenizer.tokens(tokenizer.encode(["a bussed"], end=False).input_ids[0, 1:])
    assert len(pieces) > 2
    assert pieces[2].startswith("##")
    maps = match_maps(model, tokenizer, memory, "a bussed", layer=0)
    assert [one.word for one in maps] == ["a", "bussed"]


def test_the_model_is_left_as_it_was(model: Blip, tokenizer: TextTokenizer, memory: ImageMemory) -> None:
    ids = tokenizer.encode(["a red bus"], first="enc").input_ids
    with torch.no_grad():
        before = model.match(ids, None, memory)
        first = match_maps(model, tokenizer, memory, "a red bus")
        assert torch.equal(model.match(ids, None, memory), before)
    assert all("read" not in vars(block.cross_attention) for block in model.encoder.text_blocks)
    assert all(parameter.grad is None for parameter in model.parameters())
    again = match_maps(model, tokenizer, memory, "a red bus")
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(first, again, strict=True))
    with pytest.raises(UserError, match="there is no layer 2; those that read the image are 0 to 1"):
        match_maps(model, tokenizer, memory, "a red bus", layer=2)
    assert [default_layer(depth) for depth in (1, 2, 3, 12)] == [0, 0, 1, 8]
    with pytest.raises(UserError, match="in the last layer, 1, no word has a say"):
        match_maps(model, tokenizer, memory, "a red bus", layer=1)
