"""The Q-Former: who may see whom, memory and cache against the plain way, padding, batches."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from small_blip2 import images, model, tokenizer
from torch import Tensor

from openblip.core.errors import UserError
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import QFormerConfig
from openblip.models.layers import KVCache
from openblip.models.qformer import qformer_mask

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""the same sums of float32 in another order"""
Mask = Literal["itc", "itm", "itg"]


@pytest.fixture(scope="module")
def blip2() -> Blip2:
    return model()


@pytest.fixture(scope="module")
def embeds(blip2: Blip2) -> Tensor:
    with torch.no_grad():
        return blip2.encode_image(images())


def ids(*rows: str) -> tuple[Tensor, Tensor]:
    tokens = tokenizer().encode(rows)
    return tokens.input_ids, tokens.attention_mask


def drawn(kind: Mask, real: list[int]) -> list[str]:
    mask = qformer_mask(kind, 2, torch.tensor([real], dtype=torch.bool))
    assert mask.shape == (1, 1, 2 + len(real), 2 + len(real))
    return ["".join("1" if may else "." for may in row) for row in mask[0, 0].tolist()]


def test_masks_are_as_they_are_drawn() -> None:
    assert drawn("itc", [1, 1, 1]) == ["11...", "11...", "..111", "..111", "..111"]
    assert drawn("itm", [1, 1, 1]) == ["11111"] * 5
    assert drawn("itg", [1, 1, 1]) == ["11...", "11...", "111..", "1111.", "11111"]


def test_padding_is_seen_by_itself_alone() -> None:
    assert drawn("itm", [1, 1, 0]) == ["1111."] * 4 + ["11111"]
    assert drawn("itc", [1, 0, 0]) == ["11...", "11...", "..1..", "..11.", "..1.1"]
    assert all("1" in row for row in drawn("itc", [0, 0]))


@torch.no_grad()
def changes(blip2: Blip2, embeds: Tensor, kind: Mask, *, token: int | None = None, image: bool = False) -> Tensor:
    """Which of [Q + T] outputs change when one token, or the image, does: bool."""
    text, mask = ids("a red bus on a road")
    other = text.clone()
    if token is not None:
        other[0, token] = tokenizer().encode(["dogs"]).input_ids[0, 1]
        assert not torch.equal(other, text)
    first = blip2.qformer.read_together(text, mask, blip2.remember(embeds[:1]), kind)
    second = blip2.qformer.read_together(other, mask, blip2.remember(embeds[1:2] if image else embeds[:1]), kind)
    return ((first - second).abs().amax(-1) > 1e-6)[0]


def test_itc_text_and_queries_do_not_see_each_other(blip2: Blip2, embeds: Tensor) -> None:
    count = blip2.config.qformer.num_queries
    by_text, by_image = changes(blip2, embeds, "itc", token=2), changes(blip2, embeds, "itc", image=True)
    assert not by_text[:count].any()
    assert by_text[count:].all()
    assert by_image[:count].all()
    assert not by_image[count:].any()


def test_itm_all_see_all(blip2: Blip2, embeds: Tensor) -> None:
    assert changes(blip2, embeds, "itm", token=2).all()
    assert changes(blip2, embeds, "itm", image=True).all()


@pytest.mark.parametrize("token", [1, 3, 6])
def test_itg_future_tokens_and_queries_see_no_text(blip2: Blip2, embeds: Tensor, token: int) -> None:
    count = blip2.config.qformer.num_queries
    changed = changes(blip2, embeds, "itg", token=token)
    assert not changed[: count + token].any()
    assert changed[count + token :].all()
    assert changes(blip2, embeds, "itg", image=True).all()  # the text reads the image through the queries


@torch.no_grad()
def test_apart_equals_together(blip2: Blip2, embeds: Tensor) -> None:
    """What ITC and ITG compute apart, over memory and cache, is the masked pass over queries and text."""
    count = blip2.config.qformer.num_queries
    text, mask = ids("a red bus on a road", "two dogs", "the road")
    memory, cache = blip2.remember(embeds), KVCache()
    queries = blip2.read_image(memory, cache)
    together = blip2.qformer.read_together(text, mask, memory, "itc")
    torch.testing.assert_close(queries, together[:, :count], **CLOSE)
    torch.testing.assert_close(blip2.qformer.read_text(text, mask)[mask], together[:, count:][mask], **CLOSE)
    together = blip2.qformer.read_together(text, mask, memory, "itg")
    torch.testing.assert_close(queries, together[:, :count], **CLOSE)
    torch.testing.assert_close(blip2.qformer.write(text, mask, cache)[mask], together[:, count:][mask], **CLOSE)


@torch.no_grad()
def test_writing_token_by_token_equals_writing_at_once(blip2: Blip2, embeds: Tensor) -> None:
    text, mask = ids("a red bus on a road", "a cat on a red")
    memory = blip2.remember(embeds[:2])
    whole, grown = KVCache(), KVCache()
    blip2.read_image(memory, whole)
    blip2.read_image(memory, grown)
    expected = blip2.qformer.write(text, mask, whole)
    found = [blip2.qformer.write(text[:, :2], None, grown, grow=True)]
    found += [blip2.qformer.write(text[:, i : i + 1], None, grown, grow=True) for i in range(2, text.shape[1])]
    torch.testing.assert_close(torch.cat(found, dim=1)[mask], expected[mask], **CLOSE)


