"""Retrieval and matching: texts for images and images for texts, by ITC and then by ITM.

ITC compares all pairs by their embeddings; the best k of each query are then read together with the image by ITM
and ordered by ITC similarity + ITM's logit of "matched" alone, as BLIP's `train_retrieval.py` and LAVIS do. An
image is encoded once and its memory is projected once: pairs are read image by image. Features of a large
collection are on disk (`tasks.feature_rows`).

Shapes: C texts, I images, E joint width, N image tokens, Dv vision width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from openblip.core.sharing import joint, joint_sum, offset
from openblip.core.tokenizer import TokenBatch
from openblip.data.sample import Batch
from openblip.metrics.retrieval import rank_of_relevant, rank_scores
from openblip.metrics.scores import roc_auc
from openblip.tasks.config import IN_MEMORY, RunConfig
from openblip.tasks.feature_rows import FeatureRows
from openblip.tasks.forecast import Forecast
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
    "match_margin",
    "match_probability",
    "rerank",
]

_PROJECTED = 2**30
"""bytes of projected memory that a reading of several images may take"""
_ON_CPU = 32
"""texts of one image that are read at once on a CPU"""


@dataclass
class Collection:
    """Images and texts as a model reads them."""

    image_embeds: Tensor
    """[I, N, Dv] features for the memory; on the CPU, mapped from a file, where they are large. Within `sharing`
    those of this rank's images, the `first` of which is not 0 on every rank."""
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
    first: int = 0


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
def collect(
    model: Matches,
    batches: Iterable[Batch],
    *,
    max_length: int = 35,
    max_words: int | None = None,
    max_bytes: int = IN_MEMORY,
) -> Collection:
    """Encode all images and texts of `batches`, each once (`text_mode="all"` for several texts an image).

    Args:
        max_words: of a text; None reads it whole, up to its `max_length` tokens.
        max_bytes: of image features that are kept in memory; more go to a temporary file.
    """
    features, owners = [], []
    texts: list[str] = []
    keys: list[str] = []
    embeds = torch.empty(0)
    with FeatureRows(max_bytes) as rows:
        for batch in batches:
            image_embeds = model.encode(batch.images)
            rows.append(image_embeds)
            features.append(model.image_features(image_embeds).float().cpu())
            owners.append(batch.image_index + len(keys))
            keys += batch.keys
            texts += [_first_words(text, max_words) for text in batch.texts]
        if keys:
            embeds = rows.tensor()
    text_features = [embed_texts(model, texts, max_length=max_length)[1].cpu()] if texts else []
    first, texts = offset(len(keys)), joint(texts)
    return Collection(
        embeds,
        torch.cat(joint(features)).to(model.device),
        model.tokenizer.encode(texts, max_length=max_length).to(model.device),
        torch.cat(joint(text_features)).to(model.device),
        torch.cat(joint([owner + first for owner in owners])),
        joint(keys),
        texts,
        first,
    )


def _first_words(text: str, count: int | None) -> str:
    words = text.split()
    return text if count is None or len(words) <= count else " ".join(words[:count])


def begin_matching(model: Matches, text: TokenBatch) -> Tensor:
    """Ids [C, T] that begin as the model's texts for ITM do."""
    input_ids = text.input_ids.clone()
    input_ids[:, 0] = model.tokenizer.enc_id if model.first == "enc" else model.tokenizer.cls_id
    return input_ids


