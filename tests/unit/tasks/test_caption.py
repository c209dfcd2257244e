"""Captions and their likelihoods against a decoder that is requested one token at a time, without any cache."""

from __future__ import annotations

import math

import pytest
import small
import torch
from torch import Tensor

from openblip.core.tokenizer import TextTokenizer
from openblip.generation.config import DecodeConfig
from openblip.metrics.caption import caption_scores
from openblip.models.blip import Blip
from openblip.models.layers import ImageMemory
from openblip.models.pixels import normalize
from openblip.tasks.captioning import evaluate_captions
from openblip.tasks.families.blip import BlipAdapter

GREEDY = DecodeConfig(max_new_tokens=8)


@pytest.fixture(scope="module")
def blip() -> Blip:
    return small.model()


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return small.tokenizer()


def memory_of(blip: Blip, images: Tensor) -> ImageMemory:
    with torch.no_grad():
        return blip.remember(blip.encode_image(normalize(images)))


@torch.no_grad()
def log_prob_of(blip: Blip, memory: ImageMemory, ids: list[int], start: int) -> float:
    """Sum of the log-probabilities of ids[start:], each given those before it."""
    total = 0.0
    for position in range(start, len(ids)):
        logits = blip.decoder(torch.tensor([ids[:position]]), memory=memory)[0, -1]
        total += float(logits.log_softmax(-1)[ids[position]])
    return total


@pytest.mark.parametrize("prompt", ["", "a red "])
def test_greedy_captions_token_by_token(blip: Blip, tokenizer: TextTokenizer, prompt: str) -> None:
    images = small.batch([0, 1, 2]).images
    captions = BlipAdapter(blip, tokenizer).generate(memory_of(blip, images), GREEDY, [prompt] * 3)
    for image, (caption,) in zip(images, captions, strict=True):
        memory = memory_of(blip, image[None])
        ids = tokenizer.encode([prompt], first="dec", end=False).input_ids[0].tolist()
        start = len(ids)
        while len(ids) < start + GREEDY.max_new_tokens and ids[-1] != tokenizer.sep_id:
            with torch.no_grad():
                ids.append(int(blip.decoder(torch.tensor([ids]), memory=memory)[0, -1].argmax()))
        assert caption.text == tokenizer.decode(ids[start:])
        assert caption.num_tokens == len(ids) - start
        assert caption.complete == (ids[-1] == tokenizer.sep_id)
        assert caption.log_prob == pytest.approx(log_prob_of(blip, memory, ids, start), abs=1e-3)


def test_prompts_of_their_own_and_several_captions(blip: Blip, tokenizer: TextTokenizer) -> None:
    memory = memory_of(blip, small.batch([0, 1]).images)
    config = DecodeConfig(num_beams=3, num_sequences=2, max_new_tokens=6)
    both = BlipAdapter(blip, tokenizer).generate(memory, config, ["a red ", "two "])
    assert [len(found) for found in both] == [2, 2]
    for row, prompt in enumerate(["a red ", "two "]):
        alone = BlipAdapter(blip, tokenizer).generate(memory.select(torch.tensor([row])), config, [prompt])[0]
        assert [c.text for c in alone] == [c.text for c in both[row]]
        assert alone[0].log_prob == pytest.approx(both[row][0].log_prob, abs=1e-3)


@pytest.mark.parametrize("prompt", ["", "a picture of "])
def test_likelihood_is_the_sum_over_tokens_after_the_prompt(
    blip: Blip, tokenizer: TextTokenizer, prompt: str
) -> None:
    images = small.batch([0, 1]).images
    texts = ["a red bus", "two dogs on a road", "the cat", "birds"]
    found, counts = BlipAdapter(blip, tokenizer).score_own(memory_of(blip, images), texts, prompt=prompt)
    for row, text in enumerate(texts):
        ids = tokenizer.encode([prompt + text], first="dec").input_ids[0].tolist()
        start = tokenizer.encode([prompt], first="dec", end=False).input_ids.shape[1]
        expected = log_prob_of(blip, memory_of(blip, images[row // 2][None]), ids, start)
        assert float(found[row]) == pytest.approx(expected, abs=1e-3)
        assert int(counts[row]) == len(ids) - start


def test_evaluation_compares_with_all_texts_of_an_image(blip: Blip, tokenizer: TextTokenizer) -> None:
    batches = [small.batch([0, 1, 1]), small.batch([0], first=2)]
    metrics, records = evaluate_captions(BlipAdapter(blip, tokenizer), batches, GREEDY)
    assert [record["key"] for record in records] == ["image-0", "image-1", "image-2"]
    assert records[1]["references"] == list(small.TEXTS[1:3])
    written, log_prob, count = [], 0.0, 0
    for batch in batches:
        memory = memory_of(blip, batch.images)
        written += [
            found[0].text for found in BlipAdapter(blip, tokenizer).generate(memory, GREEDY, [""] * len(batch))
        ]
        for text, owner in zip(batch.texts, batch.image_index, strict=True):
            sums, counts = BlipAdapter(blip, tokenizer).score_own(memory.select(owner[None]), [text])
            log_prob, count = log_prob + float(sums), count + int(counts)
    assert [record["caption"] for record in records] == written
    assert metrics["perplexity"] == pytest.approx(math.exp(-log_prob / count), rel=1e-3)
    expected = caption_scores(written, [record["references"] for record in records])  # type: ignore[misc]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_domains_are_measured_apart(blip: Blip, tokenizer: TextTokenizer) -> None:
    """NoCaps: each domain is a collection of its own, so that its document frequencies are its own."""
    domains = ["in-domain", "near-domain", "in-domain", "out-domain", "near-domain", "out-domain"]
    batches = [small.batch([0, 0, 1, 2]), small.batch([0, 1, 2], first=3, text=4)]
    for batch, names in zip(batches, (domains[:3], domains[3:]), strict=True):
        batch.meta = [{"domain": name} for name in names]
    scores, records = evaluate_captions(BlipAdapter(blip, tokenizer), batches, GREEDY)
    assert [record["domain"] for record in records] == domains
    for domain in ("in", "near", "out"):
        own = [record for record in records if record["domain"] == f"{domain}-domain"]
        expected = caption_scores([r["caption"] for r in own], [r["references"] for r in own])
        assert {name: scores[f"{name}_{domain}"] for name in expected} == expected
    plain, records = evaluate_captions(BlipAdapter(blip, tokenizer), [small.batch([0, 0, 1, 2])], GREEDY)
    assert not any("_" in name for name in plain)
    assert "domain" not in records[0]
