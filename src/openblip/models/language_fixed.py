"""What `CausalStepper` keeps between two tokens, at its full length from the beginning (see `replay`).

Shapes: R rows, H heads, S slots of the cache, d width of a head.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from openblip.models.language import FrozenLanguage
from openblip.models.language_kinds import fixed_cache, grows_alike
from openblip.models.language_stepper import CausalStepper
from openblip.models.replay import FixedState, Replayable

__all__ = ["FixedLanguage", "ReplayableLanguage"]


class FixedLanguage(FixedState):
    """The state of a `CausalStepper`."""

    def __init__(self, like: CausalStepper, rows: int, room: int, *, moves: bool) -> None:
        assert like.mask is not None, "no prompt was read"
        super().__init__(rows, room, moves=moves, device=like.mask.device)
        self.language: FrozenLanguage = like.language
        self.cache = fixed_cache(like.cache, rows, room, self.slot)
        self.mask = torch.zeros(rows, room, dtype=torch.bool, device=like.mask.device)

    def _read(self, stepper: Replayable) -> int:
        own = cast(CausalStepper, stepper)
        assert own.mask is not None, "no prompt was read"
        used = own.mask.shape[1]
        self.mask[:, :used].copy_(own.mask)
        for kept, layer in zip(self.cache.layers, own.cache.layers, strict=True):
            kept.keys[:, :, :used].copy_(layer.keys)
            kept.values[:, :, :used].copy_(layer.values)
        return used

    def _forget(self) -> None:
        # Numbers that are no numbers would come through the mask.
        for part in self._parts():
            part.zero_()

    def _move(self, index: Tensor) -> None:
        for part in self._parts():
            part.copy_(part.index_select(0, index))

    def _compute(self) -> Tensor:
        self.mask.index_fill_(1, self.slot, True)
        inputs = {"attention_mask": self.mask, "cache": self.cache, "use_cache": True, "padded": True}
        embeds = self.language.embed(self.token[:, None])
        with torch.autocast(embeds.device.type, enabled=False):
            return self.language._logits_at(self.identity, {"inputs_embeds": embeds, **inputs})

    def _parts(self) -> list[Tensor]:
        return [*(part for layer in self.cache.layers for part in (layer.keys, layer.values)), self.mask]


class ReplayableLanguage(CausalStepper):
    """A `CausalStepper` whose steps `ReplayedStepper` can record."""

    @property
    def num_slots(self) -> int:
        """As `Replayable.num_slots`."""
        assert self.mask is not None, "no prompt was read"
        return self.mask.shape[1]

    def shape_with_room(self, rows: int, room: int) -> tuple[object, ...] | None:
        """As `Replayable.shape_with_room`; None for a model that keeps a state or a window that is too short, or
        whose quantized products choose by values."""
        assert self.mask is not None, "no prompt was read"
        if self.language.config.quantize != "none" or not grows_alike(self.cache, self.num_slots):
            return None
        reads = self.language._who_sees_whom(self.mask.new_ones(rows, room), 1, causal=False)
        if reads.ndim != 4 or not self.language._places:
            return None
        weights = self.language.hf.get_input_embeddings().weight
        return rows, room, weights.dtype, weights.data_ptr()

    def fixed(self, rows: int, room: int, *, moves: bool) -> FixedLanguage:
        """As `Replayable.fixed`."""
        return FixedLanguage(self, rows, room, moves=moves)
