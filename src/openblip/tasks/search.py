"""Search with a predictor: images for a text, texts for an image, by ITC and then by ITM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from openblip.data.image_inputs import ImageBatch, ImageInput
from openblip.data.sample import BrokenSample
from openblip.tasks.protocols import Matches
from openblip.tasks.results import Found
from openblip.tasks.retrieval import embed_texts, match_logits, match_probability

__all__ = ["Decodes", "search_images", "search_texts"]


class Decodes(Protocol):
    """Gives batches of decoded images; a `Predictor` does."""

    def batches(self, images: Sequence[ImageInput]) -> Iterator[ImageBatch]:
        """What cannot be read is in `broken`."""
        ...

    def whole(self, images: Sequence[ImageInput]) -> Iterator[ImageBatch]:
        """What cannot be read is an error."""
        ...


@torch.no_grad()
def search_images(
    model: Matches,
    images: Decodes,
    image_inputs: Sequence[ImageInput],
    queries: Sequence[str],
    *,
    top: int,
    rerank_k: int,
    broken: list[BrokenSample] | None = None,
) -> list[list[Found]]:
    """As `Predictor.retrieve_images`.

    Args:
        queries: cleaned as in training.
    """
    tokens, asked = embed_texts(model, queries)
    features: list[Tensor] = []
    for batch in images.whole(image_inputs) if broken is None else images.batches(image_inputs):
        if len(batch):
            features.append(model.image_features(model.encode(batch.pixels)).float().cpu())
        if broken is not None:
            broken += batch.broken
    if broken:
        names = {sample.key for sample in broken}
        image_inputs = [image for image in image_inputs if image.name not in names]
    if not image_inputs:
        return [[] for _ in queries]
    scores = model.similarities(asked.cpu(), torch.cat(features))
    best = scores.topk(min(max(top, rerank_k), len(image_inputs)), dim=1).indices
    logits = None
    if rerank_k > 0:
        # Candidates are encoded again, a batch at a time: features of a whole folder would not fit in memory.
        logits = torch.full((len(queries), len(image_inputs), 2), float("nan"))
        wanted, done = torch.unique(best), 0
        for batch in images.batches([image_inputs[i] for i in wanted.tolist()]):
            chunk = wanted[done : done + len(batch)]
            done += len(batch)
            pairs = (best[:, :, None] == chunk).any(1).nonzero()
            found = match_logits(model, model.encode(batch.pixels), tokens, pairs)
            logits[pairs[:, 0], chunk[pairs[:, 1]]] = found
    return [
        _best(
            (image_inputs[i].name, float(scores[row, i]), None if logits is None else logits[row, i])
            for i in chosen
        )[:top]
        for row, chosen in enumerate(best.tolist())
    ]


@torch.no_grad()
def search_texts(
    model: Matches, batch: ImageBatch, texts: Sequence[str], cleaned: Sequence[str], *, top: int, rerank_k: int
) -> list[Found]:
    """As `Predictor.retrieve_texts`.

    Args:
        batch: of one image.
        cleaned: `texts` as in training.
    """
    tokens, features = embed_texts(model, cleaned)
    embeds = model.encode(batch.pixels)
    scores = model.similarities(features, model.image_features(embeds).float())[:, 0].cpu()
    best = scores.topk(min(max(rerank_k, top), len(texts))).indices
    logits: list[Tensor | None] = [None] * len(best)
    if rerank_k > 0:
        logits = list(match_logits(model, embeds, tokens, torch.stack((best, torch.zeros_like(best)), dim=1)))
    rows = zip(best.tolist(), logits, strict=True)
    return _best((texts[i], float(scores[i]), logit) for i, logit in rows)[:top]


def _best(scored: Iterable[tuple[str, float, Tensor | None]]) -> list[Found]:
    """(item, ITC similarity, ITM logits [2] or None), the highest score first."""
    found = [
        Found(item, similarity, similarity, None)
        if logits is None
        else Found(item, similarity + float(logits[1]), similarity, float(match_probability(logits)))
        for item, similarity, logits in scored
    ]
    return sorted(found, key=lambda one: -one.score)
