"""A frozen language model that writes behind soft prompts, one token at a time (see `generation`'s `Stepper`).

Shapes: R rows, Q soft prompts of width L, T text tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.models.language import FrozenLanguage
from openblip.models.language_kinds import empty_caches, encoded

__all__ = ["CausalStepper", "Seq2SeqStepper"]


class CausalStepper:
    """Writes with a decoder behind soft prompts, one token at a time.

    Args:
        soft: [R, Q, L].
        before: as in `FrozenLanguage.decoder_logits`.
    """

    def __init__(self, language: FrozenLanguage, soft: Tensor, *, before: int | None = None) -> None:
        self.language, self.soft, self.before = language, soft, before
        self.vocab_size = language.vocab_size
        self.max_length = None if language.max_length is None else language.max_length - soft.shape[1]
        self.cache = language.new_cache()
        self.mask: Tensor | None = None
        self.padded = True

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Read prompts [R, T], padded on either side; scores [R, V] of the next token."""
        # Padding goes to the right, where the first tokens are each row's own, and then before everything.
        order = attention_mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        ids, mask = prompt_ids.gather(1, order), attention_mask.gather(1, order)
        embeds, mask = self.language._join(self.soft, ids, mask, self.before)
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        self.mask = mask.gather(1, order)
        # Looked up once: no step adds padding, nor does the choice of rows.
        self.padded = not bool(mask.all())
        return self._read(embeds.gather(1, order[..., None].expand_as(embeds)))

    def step(self, token: Tensor) -> Tensor:
        """Read one more token [R]; scores [R, V] of the next."""
        assert self.mask is not None
        self.mask = F.pad(self.mask, (0, 1), value=True)
        return self._read(self.language.embed(token[:, None]))

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        """Make row i what row `index[i]` was; no row shares anything with others of its prompt."""
        assert self.mask is not None
        self.cache.reorder_cache(index)
        self.mask = self.mask[index]

    def _read(self, embeds: Tensor) -> Tensor:
        assert self.mask is not None
        rows, length = embeds.shape[:2]
        last = torch.arange(1, rows + 1, device=embeds.device) * length - 1
        inputs = {"inputs_embeds": embeds, "attention_mask": self.mask, "cache": self.cache, "use_cache": True}
        inputs["padded"] = self.padded
        with torch.autocast(embeds.device.type, enabled=False):
            return self.language._logits_at(last, inputs)


class Seq2SeqStepper:
    """Writes with an encoder-decoder from what its encoder read, one token at a time.

    Args:
        states: [R, S, L'] of `FrozenLanguage.encode`; mask bool [R, S].
    """

    def __init__(self, language: FrozenLanguage, states: Tensor, mask: Tensor) -> None:
        self.language, self.states, self.mask = language, states, mask
        self.vocab_size = language.vocab_size
        self.max_length = language.max_length
        self.cache: Any = empty_caches()
        self.padded = not bool(mask.all())

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Read the decoder's first tokens [R, T], all real; scores [R, V] of the next."""
        assert bool(attention_mask.all()), "a decoder starts from whole rows"
        return self._read(prompt_ids)

    def step(self, token: Tensor) -> Tensor:
        """Read one more token [R]; scores [R, V] of the next."""
        return self._read(token[:, None])

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        """As `CausalStepper.reorder`."""
        self.cache.reorder_cache(index)
        self.states, self.mask = self.states[index], self.mask[index]

    def _read(self, ids: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, enabled=False):
            out = self.language._run(
                encoder_outputs=encoded(self.states),
                attention_mask=self.mask,
                decoder_input_ids=ids,
                cache=self.cache,
                use_cache=True,
                padded=self.padded,
            )
        return out.logits[:, -1]
