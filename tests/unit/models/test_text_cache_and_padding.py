"""Cached equals uncached, padded equals unpadded, for encoder, decoder and losses: forward and gradient."""

from __future__ import annotations

import pytest
import torch
from plain_text import CLS, DEC, ENC, assert_same_gradients, gradients, plain_text, small_blip, texts
from torch import Tensor

from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip
from openblip.models.layers import ImageMemory, KVCache
from openblip.objectives.configs import ObjectiveConfig
from openblip.objectives.matching import Negatives
from openblip.objectives.pretraining import BlipPretraining

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""the same sums of float32 in another order"""


def memory_of(model: Blip, batch: int) -> ImageMemory:
    generator = torch.Generator().manual_seed(5)
    return model.remember(torch.randn(batch, 5, 48, generator=generator))


@pytest.mark.parametrize("with_memory", [True, False])
@pytest.mark.parametrize("chunks", [[1] * 9, [9], [4, 1, 1, 1, 1, 1], [3, 4, 2], [1, 8]])
def test_cached_equals_uncached(with_memory: bool, chunks: list[int]) -> None:
    model = small_blip().eval()
    memory = memory_of(model, 2) if with_memory else None
    ids, _ = texts([9] * 6, first=DEC)
    whole = model.decoder(ids, memory=memory)
    cache, parts = KVCache(), []
    for part in ids.split(chunks, dim=1):
        parts.append(model.decoder(part, memory=memory, cache=cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **CLOSE)
    hidden = plain_text(
        model.decoder.transformer,
        ids,
        image_embeds=None if not with_memory else torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(5))
        .repeat_interleave(3, 0),
    )  # fmt: skip
    torch.testing.assert_close(model.decoder.head(hidden), whole, **CLOSE)


def test_gradient_flows_through_the_cache_as_without() -> None:
    model = small_blip()
    ids, _ = texts([6, 6], first=DEC)
    memory = memory_of(model, 2)
    cache = KVCache()
    parts = [model.decoder(part, memory=memory, cache=cache) for part in ids.split([3, 1, 2], dim=1)]
    cached = gradients(model, torch.cat(parts, dim=1))
    memory = memory_of(model, 2)
    assert_same_gradients(cached, gradients(model, model.decoder(ids, memory=memory)))


def continue_text(model: Blip, ids: Tensor, mask: Tensor, memory: ImageMemory, tokens: Tensor) -> list[Tensor]:
    """Logits after the prompt and after each of `tokens` [R, K]."""
    cache = KVCache()
    logits = model.decoder(ids, mask, memory=memory, cache=cache)
    last = mask.sum(1) - 1
    found = [logits[torch.arange(len(ids)), last]]
    for token in tokens.T:
        found.append(model.decoder(token[:, None], memory=memory, cache=cache)[:, 0])
    return found


def test_ragged_prompts_in_one_batch_equal_single_rows() -> None:
    model = small_blip().eval()
    lengths = [2, 5, 1, 4]
    ids, mask = texts(lengths, first=DEC)
    tokens = torch.randint(5, 48, (4, 5), generator=torch.Generator().manual_seed(1))
    memory = memory_of(model, 4)
    together = continue_text(model, ids, mask, memory, tokens)
    for row, length in enumerate(lengths):
        only = torch.tensor([row])
        prompt = ids[only, :length]
        alone = continue_text(model, prompt, torch.ones_like(prompt).bool(), memory.select(only), tokens[only])
        uncached = model.decoder(torch.cat((prompt, tokens[only]), dim=1), memory=memory.select(only))
        for step, (many, one) in enumerate(zip(together, alone, strict=True)):
            torch.testing.assert_close(many[row], one[0], **CLOSE)
            torch.testing.assert_close(many[row], uncached[0, length - 1 + step], **CLOSE)


def test_a_second_ragged_chunk_follows_the_first() -> None:
    """Several tokens at once after a padded prompt: the mask of both chunks counts."""
    model = small_blip().eval()
    ids, mask = texts([2, 4], first=DEC)
    more, more_mask = texts([3, 1], seed=7)
    memory = memory_of(model, 2)
    cache = KVCache()
    model.decoder(ids, mask, memory=memory, cache=cache)
    second = model.decoder(more, more_mask, memory=memory, cache=cache)
    third = model.decoder(torch.tensor([[7], [9]]), memory=memory, cache=cache)
    for row, last in ((0, 7), (1, 9)):
        only = torch.tensor([row])
        line = torch.cat((ids[row][mask[row]], more[row][more_mask[row]], torch.tensor([last])))
        whole = model.decoder(line[None], memory=memory.select(only))[0]
        torch.testing.assert_close(second[row][more_mask[row]], whole[int(mask[row].sum()) : -1], **CLOSE)
        torch.testing.assert_close(third[row, 0], whole[-1], **CLOSE)


def test_reordered_cache_continues_the_chosen_rows() -> None:
    model = small_blip().eval()
    ids, mask = texts([2, 4, 3, 4], first=DEC)
    memory = memory_of(model, 2)
    cache = KVCache()
    model.decoder(ids, mask, memory=memory, cache=cache)
    index = torch.tensor([1, 1, 3, 2])  # within each image; a row is dropped, another doubled
    cache.reorder(index)
    token = torch.tensor([[6], [7], [8], [9]])
    ours = model.decoder(token, memory=memory, cache=cache)[:, 0]
    for row, source in enumerate(index.tolist()):
        line = torch.cat((ids[source][mask[source]], token[row]))
        alone = model.decoder(line[None], memory=memory.select(torch.tensor([row // 2])))[0, -1]
        torch.testing.assert_close(ours[row], alone, **CLOSE)


@pytest.mark.parametrize("with_memory", [True, False])
def test_encoder_does_not_see_padding(with_memory: bool) -> None:
    model = small_blip()
    ids, mask = texts([4, 7])
    memory = memory_of(model, 2) if with_memory else None
    garbage = torch.cat((ids, torch.full((2, 6), 33)), dim=1).masked_fill(
        ~torch.nn.functional.pad(mask, (0, 6)), 33
    )
    padded = model.encoder(garbage, torch.nn.functional.pad(mask, (0, 6)), memory=memory)[:, :7]
    tight = model.encoder(ids, mask, memory=memory)
    torch.testing.assert_close(padded[mask], tight[mask], **CLOSE)
    first = gradients(model, padded[mask])
    second = gradients(model, model.encoder(ids, mask, memory=memory_of(model, 2) if with_memory else None)[mask])
    for found in (first, second):  # the word at a padded place is embedded, though nothing reads it
        found["text_encoder.embeddings.word.weight"][33] = 0
    assert_same_gradients(first, second)


def test_decoder_does_not_see_padding() -> None:
    model = small_blip()
    ids, mask = texts([4, 7], first=DEC)
    wide = torch.nn.functional.pad(mask, (0, 5))
    padded = model.decoder(torch.nn.functional.pad(ids, (0, 5)), wide, memory=memory_of(model, 2))[:, :7]
    tight = model.decoder(ids, mask, memory=memory_of(model, 2))
    torch.testing.assert_close(padded[mask], tight[mask], **CLOSE)
    assert_same_gradients(gradients(model, padded[mask]), gradients(model, tight[mask]))


@pytest.mark.parametrize("lengths", [[4, 7, 5], [6]], ids=["batch-3", "batch-1"])
def test_losses_and_their_gradients_do_not_depend_on_padding(lengths: list[int]) -> None:
    batch = len(lengths)
    ids, mask = texts(lengths, first=CLS)
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    negatives = Negatives(
        torch.arange(batch).roll(1), torch.arange(batch).roll(-1), torch.full((batch,), batch > 1)
    )
    results = []
    for extra in (0, 9):
        torch.manual_seed(0)
        step = BlipPretraining(small_blip(), ObjectiveConfig(queue_size=8), enc_id=ENC, dec_id=DEC).train()
        text = TokenBatch(torch.nn.functional.pad(ids, (0, extra)), torch.nn.functional.pad(mask, (0, extra)))
        losses = step(images, text, negatives=negatives)
        losses["loss"].backward()
        grads = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
        assert step.queue is not None
        results.append(({k: v.detach() for k, v in losses.items()}, grads, step.queue.texts.clone()))
    (tight, tight_grads, tight_queue), (wide, wide_grads, wide_queue) = results
    for name, value in tight.items():
        torch.testing.assert_close(value, wide[name], **CLOSE)
    assert_same_gradients(tight_grads, wide_grads)
    torch.testing.assert_close(tight_queue, wide_queue, **CLOSE)
    assert len(tight_grads) == len(list(step.model.named_parameters()))  # every parameter learns
