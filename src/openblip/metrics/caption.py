"""Caption scores of the COCO evaluation: BLEU, ROUGE-L and CIDEr-D, and distinct n-grams.

The values equal those of `pycocoevalcap` (release 1.2), the program behind published results, without
Java: tests/golden/metrics.json holds what it gave.

    scores = caption_scores(["a dog runs"], [["a dog is running", "dog on grass"]])
    scores["CIDEr"], scores["BLEU-4"]

CIDEr weighs words by how many of the scored images' references hold them, so it means little for a handful
of images and is 0 for a single one. Values are fractions (CIDEr may exceed 1); papers print them times 100.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from openblip.core.errors import UserError
from openblip.metrics.words import split_words

__all__ = ["CiderD", "bleu", "caption_scores", "cider", "distinct", "rouge_l"]

Words = Sequence[str]
NGrams = Counter[tuple[str, ...]]

MAX_ORDER = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4, ROUGE-L, CIDEr, distinct-1 and distinct-2 of one caption for each image.

    "CIDEr+BLEU-4" is the sum by which BLIP's and LAVIS' programs choose a captioner's best epoch. `references` are
    the human captions of each image, in the same order, at least one for each.
    """
    _check(captions, references)
    words = [split_words(caption) for caption in captions]
    reference_words = [[split_words(text) for text in texts] for texts in references]
    scores = {f"BLEU-{order + 1}": value for order, value in enumerate(bleu(words, reference_words))}
    scores["ROUGE-L"] = float(rouge_l(words, reference_words).mean())
    scores["CIDEr"] = float(cider(words, reference_words).mean())
    scores["CIDEr+BLEU-4"] = scores["CIDEr"] + scores["BLEU-4"]
    scores["distinct-1"] = distinct(words, 1)
    scores["distinct-2"] = distinct(words, 2)
    return scores


def _check(captions: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    if len(captions) != len(references):
        raise UserError(
            f"there are {len(captions)} captions and references for {len(references)} images; give one caption each"
        )
    if not captions:
        raise UserError("there are no captions to score")
    for place, texts in enumerate(references):
        if isinstance(texts, str) or len(texts) == 0:
            raise UserError(f"image {place} has no list of reference captions; give at least one for each")


def _ngrams(words: Words, max_order: int = MAX_ORDER) -> NGrams:
    """How often every n-gram of 1 to `max_order` words occurs."""
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, max_order + 1)
        for start in range(len(words) - order + 1)
    )


def bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of the whole collection (Papineni et al., ACL 2002, section 2.3).

    Clipped n-gram matches are summed over all images before precisions are taken; the brevity penalty
    compares the total length with that of each image's reference of nearest length, the shorter of equals.
    """
    matches, totals = np.zeros(MAX_ORDER), np.zeros(MAX_ORDER)
    length = reference_length = 0
    for words, texts in zip(captions, references, strict=True):
        length += len(words)
        reference_length += min((abs(len(text) - len(words)), len(text)) for text in texts)[1]
        most: NGrams = Counter()
        for text in texts:
            most |= _ngrams(text)
        for ngram, count in _ngrams(words).items():
            matches[len(ngram) - 1] += min(count, most[ngram])
        totals += [max(0, len(words) - order) for order in range(MAX_ORDER)]
    # The two small numbers are the reference's: they keep empty collections from dividing by zero.
    precisions = (matches + 1e-15) / (totals + 1e-9)
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    means = np.cumprod(precisions) ** (1 / np.arange(1, MAX_ORDER + 1))
    return tuple(float(mean * penalty) for mean in means)


def rouge_l(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> NDArray[np.float64]:
    """ROUGE-L of each image, [N] (Lin, ACL workshop 2004, section 3), with beta 1.2.

    Precision and recall are each the best over the references, as the COCO evaluation takes them.
    """
    return np.array(
        [_rouge_of(words, texts) for words, texts in zip(captions, references, strict=True)], dtype=np.float64
    )


def _rouge_of(words: Words, texts: Sequence[Words]) -> float:
    common = [_common_length(words, text) for text in texts]
    # The evaluation splits an empty caption into one empty word, which counts as a word here too.
    if not words:
        common = [0 if text else 1 for text in texts]
    precision = max(common) / max(1, len(words))
    recall = max(count / max(1, len(text)) for count, text in zip(common, texts, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _common_length(first: Words, second: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def cider(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> NDArray[np.float64]:
    """CIDEr-D of each image, [N], from 0 to 10; document frequencies are those of `references`."""
    scorer = CiderD.of(references)
    scores = [scorer.score(words, texts) for words, texts in zip(captions, references, strict=True)]
    return np.array(scores, dtype=np.float64)


class CiderD:
    """CIDEr-D (Vedantam et al., CVPR 2015, equation 4 and section 5.2) with document frequencies of a collection.

    Term weights are counts times the log of images over images whose references hold the n-gram; cosines
    with clipped counts, a Gaussian of the difference in length (sigma 6), mean over n = 1..4 and references.
    As in the reference program, length is counted in pairs of words.

    Args:
        frequency: images whose references hold an n-gram; what is left out counts as held by one.
        num_images: of the collection.
    """

    def __init__(self, frequency: Mapping[tuple[str, ...], int], num_images: int) -> None:
        self._frequency = frequency
        self._log_images = math.log(num_images) if num_images else 0.0

    @classmethod
    def of(cls, references: Sequence[Sequence[Words]]) -> CiderD:
        """With the document frequencies of each image's references."""
        frequency: Counter[tuple[str, ...]] = Counter()
        for texts in references:
            frequency.update(set().union(*(_ngrams(text) for text in texts)))
        # Most n-grams are held by one image, which is what is taken for the unknown ones.
        return cls({ngram: count for ngram, count in frequency.items() if count > 1}, len(references))

    def score(self, words: Words, references: Sequence[Words]) -> float:
        """Of a caption against the references of its image, from 0 to 10."""
        weights, norms = self._weigh(words)
        total = 0.0
        for text in references:
            reference_weights, reference_norms = self._weigh(text)
            products = [0.0] * MAX_ORDER
            for ngram, weight in weights.items():
                other = reference_weights.get(ngram, 0.0)
                products[len(ngram) - 1] += min(weight, other) * other
            cosines = [
                product / (norm * other) if norm and other else product
                for product, norm, other in zip(products, norms, reference_norms, strict=True)
            ]
            difference = max(0, len(words) - 1) - max(0, len(text) - 1)
            closeness = math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))
            total += 10 * closeness * sum(cosines) / MAX_ORDER / len(references)
        return total

    def _weigh(self, words: Words) -> tuple[dict[tuple[str, ...], float], list[float]]:
        """The weight of each n-gram, and the norm of those of each order."""
        weights = {
            ngram: count * (self._log_images - math.log(self._frequency.get(ngram, 1)))
            for ngram, count in _ngrams(words).items()
        }
        norms = [0.0] * MAX_ORDER
        for ngram, weight in weights.items():
            norms[len(ngram) - 1] += weight**2
        return weights, [math.sqrt(norm) for norm in norms]


def distinct(captions: Sequence[Words], order: int) -> float:
    """Different n-grams over all n-grams of the collection (Li et al., NAACL 2016); 0 where there are none.

    Falls with the size of the collection: compare collections of one size.
    """
    ngrams = [tuple(words[start : start + order]) for words in captions for start in range(len(words) - order + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
