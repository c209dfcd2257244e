"""What `DecoderStepper` keeps between two tokens, at its full length from the beginning (see `replay`).

Shapes: B images, R rows, N image tokens, H heads, S slots of the cache, d width of a head.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from openblip.models.layers import ImageMemory, KVCache
from openblip.models.replay import FixedState, Replayable
from openblip.models.stepper import DecoderStepper
from openblip.models.text import TextDecoder

__all__ = ["FixedDecoder", "FixedKVCache", "ReplayableDecoder"]


class FixedKVCache(KVCache):
    """A cache of S slots that are overwritten in place; slots that hold no token yet are masked.

    Args:
        like: a cache of the same layers, heads and dtype.
        slot: int64 [1], where the next token goes; whoever owns it counts it up.
    """

    def __init__(self, like: KVCache, rows: int, room: int, slot: Tensor) -> None:
        keys, values = (
            [torch.zeros(_at_length(part, rows, room), dtype=part.dtype, device=part.device) for part in parts]
            for parts in (like.keys, like.values)
        )
        super().__init__(keys, values, padded=True)
        self.slot = slot
        self.real = torch.zeros(rows, room, dtype=torch.bool, device=slot.device)
        self.count = torch.zeros(rows, dtype=torch.int64, device=slot.device)
        self.mask, self.lengths = self.real, self.count

    def clear(self) -> None:
        """Hold no token."""
        # Numbers that are no numbers would come through the mask.
        for part in (*self.keys, *self.values, self.real, self.count):
            part.zero_()

    def read(self, cache: KVCache) -> int:
        """Copy a cache of as many rows into the first slots of this one, which is empty; how many these are."""
        assert cache.mask is not None, "the cache has read no prompt"
        assert cache.lengths is not None, "the cache has read no prompt"
        used = cache.mask.shape[1]
        pairs = zip((*self.keys, *self.values), (*cache.keys, *cache.values), strict=True)
        for own, theirs in pairs:
            own[:, :, :used].copy_(theirs)
        self.real[:, :used].copy_(cache.mask)
        self.count.copy_(cache.lengths)
        return used

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values [R, H, 1, d] of a token into `slot`; return all [R, H, S, d]."""
        self.keys[layer].index_copy_(2, self.slot, key)
        self.values[layer].index_copy_(2, self.slot, value)
        return self.keys[layer], self.values[layer]

    def place(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        """As `KVCache.place`, of one real token for each row."""
        assert input_ids.shape[1] == 1, "a fixed cache takes a token at a time"
        assert attention_mask is None, "a fixed cache takes real tokens"
        positions = self.count[:, None].clone()
        self.real.index_fill_(1, self.slot, True)
        self.count.add_(1)
        return positions, self.real[:, None, None, :], False

    def reorder(self, index: Tensor) -> None:
        """Make row i what row `index[i]` was, int64 [R], in place."""
        for part in (*self.keys, *self.values, self.real, self.count):
            part.copy_(part.index_select(0, index))


class FixedDecoder(FixedState):
    """The state of a `DecoderStepper` with the memory of its images."""

    def __init__(self, decoder: TextDecoder, like: DecoderStepper, rows: int, room: int, *, moves: bool) -> None:
        super().__init__(rows, room, moves=moves, device=like.memory.keys[0].device)
        self.decoder = decoder
        self.cache = FixedKVCache(like.cache, rows, room, self.slot)
        memory, empty = like.memory, torch.zeros_like
        mask = None if memory.mask is None else torch.ones_like(memory.mask)
        self.memory = ImageMemory(tuple(map(empty, memory.keys)), tuple(map(empty, memory.values)), mask)

    def _read(self, stepper: Replayable) -> int:
        own = cast(DecoderStepper, stepper)
        pairs = zip((*self.memory.keys, *self.memory.values), (*own.memory.keys, *own.memory.values), strict=True)
        for kept, theirs in pairs:
            kept.copy_(theirs)
        if self.memory.mask is not None and own.memory.mask is not None:
            self.memory.mask.copy_(own.memory.mask)
        return self.cache.read(own.cache)

    def _forget(self) -> None:
        self.cache.clear()

    def _move(self, index: Tensor) -> None:
        self.cache.reorder(index)

    def _compute(self) -> Tensor:
        hidden = self.decoder.transformer(self.token[:, None], memory=self.memory, cache=self.cache)
        return self.decoder.head(hidden[:, 0])


class ReplayableDecoder(DecoderStepper):
    """A `DecoderStepper` whose steps `ReplayedStepper` can record."""

    @property
    def num_slots(self) -> int:
        """As `Replayable.num_slots`."""
        assert self.cache.mask is not None, "no prompt was read"
        return self.cache.mask.shape[1]

    def shape_with_room(self, rows: int, room: int) -> tuple[object, ...]:
        """As `Replayable.shape_with_room`."""
        memory, weights = self.memory, self.decoder.head.word.weight.data_ptr()
        return rows, room, tuple(memory.keys[0].shape), memory.mask is not None, memory.keys[0].dtype, weights

    def fixed(self, rows: int, room: int, *, moves: bool) -> FixedDecoder:
        """As `Replayable.fixed`."""
        return FixedDecoder(self.decoder, self, rows, room, moves=moves)


def _at_length(part: Tensor, rows: int, room: int) -> tuple[int, int, int, int]:
    """The shape of `part`, [R', H, S', d], with R rows and S slots."""
    return rows, part.shape[1], room, part.shape[3]
