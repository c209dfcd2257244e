"""Retrieval and matching: texts for images and images for texts, by ITC and then by ITM.

ITC compares all pairs by their embeddings; the best k of each query are then read together with the image by ITM
and ordered by ITC similarity + ITM logit, as the reference does. An image is encoded once; its memory is kept for
re-ranking, on the device or the CPU.

Shapes: C texts, I images, E joint width, N image tokens, Dv vision width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from openblip.core.tokenizer import TokenBatch
from openblip.data.sample import Batch
from openblip.metrics.retrieval import rank_of_relevant, rank_scores
from openblip.metrics.scores import roc_auc
from openblip.tasks.config import RunConfig
from openblip.tasks.pairs import train_blip, train_stage1
from openblip.tasks.protocols import Adapter, Matches
from openblip.tasks.task import Batches, Evaluation, Task

__all__ = [
    "RETRIEVAL",
    "Collection",
    "begin_matching",
    "collect",
    "embed_texts",
    "evaluate_retrieval",
    "match_logits",
    "match_probability",
    "rerank",
]


@dataclass
class Collection:
    """Images and texts as a model reads them."""

    image_embeds: Tensor
    """[I, N, Dv] features for the memory"""
    image_features: Tensor
    """[I, E] normalised; [I, Q, E] of BLIP-2"""
    text: TokenBatch
    """ids beginning with [CLS], [C, T]"""
    text_features: Tensor
    """[C, E] normalised"""
    image_of_text: Tensor
    """int64 [C], the image each text belongs to"""
    keys: list[str]
    texts: list[str]


@torch.no_grad()
def embed_texts(
    model: Matches, texts: Sequence[str], *, max_length: int | None = None, batch_size: int = 256
) -> tuple[TokenBatch, Tensor]:
    """Ids [C, T] on the model's device, and normalised features [C, E]."""
    tokens = model.tokenizer.encode(texts, max_length=max_length).to(model.device)
    order = tokens.attention_mask.sum(1).argsort()
    features = torch.empty(len(texts), model.embed_dim, device=model.device)
    for rows in order.split(batch_size):
        width = int(tokens.attention_mask[rows].sum(1).max())
        features[rows] = model.text_features(
            tokens.input_ids[rows, :width], tokens.attention_mask[rows, :width]
        ).float()
    return tokens, features


@torch.no_grad()
def collect(model: Matches, batches: Iterable[Batch], *, max_length: int = 35) -> Collection:
    """Encode all images and texts of `batches`, each once (`text_mode="all"` for several texts an image)."""
    embeds, features, owners = [], [], []
    texts: list[str] = []
    keys: list[str] = []
    for batch in batches:
        image_embeds = model.encode(batch.images)
        embeds.append(image_embeds)
        features.append(model.image_features(image_embeds).float())
        owners.append(batch.image_index + len(keys))
        keys += batch.keys
        texts += batch.texts
    tokens, text_features = embed_texts(model, texts, max_length=max_length)
    return Collection(torch.cat(embeds), torch.cat(features), tokens, text_features, torch.cat(owners), keys, texts)


def begin_matching(model: Matches, text: TokenBatch) -> Tensor:
    """Ids [C, T] that begin as the model's texts for ITM do."""
    input_ids = text.input_ids.clone()
    input_ids[:, 0] = model.tokenizer.enc_id if model.first == "enc" else model.tokenizer.cls_id
    return input_ids


@torch.no_grad()
def match_logits(
    model: Matches, image_embeds: Tensor, text: TokenBatch, pairs: Tensor, *, max_rows: int = 256
) -> Tensor:
    """ITM logit differences (matched minus not) for pairs int64 [P, 2] of (text, image), float32 [P] on the CPU.

    Pairs are read image by image, so that each image's memory is projected once.

    Args:
        max_rows: pairs that are read at once.
    """
    result = torch.empty(len(pairs))
    input_ids = begin_matching(model, text)
    device = input_ids.device
    order = pairs[:, 1].argsort(stable=True)
    images, counts = torch.unique_consecutive(pairs[order, 1], return_counts=True)
    done = 0
    for group in _groups(counts.tolist(), max_rows):
        own = counts[group]
        memory = model.remember(image_embeds[images[group].to(device)])
        rows = torch.arange(len(own)).repeat_interleave(own)
        # Equally many texts for each image are folded over its memory; else the memory is gathered.
        folded = len(own) == 1 or bool((own == own[0]).all())
        for part in torch.arange(len(rows)).split(max_rows):
            chunk = order[done + part]
            texts = pairs[chunk, 0].to(device)
            mask = text.attention_mask[texts]
            width = int(mask.sum(1).max())
            full = bool(mask[:, :width].all())
            logits = model.match(
                input_ids[texts, :width],
                None if full else mask[:, :width],
                memory if folded else memory.select(rows[part].to(device)),
            ).float()
            result[chunk] = (logits[:, 1] - logits[:, 0]).cpu()
        done += len(rows)
    return result


