"""Self-critical training of captions (Rennie et al., CVPR 2017): what raises CIDEr-D becomes likelier.

Captions are sampled from the model itself (`tasks.selfcritical`); each is rewarded with its CIDEr-D against its
image's references, less a baseline: the mean reward of the image's other samples (Luo 2020) or that of the greedy
caption (Rennie et al.). The loss is minus this advantage times the caption's log-likelihood, so its gradient is
that of the expected reward. The end of a caption counts as a word, else captions that stop before their last word
pay off.

Shapes: B images, K samples of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from openblip.core.runtime import average
from openblip.metrics.caption import CiderD
from openblip.metrics.words import split_words

__all__ = ["CaptionRewards", "advantages", "self_critical_loss"]

_END = "</s>"


class CaptionRewards:
    """CIDEr-D of captions against the references of their images.

    Args:
        references: for each image, by its id, the words of its captions as `words_of` gives them. Their document
            frequencies weigh the n-grams.
    """

    def __init__(self, references: Mapping[int, Sequence[Sequence[str]]]) -> None:
        self._references = references
        self._cider = CiderD.of(list(references.values()))

    @staticmethod
    def words_of(text: str, *, ended: bool = True) -> list[str]:
        """Words of a caption, with one more where it ended."""
        return [*split_words(text), *([_END] if ended else [])]

    def of(self, image: int, words: Sequence[str]) -> float:
        """From 0 to 10."""
        return self._cider.score(words, self._references[image])


def advantages(rewards: Tensor, greedy: Tensor | None) -> Tensor:
    """What each of [B, K] rewards is above its baseline: `greedy` [B], or the mean of the image's other samples."""
    if greedy is not None:
        return rewards - greedy[:, None]
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def self_critical_loss(advantage: Tensor, log_probs: Tensor, lengths: Tensor) -> Tensor:
    """Minus advantages times log-likelihoods, [B, K] each, over the tokens of all captions; a scalar.

    Args:
        lengths: tokens of each caption, int64 [B, K]; their sum is averaged over processes, so that the mean of the
            processes' losses is the mean over all tokens.
    """
    return -(advantage * log_probs).sum() / average(lengths.sum().float())
