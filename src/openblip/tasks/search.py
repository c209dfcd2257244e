"""Search with a predictor: images for a text, texts for an image, by ITC and then by ITM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from openblip.data.image_inputs import ImageBatch, ImageInput, unusable
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
    readable: list[ImageInput] = []
    for batch, places in _decoded(images, image_inputs, broken):
        features.append(model.image_features(model.encode(batch.pixels)).float().cpu())
        readable += [image_inputs[place] for place in places]
    if not readable:
        return [[] for _ in queries]
    scores = model.similarities(asked.cpu(), torch.cat(features))
    count = min(max(top, rerank_k), len(readable))
    best = scores.topk(count, dim=1).indices
    logits = torch.full((*scores.shape, 2), float("nan"))
    if rerank_k > 0:
        # Candidates are encoded again, a batch at a time: features of a whole folder would not fit in memory.
        wanted = torch.unique(best[:, :rerank_k])
        read = torch.zeros(len(readable), dtype=torch.bool)
        for batch, places in _decoded(images, [readable[i] for i in wanted.tolist()], broken):
            chunk = wanted[places]
            read[chunk] = True
            pairs = (best[:, :rerank_k, None] == chunk).any(1).nonzero()
            found = match_logits(model, model.encode(batch.pixels), tokens, pairs)
            logits[pairs[:, 0], chunk[pairs[:, 1]]] = found
        lost = wanted[~read[wanted]]
        if len(lost):  # files that went or broke since they were first read: others take their place
            scores[:, lost] = -torch.inf
            best = scores.topk(min(count, len(readable) - len(lost)), dim=1).indices
    return [
        _best((readable[i].name, float(scores[row, i]), logits[row, i]) for i in chosen)[:top]
        for row, chosen in enumerate(best.tolist())
    ]


def _decoded(
    images: Decodes, image_inputs: Sequence[ImageInput], broken: list[BrokenSample] | None
) -> Iterator[tuple[ImageBatch, list[int]]]:
    """Batches of images that can be read, each with their places among `image_inputs`; names need not differ."""
    for batch in images.batches([ImageInput(str(place), one.image) for place, one in enumerate(image_inputs)]):
        for sample in batch.broken:
            named = BrokenSample(sample.cause, image_inputs[int(sample.key)].name, sample.detail)
            if broken is None:
                raise unusable(named)
            broken.append(named)
        if len(batch):
            yield batch, [int(place) for place in batch.names]


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
    logits = torch.full((len(best), 2), float("nan"))
    if rerank_k > 0:
        read = best[:rerank_k]
        logits[: len(read)] = match_logits(
            model, embeds, tokens, torch.stack((read, torch.zeros_like(read)), dim=1)
        )
    rows = zip(best.tolist(), logits, strict=True)
    return _best((texts[i], float(scores[i]), own) for i, own in rows)[:top]


def _best(scored: Iterable[tuple[str, float, Tensor]]) -> list[Found]:
    """(item, ITC similarity, ITM logits [2] or NaN): by score, what ITM read before the rest."""
    found = [
        Found(item, similarity, similarity, None)
        if logits.isnan().any()
        else Found(item, similarity + float(logits[1]), similarity, float(match_probability(logits)))
        for item, similarity, logits in scored
    ]
    return sorted(found, key=lambda one: (one.itm_probability is None, -one.score))