@torch.no_grad()
def match_logits(
    model: Matches,
    image_embeds: Tensor,
    text: TokenBatch,
    pairs: Tensor,
    *,
    max_rows: int = 256,
    on_rows: Callable[[int], None] | None = None,
) -> Tensor:
    """ITM logits (not matched, matched) for pairs int64 [P, 2] of (text, image), float32 [P, 2] on the CPU.

    Pairs are read image by image, so that each image's memory is projected once, and each image's texts from the
    shortest to the longest, so that little is padded.

    Args:
        max_rows: pairs that are read at once.
        on_rows: told how many pairs were read, after each reading.
    """
    result = torch.empty(len(pairs), 2)
    input_ids = begin_matching(model, text)
    device = input_ids.device
    lengths = text.attention_mask.sum(1).cpu()[pairs[:, 0]]
    counts = torch.bincount(pairs[:, 1])[pairs[:, 1]]
    # Images with equally many texts stand together: these are folded over the images' memories, which are
    # never copied for a text.
    order = torch.arange(len(pairs))
    for key in (lengths, pairs[:, 1], counts):
        order = order[key[order].argsort(stable=True)]
    images, counts = torch.unique_consecutive(pairs[order, 1], return_counts=True)
    start, done, at_once = 0, 0, 1
    while start < len(images):
        end = _end_of_group(counts, start, max_rows, at_once)
        own = images[start:end]
        memory = model.remember(image_embeds[own.to(image_embeds.device)].to(device))
        # The first image, read alone, tells how many fit.
        at_once = max(1, _PROJECTED * len(own) // memory.nbytes)
        rows = len(own) * int(counts[start])
        # On a CPU a smaller reading is as fast, and less of it is padding.
        at_a_time = min(max_rows, _ON_CPU) if len(own) == 1 and device.type == "cpu" else max_rows
        for chunk in order[done : done + rows].split(at_a_time):
            texts = pairs[chunk, 0].to(device)
            mask = text.attention_mask[texts]
            width = int(mask.sum(1).max())
            full = bool(mask[:, :width].all())
            logits = model.match(input_ids[texts, :width], None if full else mask[:, :width], memory)
            result[chunk] = logits.float().cpu()
            if on_rows is not None:
                on_rows(len(chunk))
        start, done = end, done + rows
    return result


def _end_of_group(counts: Tensor, start: int, max_rows: int, most: int) -> int:
    """End of at most `most` equal `counts` whose sum is at most `max_rows`; a larger count is a group alone."""
    count = int(counts[start])
    group = counts[start : start + max(1, min(most, max_rows // count))]
    return start + int((group == count).sum())


def match_margin(logits: Tensor) -> Tensor:
    """By how much "matched" is ahead, of ITM logits [..., 2]: the logarithm of its odds."""
    return logits[..., 1] - logits[..., 0]


def match_probability(logits: Tensor) -> Tensor:
    """Softmax probability of "matched", of ITM logits [..., 2]."""
    return torch.sigmoid(match_margin(logits))


def _logits(
    model: Matches, collection: Collection, pairs: Tensor, *, on_rows: Callable[[int], None] | None = None
) -> Tensor:
    """`match_logits` of pairs of a collection, each read by the rank that has its image."""
    column = pairs[:, 1] - collection.first
    own = (column >= 0) & (column < len(collection.image_embeds))
    logits = torch.zeros(len(pairs), 2)
    if bool(own.any()):
        there = torch.stack((pairs[own, 0], column[own]), dim=1)
        logits[own] = match_logits(model, collection.image_embeds, collection.text, there, on_rows=on_rows)
    return joint_sum(logits)


@torch.no_grad()
def rerank(model: Matches, collection: Collection, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Re-rank the best k of each query by ITM.

    Args:
        scores: ITC similarities of texts and images [C, I].
        k: candidates of each query that are read by ITM.

    Returns:
        scores for text-to-image and for image-to-text, [C, I] each: candidates hold similarity + ITM's logit of
        "matched" and stand above all others, which keep their order.
    """
    num_texts, num_images = scores.shape
    t2i = scores.topk(min(k, num_images), dim=1).indices
    i2t = scores.T.topk(min(k, num_texts), dim=1).indices
    pairs_t2i = torch.stack((torch.arange(num_texts)[:, None].expand_as(t2i), t2i), dim=-1).reshape(-1, 2)
    pairs_i2t = torch.stack((i2t, torch.arange(num_images)[:, None].expand_as(i2t)), dim=-1).reshape(-1, 2)
    pairs, places = torch.unique(torch.cat((pairs_t2i, pairs_i2t)), dim=0, return_inverse=True)
    forecast = Forecast("re-ranking", len(pairs) * len(collection.image_embeds) // num_images, "pairs")
    matched = _logits(model, collection, pairs, on_rows=forecast.done)[:, 1]
    results = []
    for chosen, where in zip((pairs_t2i, pairs_i2t), places.split((len(pairs_t2i), len(pairs_i2t))), strict=True):
        # In float64, where so large a shift leaves the order of near-equal scores as it is.
        result = scores.double() - 1e4
        text, image = chosen.T
        result[text, image] = (scores[text, image] + matched[where]).double()
        results.append(result)
    return results[0], results[1]


@torch.no_grad()
def evaluate_retrieval(
    model: Matches,
    batches: Iterable[Batch],
    *,
    rerank_k: int = 16,
    max_length: int = 35,
    max_words: int | None = None,
    max_bytes: int = IN_MEMORY,
    seed: int = 0,
) -> dict[str, float]:
    """Recall in both directions by ITC and after re-ranking by ITM, and how well ITM tells own from other texts.

    Args:
        rerank_k: candidates of each query that ITM reads, all of them in a smaller collection; 0 leaves it out.
        max_words: of a text, see `collect`.
        max_bytes: of image features that are kept in memory, see `collect`.

    Returns:
        "t2i_recall@1|5|10", "i2t_recall@...", their means "i2t_mean_recall" (of three, by which LAVIS' program
        chooses the best epoch) and "mean_recall" (of all six, BLIP's), the same with "_itm" when `rerank_k` is
        above 0, "itm_accuracy" (own pairs against pairs with another image, half and half, where there is one) and
        "itm_auc".
    """
    collection = collect(model, batches, max_length=max_length, max_words=max_words, max_bytes=max_bytes)
    scores = model.similarities(collection.text_features, collection.image_features).cpu()
    owners = collection.image_of_text.numpy()
    metrics = _recalls(scores.numpy(), scores.numpy(), owners, "")
    if rerank_k > 0:
        t2i, i2t = rerank(model, collection, scores, rerank_k)
        metrics |= _recalls(t2i.numpy(), i2t.numpy(), owners, "_itm")
        if len(collection.keys) > 1:  # a text has another image then
            metrics |= _matching_metrics(model, collection, seed)
    return metrics


def _recalls(t2i: np.ndarray, i2t: np.ndarray, owners: np.ndarray, suffix: str) -> dict[str, float]:
    with_text = np.unique(owners)
    ranks = {
        "t2i": _ranks(t2i, lambda texts: owners[texts, None] == np.arange(t2i.shape[1])),
        "i2t": _ranks(i2t.T[with_text], lambda rows: with_text[rows, None] == owners),
    }
    recalls = {
        f"{direction}_recall{suffix}@{k}": rank_scores(found, depths=(k,))[f"recall@{k}"]
        for direction, found in ranks.items()
        for k in (1, 5, 10)
    }
    of_texts = [value for name, value in recalls.items() if name.startswith("i2t")]
    means = {"i2t_mean_recall": of_texts, "mean_recall": list(recalls.values())}
    return recalls | {f"{name}{suffix}": float(np.mean(values)) for name, values in means.items()}


def _ranks(scores: np.ndarray, relevant: Callable[[slice], np.ndarray]) -> np.ndarray:
    """`rank_of_relevant` of queries [Q, C], some at a time: it holds several matrices as large as its scores."""
    parts = [slice(start, start + 512) for start in range(0, len(scores), 512)]
    return np.concatenate([rank_of_relevant(scores[part], relevant(part)) for part in parts])


def _matching_metrics(model: Matches, collection: Collection, seed: int) -> dict[str, float]:
    """Accuracy and area under the ROC curve over own pairs and as many pairs with another image drawn evenly."""
    owners = collection.image_of_text
    num_images = len(collection.keys)
    shift = torch.randint(1, num_images, (len(owners),), generator=torch.Generator().manual_seed(seed))
    texts = torch.arange(len(owners))
    own = torch.stack((texts, owners), dim=1)
    other = torch.stack((texts, (owners + shift) % num_images), dim=1)
    margins = match_margin(_logits(model, collection, torch.cat((own, other)))).numpy()
    labels = np.repeat([1, 0], len(owners))
    right = (margins > 0) == (labels == 1)
    return {"itm_accuracy": float(right.mean()), "itm_auc": float(roc_auc(margins, labels))}


def evaluate(config: RunConfig, adapter: Adapter, batches: Batches, answers: Sequence[str]) -> Evaluation:
    """Recall by ITC and after re-ranking by ITM, ITM's accuracy, and what the family adds."""
    matcher = adapter.need("match")
    metrics = evaluate_retrieval(
        matcher,
        batches(),
        rerank_k=config.rerank_k,
        max_length=config.max_length,
        max_words=config.max_words,
        max_bytes=config.rerank_memory,
    )
    return metrics | adapter.extra_metrics(batches, max_length=config.max_length), []


RETRIEVAL = Task(
    train={"blip": partial(train_blip, objectives=("itc", "itm")), "blip2": train_stage1}, evaluate=evaluate
)
