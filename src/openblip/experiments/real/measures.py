"""How well a model knows unseen images: retrieval, matching, perplexity and captions, each beside a control.

What looks like understanding may be the habits of the images' book or of its texts, so everything is measured
against wrong images twice: any other ones, and others of the same book, whose style gives nothing away. Wrong
images are the same for every model and every seed.

Shapes: I images, each with one text; m wrong images for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip.data.sample import Batch
from openblip.generation.config import DecodeConfig
from openblip.metrics.caption import caption_scores, cider
from openblip.metrics.retrieval import rank_of_relevant, rank_scores
from openblip.metrics.scores import roc_auc
from openblip.metrics.words import split_words
from openblip.tasks.protocols import Adapter
from openblip.tasks.retrieval import Collection, collect, match_logits, match_margin, rerank

__all__ = [
    "DECODING",
    "Unseen",
    "caption_metrics",
    "chance",
    "likelihood_metrics",
    "matching_metrics",
    "mean_place",
    "recalls",
    "wrong_images",
]

DEPTHS = (1, 5, 10)
DECODING = {
    "beam": DecodeConfig(num_beams=3, min_new_tokens=5, max_new_tokens=30, repetition_penalty=1.2),
    "nucleus": DecodeConfig(sample=True, top_p=0.9, min_new_tokens=5, max_new_tokens=30),
}
_ROWS = 64


@dataclass(frozen=True)
class Unseen:
    """Images that were not trained on, in memory, and the wrong images for each text."""

    batches: list[Batch]
    books: list[str]
    """of each image"""
    wrong: Tensor
    """int64 [m, I]; the first row is the permutation that perplexity and captions are controlled with"""
    same_book: Tensor
    """as `wrong`, of the same book; an image alone in its book is its own neighbour"""

    @classmethod
    def of(cls, batches: Sequence[Batch], books: Sequence[str], *, wrong: int = 8) -> Unseen:
        """From batches with one text for each image."""
        for batch in batches:
            assert torch.equal(batch.image_index, torch.arange(len(batch))), "one text for each image"
        anywhere = wrong_images(["all"] * len(books), wrong)
        return cls(list(batches), list(books), anywhere, wrong_images(books, wrong))

    @property
    def texts(self) -> list[str]:
        """The alt text of each image."""
        return [text for batch in self.batches for text in batch.texts]

    @property
    def keys(self) -> list[str]:
        """The name of each image."""
        return [key for batch in self.batches for key in batch.keys]


def wrong_images(groups: Sequence[str], count: int) -> Tensor:
    """Permutations that move every image within its group, int64 [count, I]; always the same ones.

    Each group is shuffled once and turned by 1, 2, ... places, so no text meets a wrong image twice (in groups
    of more than `count`).
    """
    generator = np.random.default_rng(0)
    found = np.empty((count, len(groups)), dtype=np.int64)
    names = np.asarray(groups)
    for group in dict.fromkeys(groups):
        members = generator.permutation(np.flatnonzero(names == group))
        for turn in range(count):
            found[turn, members] = np.roll(members, 1 + turn % max(1, len(members) - 1))
    return torch.from_numpy(found)


def chance(books: Sequence[str]) -> dict[str, float]:
    """What guessing gives: each recall for one who knows nothing, and for one who knows the book of each image.

    "recall@k_luck" is two standard deviations above chance: what a guesser passes once in forty times.
    """
    count = len(books)
    sizes = np.asarray([list(books).count(book) for book in books])
    metrics: dict[str, float] = {"auc": 0.5}
    for k in DEPTHS:
        expected = min(1.0, k / count)
        metrics[f"recall@{k}"] = expected
        metrics[f"recall@{k}_luck"] = expected + 2 * float(np.sqrt(expected * (1 - expected) / count))
        metrics[f"recall@{k}_knowing_the_book"] = float(np.minimum(1.0, k / sizes).mean())
    return metrics


def recalls(t2i: NDArray[Any], i2t: NDArray[Any], suffix: str = "") -> dict[str, float]:
    """Recall@1, 5, 10 in both directions; scores are [texts, images], text i belongs to image i."""
    metrics: dict[str, float] = {}
    for direction, scores in (("t2i", t2i), ("i2t", i2t.T)):
        found = rank_scores(rank_of_relevant(scores, np.eye(len(scores), dtype=bool)), depths=DEPTHS)
        metrics |= {f"{direction}_recall{suffix}@{k}": found[f"recall@{k}"] for k in DEPTHS}
    return metrics


def mean_place(scores: NDArray[Any], books: Sequence[str] | None = None) -> float:
    """Share of the other candidates that stand below the right one, a tie counting one half; 0.5 is chance.

    The mean over both directions of scores [texts, images]; of much less spread than recall among few images.

    Args:
        books: count only candidates of the same one.
    """
    others = ~np.eye(len(scores), dtype=bool)
    if books is not None:
        others &= np.asarray(books)[:, None] == np.asarray(books)[None, :]
    counted = others.any(1)
    found = []
    for table in (scores, scores.T):
        own = np.diagonal(table)[:, None]
        below = (table < own) + 0.5 * (table == own)
        found.append(((below * others).sum(1)[counted] / others.sum(1)[counted]).mean())
    return float(np.mean(found))


@torch.no_grad()
def matching_metrics(adapter: Adapter, unseen: Unseen, *, rerank_k: int, max_length: int) -> dict[str, float]:
    """Retrieval in both directions by ITC and after ITM has read the best `rerank_k` of each query; ITM alone.

    Args:
        rerank_k: 0 leaves re-ranking out.

    Returns:
        "t2i_recall@k", "i2t_recall@k" and with "_itm" for k = 1, 5, 10; "itc_auc" (`mean_place`) and "itm_auc" (ROC
        AUC of own against wrong images), each also with "_same_book"; "mean_auc" of the first two.
    """
    collection = collect(adapter.need("match"), unseen.batches, max_length=max_length)
    scores = adapter.need("match").similarities(collection.text_features, collection.image_features).cpu()
    metrics = recalls(scores.numpy(), scores.numpy())
    if rerank_k:
        t2i, i2t = rerank(adapter.need("match"), collection, scores, rerank_k)
        metrics |= recalls(t2i.numpy(), i2t.numpy(), "_itm")
    metrics["itc_auc"] = mean_place(scores.numpy())
    metrics["itc_auc_same_book"] = mean_place(scores.numpy(), unseen.books)
    metrics |= _itm_auc(adapter, collection, unseen)
    return metrics | {"mean_auc": (metrics["itc_auc"] + metrics["itm_auc"]) / 2}


def _itm_auc(adapter: Adapter, collection: Collection, unseen: Unseen) -> dict[str, float]:
    texts = torch.arange(len(collection.keys))

    def logits(images: Tensor) -> NDArray[Any]:
        pairs = torch.stack((texts.expand_as(images).flatten(), images.flatten()), dim=1)
        found = match_logits(adapter.need("match"), collection.image_embeds, collection.text, pairs)
        return match_margin(found).numpy()

    own = logits(texts)
    metrics = {}
    for name, images in (("itm_auc", unseen.wrong), ("itm_auc_same_book", unseen.same_book)):
        other = logits(images)
        labels = np.concatenate((np.ones(len(own)), np.zeros(len(other))))
        metrics[name] = roc_auc(np.concatenate((own, other)), labels)
    return metrics


@torch.no_grad()
def likelihood_metrics(adapter: Adapter, unseen: Unseen, *, max_length: int) -> dict[str, float]:
    """Perplexity of the alt texts, for each token, given the right image and given a wrong one.

    Returns:
        "perplexity_right", "perplexity_wrong", "perplexity_same_book" (wrong, of the same book), and the share of
        texts that are likelier given the right image than the wrong one: "prefers_right",
        "prefers_right_same_book".
    """
    embeds = torch.cat([adapter.encode(batch.images) for batch in unseen.batches])
    texts, own = unseen.texts, torch.arange(len(embeds))

    def log_likelihoods(images: Tensor) -> tuple[Tensor, Tensor]:
        sums, counts = [], []
        for rows in own.split(_ROWS):
            memory = adapter.remember(embeds[images[rows]])
            some = [texts[row] for row in rows.tolist()]
            found = adapter.need("likelihood").score_own(memory, some, max_length=max_length)
            sums.append(found[0])
            counts.append(found[1])
        return torch.cat(sums), torch.cat(counts)

    right, counts = log_likelihoods(own)
    metrics = {"perplexity_right": perplexity(right, counts)}
    for name, images in (("wrong", unseen.wrong[0]), ("same_book", unseen.same_book[0])):
        wrong, _ = log_likelihoods(images)
        metrics[f"perplexity_{name}"] = perplexity(wrong, counts)
        share = ((right > wrong).float() + (right == wrong).float() / 2).mean()
        metrics["prefers_right" if name == "wrong" else "prefers_right_same_book"] = float(share)
    return metrics


def perplexity(log_likelihoods: Tensor, counts: Tensor) -> float:
    """For each token, of texts with these sums of natural logarithms [R] and numbers of tokens [R]."""
    return float((-log_likelihoods.double().sum() / counts.sum()).exp())


@torch.no_grad()
def caption_metrics(
    adapter: Adapter, unseen: Unseen, *, seed: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Captions by beam 3 and by nucleus sampling against the alt texts, and handed to wrong images as a control.

    Returns:
        "CIDEr_beam", "BLEU-1_beam", "BLEU-4_beam" and with "_nucleus"; the same of captions that were written for a
        wrong image with "_wrong" and "_same_book"; "distinct_beam", the share of captions that are unlike all
        others. And one record for each image, with its own CIDEr.
    """
    references = [[text] for text in unseen.texts]
    words = [[split_words(text)] for text in unseen.texts]
    metrics: dict[str, float] = {}
    records: list[dict[str, Any]] = [
        {"image": key, "alt_text": text} for key, text in zip(unseen.keys, unseen.texts, strict=True)
    ]
    for name, config in DECODING.items():
        captions: list[str] = []
        for batch in unseen.batches:
            memory = adapter.remember(adapter.encode(batch.images))
            how, prompts = replace(config, seed=seed), [""] * len(batch)
            written = adapter.need("caption").generate(memory, how, prompts, batch.image_ids)
            captions += [found[0].text for found in written]
        controls = {"": torch.arange(len(captions)), "_wrong": unseen.wrong[0], "_same_book": unseen.same_book[0]}
        for suffix, images in controls.items():
            scores = caption_scores([captions[other] for other in images.tolist()], references)
            metrics |= {f"{measure}_{name}{suffix}": scores[measure] for measure in ("CIDEr", "BLEU-1", "BLEU-4")}
        metrics[f"distinct_{name}"] = len(set(captions)) / len(captions)
        each = cider([split_words(text) for text in captions], words)
        for record, caption, score in zip(records, captions, each.tolist(), strict=True):
            record[name], record[f"CIDEr_{name}"] = caption, round(score, 4)
    return metrics, records