@torch.no_grad()
def test_padding_changes_nothing(blip2: Blip2, embeds: Tensor) -> None:
    text, mask = ids("two dogs")
    wide, wide_mask = (torch.nn.functional.pad(t, (0, 5)) for t in (text, mask))
    memory = blip2.remember(embeds[:1])
    torch.testing.assert_close(blip2.match(wide, wide_mask, memory), blip2.match(text, mask, memory), **CLOSE)
    torch.testing.assert_close(blip2.text_features(wide, wide_mask), blip2.text_features(text, mask), **CLOSE)
    cache = KVCache()
    blip2.read_image(memory, cache)
    width = text.shape[1]
    torch.testing.assert_close(
        blip2.write(wide, wide_mask, cache)[:, :width], blip2.write(text, mask, cache), **CLOSE
    )


@torch.no_grad()
def test_one_at_a_time_equals_a_batch(blip2: Blip2, embeds: Tensor) -> None:
    text, mask = ids("a red bus on a road", "two dogs", "the road")
    memory = blip2.remember(embeds)
    together = blip2.match(text, mask, memory)
    for i in range(3):
        length = int(mask[i].sum())
        alone = blip2.match(text[i : i + 1, :length], mask[i : i + 1, :length], blip2.remember(embeds[i : i + 1]))
        torch.testing.assert_close(alone, together[i : i + 1], **CLOSE)


@torch.no_grad()
def test_texts_of_one_image_share_its_memory(blip2: Blip2, embeds: Tensor) -> None:
    """Six rows over three images: folded over the memory, or gathered, or projected for each row."""
    text, mask = ids("two dogs", "the road", "a cat", "birds", "a red bus on a road", "a long chair")
    memory, index = blip2.remember(embeds), torch.arange(6) // 2
    folded = blip2.match(text, mask, memory)
    torch.testing.assert_close(blip2.match(text, mask, memory.select(index)), folded, **CLOSE)
    torch.testing.assert_close(blip2.match(text, mask, blip2.remember(embeds[index])), folded, **CLOSE)


@torch.no_grad()
def test_masked_image_tokens_are_not_read(blip2: Blip2, embeds: Tensor) -> None:
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    mask[:, 5:] = False
    other = embeds.clone()
    other[:, 5:] = 7.0
    expected = blip2.read_image(blip2.remember(embeds[:, :5]))
    torch.testing.assert_close(blip2.read_image(blip2.remember(other, mask)), expected, **CLOSE)


def test_recomputing_gives_the_same_gradients(blip2: Blip2, embeds: Tensor) -> None:
    text, mask = ids("two dogs", "the road", "a cat")
    found = []
    for checkpointing in (False, True):
        made = model(qformer={"dropout": 0.0}).train()
        made.gradient_checkpointing_enable(checkpointing)
        cache = KVCache()
        memory = made.remember(embeds)
        loss = made.read_image(memory, cache).square().mean() + made.write(text, mask, cache).square().mean()
        (loss + made.match(text, mask, memory).square().mean()).backward()
        found.append({n: p.grad for n, p in made.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, **CLOSE)


def test_what_it_cannot_do_is_said() -> None:
    silent = model(qformer={"vocab_size": None}, matches=False)
    with pytest.raises(UserError, match="reads no text"):
        silent.qformer.read_text(torch.zeros(1, 2, dtype=torch.int64), None)
    with pytest.raises(UserError, match="only writes"):
        silent.image_features(torch.zeros(1, 4, 32))
    with pytest.raises(UserError, match="no language head"):
        silent.write(torch.zeros(1, 2, dtype=torch.int64), None, KVCache())
    with pytest.raises(UserError, match="need stage 2"):
        silent.soft_prompt(silent.remember(torch.zeros(1, 17, 32)))
    with pytest.raises(UserError, match="longer than the 32"):
        model().qformer.read_text(torch.zeros(1, 33, dtype=torch.int64), None)
    with pytest.raises(ValueError, match="multiple"):
        QFormerConfig(width=30, num_heads=4)
    for name in ("width", "depth", "num_heads", "inner_width"):
        with pytest.raises(UserError, match=f"{name} of the Q-Former must be at least 1, not 0"):
            QFormerConfig(**{name: 0})
    with pytest.raises(UserError, match="dropout of the Q-Former"):
        QFormerConfig(dropout=1.5)
    for texts in ({"vocab_size": 0}, {"pad_id": -1}, {"max_positions": 0}):
        with pytest.raises(UserError, match="the Q-Former's texts need a vocabulary"):
            QFormerConfig(**texts)
    with pytest.raises(UserError, match="embed_dim must be at least 1"):
        Blip2Config(embed_dim=0)
