"""The first two stages of CapFilt as pure batch functions over an image memory; the third is `policy.decide`.

`write` gives texts for images, `score` gives scores for texts. Neither knows files, shards or engines. What an
image gets depends on its pixels, its key and the seed, not on its neighbours.

Shapes: B images, N image tokens, Dv vision width, P texts of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from openblip.bootstrap.table import Text
from openblip.generation.config import DecodeConfig
from openblip.models.layers import ImageMemory
from openblip.tasks.protocols import Generates, Matches
from openblip.tasks.retrieval import begin_matching, embed_texts, match_probability

__all__ = ["score", "write"]


def write(
    model: Generates,
    memory: ImageMemory,
    keys: Tensor,
    config: DecodeConfig,
    *,
    prompt: str = "",
) -> list[list[Text]]:
    """Write `config.num_sequences` texts for each of B images.

    Args:
        memory: of B images.
        keys: int64 [B], name the images for sampling.
    """
    written = model.generate(memory, config, [prompt] * memory.batch_size, keys)
    return [
        [
            Text(
                caption.text,
                "synthetic",
                log_prob=caption.log_prob,
                num_tokens=caption.num_tokens,
                complete=caption.complete,
            )
            for caption in captions
        ]
        for captions in written
    ]


@torch.no_grad()
def score(
    model: Matches,
    image_embeds: Tensor,
    memory: ImageMemory,
    texts: Sequence[Sequence[str]],
    *,
    max_length: int,
    max_rows: int = 256,
) -> list[list[tuple[float, float]]]:
    """ITM probability and ITC cosine of every text with its image.

    Args:
        image_embeds: [B, N, Dv], of the filter's vision tower.
        memory: of the same images.
        texts: for each of the B images any number of texts, cleaned as in training.
        max_length: tokens of a text that are read, first and last included.
        max_rows: texts that are read at once.
    """
    flat = list(chain.from_iterable(texts))
    if not flat:
        return [[] for _ in texts]
    device = image_embeds.device
    owner = torch.tensor([i for i, own in enumerate(texts) for _ in own], device=device)
    tokens, features = embed_texts(model, flat, max_length=max_length)
    seen = model.image_features(image_embeds).float()[owner]
    seen = seen if seen.ndim == 3 else seen.unsqueeze(1)  # [P, Q, E]: of several queries the one that fits best
    cosine = (seen * features.unsqueeze(1)).sum(-1).amax(1)
    ids = begin_matching(model, tokens)
    lengths = tokens.attention_mask.sum(1)
    probability = torch.empty(len(flat), device=device)
    # The rows of a block read one image each: equal counts fold over the memory, else it is gathered.
    even = len({len(own) for own in texts}) == 1 and len(flat) <= max_rows
    blocks = [torch.arange(len(flat), device=device)] if even else lengths.argsort(stable=True).split(max_rows)
    for rows in blocks:
        width = int(lengths[rows].max())
        read = memory if even else memory.select(owner[rows])
        logits = model.match(ids[rows, :width], tokens.attention_mask[rows, :width], read).float()
        probability[rows] = match_probability(logits)
    pairs = iter(zip(probability.tolist(), cosine.tolist(), strict=True))
    return [[next(pairs) for _ in own] for own in texts]
