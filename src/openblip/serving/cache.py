"""Features of images by the hash of their bytes: the latest ones, within a bound of memory.

What is kept is what the image memory is projected from, not the projected keys and values: for ViT-B/16 at 384
pixels and 12 layers these take 24 times the bytes, and projecting them is a seventh of the tower's arithmetic.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor

__all__ = ["FeatureCache"]


class FeatureCache:
    """The features that were used last, `max_bytes` of them at most; 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self._features: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._features

    def get(self, key: Hashable) -> Tensor | None:
        """The features, which then count as used last; None where they are not kept."""
        if (found := self._features.get(key)) is not None:
            self._features.move_to_end(key)
        return found

    def put(self, key: Hashable, features: Tensor) -> None:
        """Keep features that own their memory; what was not used for longest goes."""
        if features.nbytes > self.max_bytes or key in self._features:
            return
        self._features[key] = features
        self.nbytes += features.nbytes
        while self.nbytes > self.max_bytes:
            self.nbytes -= self._features.popitem(last=False)[1].nbytes
