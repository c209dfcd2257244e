"""Image memory equals no memory: whatever reads the projected keys and values gets what it would get from
the raw features projected for each row, forward and gradient.
"""

from __future__ import annotations

import pytest
import torch
from plain_text import ENC, assert_same_gradients, gradients, plain_text, small_blip, texts
from torch import Tensor

from openblip.models.layers import ImageMemory

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""the same sums of float32 in another order"""


def raw_features(batch: int, tokens: int = 5, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, 48, generator=generator).requires_grad_()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize(("batch", "rows_each"), [(1, 1), (3, 1), (2, 4), (1, 5)])
def test_reading_memory_equals_projecting_for_each_row(part: str, batch: int, rows_each: int) -> None:
    model = small_blip()
    transformer = model.encoder if part == "encoder" else model.decoder.transformer
    raw = raw_features(batch)
    ids, mask = texts([3 + (i * 5) % 7 for i in range(batch * rows_each)])
    ours = transformer(ids, mask, memory=model.remember(raw))
    plain = plain_text(transformer, ids, mask, raw.repeat_interleave(rows_each, 0))
    torch.testing.assert_close(ours[mask], plain[mask], **CLOSE)
    assert_same_gradients(gradients(model, ours[mask], raw), gradients(model, plain[mask], raw))


def test_masked_image_tokens_are_not_read() -> None:
    model = small_blip()
    raw = raw_features(2)
    seen = torch.tensor([[True] * 5, [True, True, False, True, False]])
    ids, mask = texts([4, 6, 5, 3])
    ours = model.encoder(ids, mask, memory=model.remember(raw, seen))
    plain = plain_text(model.encoder, ids, mask, raw.repeat_interleave(2, 0), seen.repeat_interleave(2, 0))
    torch.testing.assert_close(ours[mask], plain[mask], **CLOSE)
    found = gradients(model, ours[mask], raw)
    assert_same_gradients(found, gradients(model, plain[mask], raw))
    assert found["input 0"][1, 2].abs().max() == 0
    assert found["input 0"][1, 1].abs().max() > 0


@pytest.mark.parametrize("rows_each", [1, 3])
def test_folded_rows_equal_selected_rows(rows_each: int) -> None:
    model = small_blip()
    raw = raw_features(2)
    seen = torch.tensor([[True] * 5, [True] * 4 + [False]])
    ids, mask = texts([5, 3, 6, 2, 4, 7][: 2 * rows_each])
    chosen = model.remember(raw, seen).select(torch.arange(2).repeat_interleave(rows_each))
    assert chosen.batch_size == 2 * rows_each
    folded, selected = (model.match(ids, mask, memory) for memory in (model.remember(raw, seen), chosen))
    torch.testing.assert_close(folded, selected, **CLOSE)
    assert_same_gradients(gradients(model, folded, raw), gradients(model, selected, raw))


def test_select_takes_any_order_and_repeats() -> None:
    model = small_blip()
    raw = raw_features(3)
    index = torch.tensor([2, 0, 2, 1])
    ids, mask = texts([4, 4, 3, 6], first=ENC)
    ours = model.match(ids, mask, model.remember(raw).select(index))
    plain = model.itm_head(plain_text(model.encoder, ids, mask, raw[index])[:, 0])
    torch.testing.assert_close(ours, plain, **CLOSE)
    assert_same_gradients(gradients(model, ours, raw), gradients(model, plain, raw))


def test_detached_memory_carries_no_gradient() -> None:
    model = small_blip()
    raw = raw_features(2)
    memory = model.remember(raw)
    assert memory.keys[0].requires_grad
    quiet = memory.detach()
    assert not any(t.requires_grad for t in (*quiet.keys, *quiet.values))
    assert quiet.keys[1].equal(memory.keys[1])
    assert quiet.nbytes == 2 * 2 * 2 * 5 * 32 * 4  # two layers, keys and values, 2 images, 5 tokens, 32 wide


def test_encoder_and_decoder_read_one_memory() -> None:
    model = small_blip()
    raw = raw_features(2)
    ours, theirs = model.remember(raw), model.decoder.transformer.remember(raw)
    for mine, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        assert mine.equal(other)


def test_memory_of_another_depth_is_refused() -> None:
    model = small_blip()
    memory = model.remember(raw_features(1))
    ids, mask = texts([3])
    with pytest.raises(AssertionError, match="depth"):
        model.match(ids, mask, ImageMemory(memory.keys[:1], memory.values[:1]))


def test_rows_that_cannot_be_shared_out_are_refused() -> None:
    model = small_blip()
    ids, mask = texts([3, 3, 3])
    with pytest.raises(AssertionError, match="3 rows cannot be shared out over 2 images"):
        model.match(ids, mask, model.remember(raw_features(2)))


@pytest.mark.parametrize("rows_each", [1, 3])
def test_observed_probabilities_are_those_of_each_row_and_may_be_replaced(rows_each: int) -> None:
    model = small_blip()
    memory = model.remember(raw_features(2))
    ids, mask = texts([5] * 2 * rows_each)
    attention = model.encoder.text_blocks[0].cross_attention
    assert attention is not None
    seen: list[Tensor] = []

    def record(probabilities: Tensor) -> Tensor:
        seen.append(probabilities)
        return probabilities

    plain = model.encoder(ids, mask, memory=memory)
    with attention.observed(record):
        torch.testing.assert_close(model.encoder(ids, mask, memory=memory), plain, **CLOSE)
    with attention.observed(torch.zeros_like):
        assert not torch.allclose(model.encoder(ids, mask, memory=memory), plain)
    torch.testing.assert_close(model.encoder(ids, mask, memory=memory), plain, rtol=0, atol=0)
    (probabilities,) = seen
    assert probabilities.shape == (2 * rows_each, attention.num_heads, 5, 5)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    for row in range(2 * rows_each):
        own = memory.select(torch.tensor([row // rows_each]))
        with attention.observed(record):
            model.encoder(ids[row : row + 1], mask[row : row + 1], memory=own)
        torch.testing.assert_close(probabilities[row : row + 1], seen[-1], **CLOSE)
