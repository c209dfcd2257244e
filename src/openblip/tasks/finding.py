"""Search with a predictor: pictures for a text, texts for a picture, by ITC and then by ITM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from openblip.data.pictures import Picture, PictureBatch, Pictures
from openblip.data.sample import BrokenSample
from openblip.tasks.results import Found
from openblip.tasks.retrieval import match_logits

if TYPE_CHECKING:
    from openblip.tasks.predictor import Predictor

__all__ = ["retrieve_images", "retrieve_texts"]


@torch.no_grad()
def retrieve_images(
    predictor: Predictor,
    pictures: Sequence[Picture],
    queries: Sequence[str],
    *,
    top: int,
    rerank_k: int,
    broken: list[BrokenSample] | None = None,
) -> list[list[Found]]:
    """As `Predictor.retrieve_images`."""
    asked, features = predictor.embed_texts(queries), []
    for batch in predictor.whole(pictures) if broken is None else predictor.batches(pictures):
        features += [predictor.embed_images(batch)] if len(batch) else []
        if broken is not None:
            broken += batch.broken
    if broken:
        names = {sample.key for sample in broken}
        pictures = [picture for picture in pictures if picture.name not in names]
    if not pictures:
        return [[] for _ in queries]
    scores = predictor.similarities(asked, torch.cat(features))
    best = scores.topk(min(max(top, rerank_k), len(pictures)), dim=1).indices
    logits = None
    if rerank_k > 0:
        logits = _itm_logits(predictor, pictures, queries, best)
    results = []
    for row, chosen in enumerate(best.tolist()):
        found = [
            _found(pictures[i].name, scores[row, i], None if logits is None else logits[row, i]) for i in chosen
        ]
        results.append(sorted(found, key=lambda f: -f.score)[:top])
    return results


@torch.no_grad()
def retrieve_texts(
    predictor: Predictor, picture: Pictures | PictureBatch, texts: Sequence[str], *, top: int, rerank_k: int
) -> list[Found]:
    """As `Predictor.retrieve_texts`."""
    scores = predictor.similarities(predictor.embed_texts(texts), predictor.embed_images(picture))[:, 0]
    best = scores.topk(min(max(rerank_k, top), len(texts))).indices.tolist()
    if rerank_k > 0:
        (matched,) = predictor.match(picture, [texts[i] for i in best])
        found = [_found(m.text, m.itc_similarity, _logit(m.itm_probability)) for m in matched]
    else:
        found = [_found(texts[i], scores[i], None) for i in best]
    return sorted(found, key=lambda f: -f.score)[:top]


def _itm_logits(predictor: Predictor, pictures: Sequence[Picture], queries: Sequence[str], best: Tensor) -> Tensor:
    """ITM logits [C, I] of the pictures `best` [C, K] of each query; the rest is without meaning.

    Candidates are encoded again, a batch at a time: features of a whole folder would not fit in memory.
    """
    tokens = predictor.embedded_texts(queries)[0]
    logits = torch.full((len(queries), len(pictures)), float("nan"))
    wanted = torch.unique(best)
    done = 0
    for batch in predictor.batches([pictures[i] for i in wanted.tolist()]):
        chunk = wanted[done : done + len(batch)]
        done += len(batch)
        asked = (best[:, :, None] == chunk).any(1).nonzero()
        logits[asked[:, 0], chunk[asked[:, 1]]] = match_logits(
            predictor.matcher, predictor.tokenizer, predictor.encode(batch), tokens, asked, first=predictor.first
        )
    return logits


def _found(item: str, cosine: Tensor | float, logit: Tensor | float | None) -> Found:
    similarity = float(cosine)
    if logit is None:
        return Found(item, similarity, similarity, None)
    probability = float(torch.sigmoid(torch.as_tensor(logit)))
    return Found(item, similarity + float(logit), similarity, probability)


def _logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability, dtype=torch.float64), eps=1e-7))
