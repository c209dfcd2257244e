"""How well a model knows unseen pictures: retrieval, matching, perplexity and captions, each beside a control.

What looks like understanding may be the habits of the pictures' book or of its texts, so everything is measured
against wrong pictures twice: any other ones, and others of the same book, whose style gives nothing away. Wrong
pictures are the same for every model and every seed.

Shapes: I pictures, each with one text; m wrong pictures for each.
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
from openblip.generation.types import DecodeConfig
from openblip.metrics.caption import caption_scores, cider
from openblip.metrics.retrieval import rank_of_relevant, rank_scores
from openblip.metrics.scores import roc_auc
from openblip.metrics.words import split_words
from openblip.tasks.protocols import Adapter
from openblip.tasks.retrieval import Collection, collect, match_logits, rerank

__all__ = [
    "DECODING",
    "Unseen",
    "caption_numbers",
    "chance",
    "likelihood_numbers",
    "matching_numbers",
    "mean_place",
    "recalls",
    "wrong_pictures",
]

DEPTHS = (1, 5, 10)
DECODING = {
    "beam": DecodeConfig(num_beams=3, min_new_tokens=5, max_new_tokens=30, repetition_penalty=1.2),
    "nucleus": DecodeConfig(sample=True, top_p=0.9, min_new_tokens=5, max_new_tokens=30),
}
_ROWS = 64


@dataclass(frozen=True)
class Unseen:
    """Pictures that were not trained on, in memory, and the wrong pictures for each text."""

    batches: list[Batch]
    books: list[str]
    """of each picture"""
    wrong: Tensor
    """int64 [m, I]; the first row is the permutation that perplexity and captions are controlled with"""
    same_book: Tensor
    """as `wrong`, of the same book; a picture alone in its book is its own neighbour"""

    @classmethod
    def of(cls, batches: Sequence[Batch], books: Sequence[str], *, wrong: int = 8) -> Unseen:
        """From batches with one text for each picture."""
        for batch in batches:
            assert torch.equal(batch.image_index, torch.arange(len(batch))), "one text for each picture"
        anywhere = wrong_pictures(["all"] * len(books), wrong)
        return cls(list(batches), list(books), anywhere, wrong_pictures(books, wrong))

    @property
    def texts(self) -> list[str]:
        """The alt text of each picture."""
        return [text for batch in self.batches for text in batch.texts]

    @property
    def keys(self) -> list[str]:
        """The name of each picture."""
        return [key for batch in self.batches for key in batch.keys]


def wrong_pictures(groups: Sequence[str], count: int) -> Tensor:
    """Permutations that move every picture within its group, int64 [count, I]; always the same ones.

    Each group is shuffled once and turned by 1, 2, ... places, so no text meets a wrong picture twice (in groups
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
    """What guessing gives: each recall for one who knows nothing, and for one who knows the book of each picture.

    "recall@k_luck" is two standard deviations above chance: what a guesser passes once in forty times.
    """
    count = len(books)
    sizes = np.asarray([list(books).count(book) for book in books])
    numbers: dict[str, float] = {"auc": 0.5}
    for k in DEPTHS:
        expected = min(1.0, k / count)
        numbers[f"recall@{k}"] = expected
        numbers[f"recall@{k}_luck"] = expected + 2 * float(np.sqrt(expected * (1 - expected) / count))
        numbers[f"recall@{k}_knowing_the_book"] = float(np.minimum(1.0, k / sizes).mean())
    return numbers


def recalls(t2i: NDArray[Any], i2t: NDArray[Any], suffix: str = "") -> dict[str, float]:
    """Recall@1, 5, 10 in both directions; scores are [texts, pictures], text i belongs to picture i."""
    numbers: dict[str, float] = {}
    for direction, scores in (("t2i", t2i), ("i2t", i2t.T)):
        found = rank_scores(rank_of_relevant(scores, np.eye(len(scores), dtype=bool)), depths=DEPTHS)
        numbers |= {f"{direction}_recall{suffix}@{k}": found[f"recall@{k}"] for k in DEPTHS}
    return numbers


def mean_place(scores: NDArray[Any], books: Sequence[str] | None = None) -> float:
    """Share of the other candidates that stand below the right one, a tie counting one half; 0.5 is chance.

    The mean over both directions of scores [texts, pictures]; of much less spread than recall among few pictures.

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
def matching_numbers(adapter: Adapter, unseen: Unseen, *, rerank_k: int, max_length: int) -> dict[str, float]:
    """Retrieval in both directions by ITC and after ITM has read the best `rerank_k` of each query; ITM alone.

    Args:
        rerank_k: 0 leaves re-ranking out.

    Returns:
        "t2i_recall@k", "i2t_recall@k" and with "_itm" for k = 1, 5, 10; "itc_auc" (`mean_place`) and "itm_auc" (ROC
        AUC of own against wrong pictures), each also with "_same_book"; "mean_auc" of the first two.
    """
    collection = collect(adapter.need("match"), unseen.batches, max_length=max_length)
    scores = adapter.need("match").similarities(collection.text_features, collection.image_features).cpu()
    numbers = recalls(scores.numpy(), scores.numpy())
    if rerank_k:
        t2i, i2t = rerank(adapter.need("match"), collection, scores, rerank_k)
        numbers |= recalls(t2i.numpy(), i2t.numpy(), "_itm")
    numbers["itc_auc"] = mean_place(scores.numpy())
    numbers["itc_auc_same_book"] = mean_place(scores.numpy(), unseen.books)
    numbers |= _itm_auc(adapter, collection, unseen)
    return numbers | {"mean_auc": (numbers["itc_auc"] + numbers["itm_auc"]) / 2}


def _itm_auc(adapter: Adapter, collection: Collection, unseen: Unseen) -> dict[str, float]:
    texts = torch.arange(len(collection.keys))

    def logits(pictures: Tensor) -> NDArray[Any]:
        pairs = torch.stack((texts.expand_as(pictures).flatten(), pictures.flatten()), dim=1)
        return match_logits(adapter.need("match"), collection.image_embeds, collection.text, pairs).numpy()

    own = logits(texts)
    numbers = {}
    for name, pictures in (("itm_auc", unseen.wrong), ("itm_auc_same_book", unseen.same_book)):
        other = logits(pictures)
        labels = np.concatenate((np.ones(len(own)), np.zeros(len(other))))
        numbers[name] = roc_auc(np.concatenate((own, other)), labels)
    return numbers


@torch.no_grad()
def likelihood_numbers(adapter: Adapter, unseen: Unseen, *, max_length: int) -> dict[str, float]:
    """Perplexity of the alt texts, for each token, given the right picture and given a wrong one.

    Returns:
        "perplexity_right", "perplexity_wrong", "perplexity_same_book" (wrong, of the same book), and the share of
        texts that are likelier given the right picture than the wrong one: "prefers_right",
        "prefers_right_same_book".
    """
    embeds = torch.cat([adapter.encode(batch.images) for batch in unseen.batches])
    texts, own = unseen.texts, torch.arange(len(embeds))

    def log_likelihoods(pictures: Tensor) -> tuple[Tensor, Tensor]:
        sums, counts = [], []
        for rows in own.split(_ROWS):
            memory = adapter.remember(embeds[pictures[rows]])
            some = [texts[row] for row in rows.tolist()]
            found = adapter.need("likelihood").score_own(memory, some, max_length=max_length)
            sums.append(found[0])
            counts.append(found[1])
        return torch.cat(sums), torch.cat(counts)

    right, counts = log_likelihoods(own)
    numbers = {"perplexity_right": perplexity(right, counts)}
    for name, pictures in (("wrong", unseen.wrong[0]), ("same_book", unseen.same_book[0])):
        wrong, _ = log_likelihoods(pictures)
        numbers[f"perplexity_{name}"] = perplexity(wrong, counts)
        share = ((right > wrong).float() + (right == wrong).float() / 2).mean()
        numbers["prefers_right" if name == "wrong" else "prefers_right_same_book"] = float(share)
    return numbers


def perplexity(log_likelihoods: Tensor, counts: Tensor) -> float:
    """For each token, of texts with these sums of natural logarithms [R] and numbers of tokens [R]."""
    return float((-log_likelihoods.double().sum() / counts.sum()).exp())


@torch.no_grad()
def caption_numbers(
    adapter: Adapter, unseen: Unseen, *, seed: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Captions by beam 3 and by nucleus sampling against the alt texts, and handed to wrong pictures as a control.

    Returns:
        "CIDEr_beam", "BLEU-1_beam", "BLEU-4_beam" and with "_nucleus"; the same of captions that were written for a
        wrong picture with "_wrong" and "_same_book"; "distinct_beam", the share of captions that are unlike all
        others. And one record for each picture, with its own CIDEr.
    """
    references = [[text] for text in unseen.texts]
    words = [[split_words(text)] for text in unseen.texts]
    numbers: dict[str, float] = {}
    records: list[dict[str, Any]] = [
        {"picture": key, "alt_text": text} for key, text in zip(unseen.keys, unseen.texts, strict=True)
    ]
    for name, config in DECODING.items():
        captions: list[str] = []
        for batch in unseen.batches:
            memory = adapter.remember(adapter.encode(batch.images))
            how, prompts = replace(config, seed=seed), [""] * len(batch)
            written = adapter.need("caption").generate(memory, how, prompts, batch.image_ids)
            captions += [found[0].text for found in written]
        controls = {"": torch.arange(len(captions)), "_wrong": unseen.wrong[0], "_same_book": unseen.same_book[0]}
        for suffix, pictures in controls.items():
            scores = caption_scores([captions[other] for other in pictures.tolist()], references)
            numbers |= {f"{measure}_{name}{suffix}": scores[measure] for measure in ("CIDEr", "BLEU-1", "BLEU-4")}
        numbers[f"distinct_{name}"] = len(set(captions)) / len(captions)
        each = cider([split_words(text) for text in captions], words)
        for record, caption, score in zip(records, captions, each.tolist(), strict=True):
            record[name], record[f"CIDEr_{name}"] = caption, round(score, 4)
    return numbers, records