def _groups(counts: Sequence[int], limit: int) -> Iterator[slice]:
    """Runs of `counts` whose sum is at most `limit`; a larger count is a run of its own."""
    start, total = 0, 0
    for place, count in enumerate(counts):
        if place > start and total + count > limit:
            yield slice(start, place)
            start, total = place, 0
        total += count
    if start < len(counts):
        yield slice(start, len(counts))


def match_probability(logit_difference: Tensor) -> Tensor:
    """Two-class softmax probability of "matched"."""
    return torch.sigmoid(logit_difference)


@torch.no_grad()
def rerank(model: Matches, collection: Collection, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Re-rank the best k of each query by ITM.

    Args:
        scores: ITC similarities of texts and images [C, I].
        k: candidates of each query that are read by ITM.

    Returns:
        scores for text-to-image and for image-to-text, [C, I] each: candidates hold similarity + ITM logit
        and stand above all others, which keep their order.
    """
    num_texts, num_images = scores.shape
    t2i = scores.topk(min(k, num_images), dim=1).indices
    i2t = scores.T.topk(min(k, num_texts), dim=1).indices
    pairs_t2i = torch.stack((torch.arange(num_texts)[:, None].expand_as(t2i), t2i), dim=-1).reshape(-1, 2)
    pairs_i2t = torch.stack((i2t, torch.arange(num_images)[:, None].expand_as(i2t)), dim=-1).reshape(-1, 2)
    pairs = torch.unique(torch.cat((pairs_t2i, pairs_i2t)), dim=0)
    logits = match_logits(model, collection.image_embeds, collection.text, pairs)
    matched = torch.full_like(scores, 0.0)
    matched[pairs[:, 0], pairs[:, 1]] = logits
    results = []
    for chosen in (pairs_t2i, pairs_i2t):
        # In float64, where so large a shift leaves the order of near-equal scores as it is.
        result = scores.double() - 1e4
        result[chosen[:, 0], chosen[:, 1]] = (scores + matched)[chosen[:, 0], chosen[:, 1]].double()
        results.append(result)
    return results[0], results[1]


@torch.no_grad()
def evaluate_retrieval(
    model: Matches, batches: Iterable[Batch], *, rerank_k: int = 16, max_length: int = 35, seed: int = 0
) -> dict[str, float]:
    """Recall in both directions by ITC and after re-ranking by ITM, and how well ITM tells own from other texts.

    Returns:
        "t2i_recall@1|5|10", "i2t_recall@...", the same with "_itm" when `rerank_k` is above 0, "itm_accuracy"
        (own pairs against pairs with another image, half and half) and "itm_auc".
    """
    collection = collect(model, batches, max_length=max_length)
    scores = model.similarities(collection.text_features, collection.image_features).cpu()
    owners = collection.image_of_text.numpy()
    metrics = _recalls(scores.numpy(), scores.numpy(), owners, "")
    if rerank_k > 0 and len(collection.keys) > 1:
        t2i, i2t = rerank(model, collection, scores, rerank_k)
        metrics |= _recalls(t2i.numpy(), i2t.numpy(), owners, "_itm")
        metrics |= _matching_metrics(model, collection, seed)
    return metrics


def _recalls(t2i: np.ndarray, i2t: np.ndarray, owners: np.ndarray, suffix: str) -> dict[str, float]:
    relevant = owners[:, None] == np.arange(t2i.shape[1])
    with_text = relevant.any(axis=0)
    ranks = {
        "t2i": rank_of_relevant(t2i, relevant),
        "i2t": rank_of_relevant(i2t.T[with_text], relevant.T[with_text]),
    }
    return {
        f"{direction}_recall{suffix}@{k}": rank_scores(found, depths=(k,))[f"recall@{k}"]
        for direction, found in ranks.items()
        for k in (1, 5, 10)
    }


def _matching_metrics(model: Matches, collection: Collection, seed: int) -> dict[str, float]:
    """Accuracy and area under the ROC curve over own pairs and as many pairs with another image drawn evenly."""
    owners = collection.image_of_text
    num_images = len(collection.keys)
    shift = torch.randint(1, num_images, (len(owners),), generator=torch.Generator().manual_seed(seed))
    texts = torch.arange(len(owners))
    own = torch.stack((texts, owners), dim=1)
    other = torch.stack((texts, (owners + shift) % num_images), dim=1)
    logits = match_logits(model, collection.image_embeds, collection.text, torch.cat((own, other)))
    labels = np.repeat([1, 0], len(owners))
    right = (logits.numpy() > 0) == (labels == 1)
    return {"itm_accuracy": float(right.mean()), "itm_auc": float(roc_auc(logits.numpy(), labels))}


def evaluate(config: RunConfig, adapter: Adapter, batches: Batches, answers: Sequence[str]) -> Evaluation:
    """Recall by ITC and after re-ranking by ITM, ITM's accuracy, and what the family adds."""
    matcher = adapter.need("match")
    metrics = evaluate_retrieval(matcher, batches(), rerank_k=config.rerank_k, max_length=config.max_length)
    return metrics | adapter.extra_metrics(batches, max_length=config.max_length), []


RETRIEVAL = Task(
    train={"blip": partial(train_blip, objectives=("itc", "itm")), "blip2": train_stage1}, evaluate=evaluate
)
