"""Composed retrieval: with an image and a text that changes it, find another image of a gallery.

A model that reads both together (BLIP-2) gives multimodal features, query outputs that have seen image and text, as
LAVIS's feature extractor does; they are compared with the image features of the gallery, each query output with the
same one there, by the mean of their cosines. No model was trained for this: what image or text alone, and the sum
of their scores, find is measured beside it.

Shapes: P queries, G images of the gallery, Q query outputs of width D.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.sharing import joint
from openblip.data.image_inputs import ImageBatch
from openblip.data.sample import Batch
from openblip.data.sources.composed import Query, open_composed, queries_of
from openblip.metrics.retrieval import rank_of_relevant, rank_scores
from openblip.tasks.config import RunConfig
from openblip.tasks.protocols import Adapter, Composes
from openblip.tasks.results import Found
from openblip.tasks.retrieval import embed_texts
from openblip.tasks.task import Batches, Evaluation, Task

__all__ = ["COMPOSED", "evaluate_composed", "find_composed", "slot_features", "slot_similarities"]

DEPTHS, IN_GROUP = (1, 5, 10, 50), (1, 2, 3)
_NAMED = 5
"""images that a record names"""


def slot_features(outputs: Tensor) -> Tensor:
    """Query outputs [R, Q, D] -> [R, Q * D], of which the product of two is the mean cosine of their outputs."""
    return (F.normalize(outputs.float(), dim=-1) / outputs.shape[1] ** 0.5).flatten(1)


def slot_similarities(queries: Tensor, gallery: Tensor) -> Tensor:
    """[P, G] of `slot_features` of both."""
    return queries @ gallery.T


@torch.no_grad()
def evaluate_composed(model: Composes, batches: Iterable[Batch], *, without_reference: bool) -> Evaluation:
    """Rank the gallery for every query.

    Args:
        batches: of the gallery, as `open_composed` gives it.
        without_reference: leave a query's own image out of its ranking.

    Returns:
        "recall@1|5|10|50" and, where queries have groups, "recall_subset@1|2|3" by multimodal features; the same
        with ", image", ", text" and ", image + text" by the reference, the text and the sum of both scores;
        "num_without_target" where targets cannot be used, whose queries are not measured; and one record for each
        query: its reference ("key"), text, target, the target's rank (or None), and the five best images.

    Raises:
        UserError: no query, or no target, can be used.
    """
    keys: list[str] = []
    asked: list[tuple[str, Query]] = []
    gallery, projected, composed = [], [], []
    for batch in batches:
        embeds = model.encode(batch.images)
        gallery.append(slot_features(model.query_features(embeds)).cpu())
        projected.append(model.image_features(embeds).float().cpu())
        keys += batch.keys
        own = [(row, query) for row, meta in enumerate(batch.meta) for query in queries_of(meta)]
        asked += [(batch.keys[row], query) for row, query in own]
        for part in (own[start : start + len(batch)] for start in range(0, len(own), len(batch))):
            rows = torch.tensor([row for row, _ in part], device=embeds.device)
            outputs = model.query_features(embeds[rows], [query.text for _, query in part])
            composed.append(slot_features(outputs).cpu())
    keys, asked = joint(keys), joint(asked)
    if not asked:
        raise UserError("none of the gallery's images that can be used has a query")
    images, features = torch.cat(joint(gallery)), torch.cat(joint(projected))
    place = {key: number for number, key in enumerate(keys)}
    known = [number for number, (_, query) in enumerate(asked) if query.target in place]
    if not known:
        raise UserError("the target of no query can be used")
    references = torch.tensor([place[key] for key, _ in asked])
    by_image = slot_similarities(images[references], images)
    texts = [model.clean(query.text) for _, query in asked]
    text_features = embed_texts(model, texts)[1].cpu()
    by_text = model.similarities(text_features, features)
    scores = {"": slot_similarities(torch.cat(joint(composed)), images), ", image": by_image, ", text": by_text}
    scores[", image + text"] = by_image + by_text
    metrics: dict[str, float] = {}
    ranks = np.empty(0)
    for ending, found in scores.items():
        if without_reference:
            found[torch.arange(len(asked)), references] = -torch.inf
        own_ranks = _ranks(found.numpy()[known], [asked[number][1] for number in known], place)
        ranks = own_ranks if not ending else ranks
        measured = rank_scores(own_ranks, depths=DEPTHS)
        metrics |= {f"recall@{k}{ending}": measured[f"recall@{k}"] for k in DEPTHS if k <= len(keys)}
        metrics |= _in_groups(found.numpy(), asked, place, ending)
    lost = len(asked) - len(known)
    metrics |= {"num_without_target": float(lost)} if lost else {}
    best = scores[""].topk(min(_NAMED, len(keys)), dim=1).indices.tolist()
    rank_of = dict(zip(known, ranks.tolist(), strict=True))
    records: list[dict[str, Any]] = [
        {"key": key, "text": query.text, "target": query.target, "rank": rank_of.get(number)}
        | {"found": [keys[image] for image in best[number]]}
        for number, (key, query) in enumerate(asked)
    ]
    return metrics, records


def _ranks(scores: np.ndarray, queries: Sequence[Query], place: dict[str, int]) -> np.ndarray:
    """Of each query's target, [P]."""
    relevant = np.zeros(scores.shape, dtype=bool)
    relevant[np.arange(len(queries)), [place[query.target] for query in queries]] = True
    return rank_of_relevant(scores, relevant)


def _in_groups(
    scores: np.ndarray, asked: Sequence[tuple[str, Query]], place: dict[str, int], ending: str
) -> dict[str, float]:
    """Recall among the images of each query's group, of the queries whose group is there."""
    ranks = []
    for row, (_, query) in zip(scores, asked, strict=True):
        if query.group and query.target in query.group and all(name in place for name in query.group):
            own = row[[place[name] for name in query.group]]
            relevant = np.array([[name == query.target for name in query.group]])
            ranks.append(int(rank_of_relevant(own[None], relevant)[0]))
    if not ranks:
        return {}
    measured = rank_scores(ranks, depths=IN_GROUP)
    return {f"recall_subset@{k}{ending}": measured[f"recall@{k}"] for k in IN_GROUP}


@torch.no_grad()
def find_composed(
    model: Composes, batches: Iterable[ImageBatch], reference: Tensor, text: str, *, top: int
) -> list[Found]:
    """The `top` images for an image and a text that changes it; a result's score is the mean cosine.

    Args:
        reference: image_embeds [1, N, Dv].
    """
    asked = slot_features(model.query_features(reference, [text]))
    _, text_features = embed_texts(model, [model.clean(text)])
    found: list[Found] = []
    for batch in batches:
        embeds = model.encode(batch.pixels)
        scores = slot_similarities(asked, slot_features(model.query_features(embeds)))[0].tolist()
        cosines = model.similarities(text_features, model.image_features(embeds).float())[0].tolist()
        found += [Found(*row, None) for row in zip(batch.names, scores, cosines, strict=True)]
    return sorted(found, key=lambda one: -one.score)[:top]


def evaluate(config: RunConfig, adapter: Adapter, batches: Batches, answers: Sequence[str]) -> Evaluation:
    """Recall in the gallery, and among the images of CIRR's groups."""
    model = adapter.need("features")
    adapter.need("embed")
    alone = all(open_composed(source).without_reference for source in config.validation)
    return evaluate_composed(model, batches(), without_reference=alone)


COMPOSED = Task(train={}, evaluate=evaluate, open=open_composed, cleans=False)
