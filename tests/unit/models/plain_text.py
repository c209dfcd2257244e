"""The text transformer as one would write it without any of the ideas: the reference for the tests here.

Every row has its own image features; keys and values are projected from them in every layer for every
row; attention is written out; nothing is cached. Weights are those of the module under test.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.layers import CrossAttention, SelfAttention
from openblip.models.text import TextTransformer

VOCAB = 50
CLS, DEC, ENC, SEP, PAD = 2, 48, 49, 3, 0


def small_config(**text: object) -> BlipConfig:
    """Two layers, widths that differ wherever they may, no dropout."""
    options = {"dropout": 0.0, **text}
    return BlipConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=48, depth=2, num_heads=3),
        text=replace(
            TextConfig(
                vocab_size=VOCAB, width=32, depth=2, num_heads=4, inner_width=64, max_positions=24, memory_width=48
            ),
            **options,  # type: ignore[arg-type]
        ),
        embed_dim=16,
    )


def small_blip(seed: int = 0, **text: object) -> Blip:
    """A small model whose weights are large enough for differences to show, biases included."""
    torch.manual_seed(seed)
    model = Blip(small_config(**text))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def texts(lengths: list[int], seed: int = 0, first: int = CLS) -> tuple[Tensor, Tensor]:
    """Ids and mask of random texts, padded on the right to the longest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 48, (len(lengths), max(lengths)), generator=generator)
    ids[:, 0] = first
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, PAD), mask


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, num_heads: int) -> Tensor:
    heads = []
    size = query.shape[-1] // num_heads
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(-1, -2) / size**0.5
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        heads.append(weights @ value[..., part])
    return torch.cat(heads, dim=-1)


def _self_attention(module: SelfAttention, hidden: Tensor, allowed: Tensor) -> Tensor:
    width = hidden.shape[-1]
    weight, bias = module.qkv.weight, module.qkv.bias
    query, key, value = (
        F.linear(hidden, weight[i * width : (i + 1) * width], bias[i * width : (i + 1) * width]) for i in range(3)
    )
    context = _attend(query, key, value, allowed, module.num_heads)
    return module.norm(hidden + module.output(context))


def _cross_attention(module: CrossAttention, hidden: Tensor, image_embeds: Tensor, allowed: Tensor) -> Tensor:
    width = hidden.shape[-1]
    weight, bias = module.key_value.weight, module.key_value.bias
    key = F.linear(image_embeds, weight[:width], bias[:width])
    value = F.linear(image_embeds, weight[width:], bias[width:])
    context = _attend(module.query(hidden), key, value, allowed, module.num_heads)
    return module.norm(hidden + module.output(context))


def plain_text(
    transformer: TextTransformer,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    image_embeds: Tensor | None = None,
    image_mask: Tensor | None = None,
) -> Tensor:
    """Hidden states [R, T, D]; `image_embeds` [R, N, Dv] and `image_mask` bool [R, N] are one for each ROW."""
    rows, length = input_ids.shape
    allowed = torch.ones(rows, length, length, dtype=torch.bool)
    if attention_mask is not None:
        allowed = allowed & attention_mask[:, None, :]
    if transformer.causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool).tril()
    embeddings = transformer.embeddings
    hidden = embeddings.norm(embeddings.word(input_ids) + embeddings.position(torch.arange(length)))
    for block in transformer.text_blocks:
        hidden = _self_attention(block.self_attention, hidden, allowed)
        if image_embeds is not None:
            assert block.cross_attention is not None
            seen = torch.ones(image_embeds.shape[:2], dtype=torch.bool) if image_mask is None else image_mask
            hidden = _cross_attention(block.cross_attention, hidden, image_embeds, seen[:, None, :])
        feed = block.feed_forward
        hidden = feed.norm(hidden + feed.output(F.gelu(feed.inner(hidden))))
    return hidden


def gradients(module: nn.Module, output: Tensor, *inputs: Tensor, seed: int = 9) -> dict[str, Tensor]:
    """Gradient of a fixed random projection of `output`, for every parameter reached and every input."""
    torch.manual_seed(seed)
    named = dict(module.named_parameters())
    wanted = [*named.values(), *inputs]
    found = torch.autograd.grad((output * torch.randn_like(output)).sum(), wanted, allow_unused=True)
    names = [*named, *(f"input {i}" for i in range(len(inputs)))]
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


def assert_same_gradients(ours: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Equal names and values; something must have been reached."""
    assert ours.keys() == other.keys()
    assert ours
    for name, value in ours.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
