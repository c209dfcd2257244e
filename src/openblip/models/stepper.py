"""A decoder over an image memory that writes one token at a time, keeping keys and values of the text so far.

It fits `generation`'s `Stepper` protocol. The image memory is shared by all rows of an image (beams,
samples): it is never copied, and only narrowed when an image is done.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.models.layers import ImageMemory, KVCache
from openblip.models.qformer import QFormer
from openblip.models.text import TextDecoder

__all__ = ["DecoderStepper", "QFormerStepper"]


class DecoderStepper:
    """Steps a `TextDecoder` over the memory of B images.

    Args:
        memory: of B images; prompts come one for each image, rows of one image stand together ever after.
    """

    def __init__(self, decoder: TextDecoder, memory: ImageMemory) -> None:
        self.decoder = decoder
        self.memory = memory
        self.cache = KVCache()
        self.vocab_size = decoder.transformer.config.vocab_size
        self.max_length: int | None = decoder.transformer.config.max_positions

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Read prompts int64 [B, T], one for each image; logits [B, V] after each one's last real token."""
        assert prompt_ids.shape[0] == self.memory.batch_size, "one prompt for each image"
        ids, mask = _pad_right(prompt_ids, attention_mask)
        # Without padding neither this pass nor any step needs a mask.
        full = bool(mask.all())
        hidden = self.decoder.transformer(ids, None if full else mask, memory=self.memory, cache=self.cache)
        last = mask.sum(1) - 1
        # The head multiplies by the whole vocabulary, so it runs at each row's last position only.
        return self.decoder.head(hidden[torch.arange(len(ids), device=ids.device), last])

    def step(self, token: Tensor) -> Tensor:
        """Read one more token int64 [R]; logits [R, V] of the next."""
        hidden = self.decoder.transformer(token[:, None], memory=self.memory, cache=self.cache)
        return self.decoder.head(hidden[:, 0])

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        """Make row i what row `index[i]` was; int64 [R'], may repeat rows or drop whole images.

        Args:
            left: int64 [B'], the images that are left; None: all, and nothing of the memory is copied.
        """
        self.cache.reorder(index)
        if left is not None:
            self.memory = self.memory.select(left)


def _pad_right(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding to the right, where causal attention never looks; order of real tokens is kept."""
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    width = int(mask.sum(1).max())
    return ids.gather(1, order)[:, :width], mask.gather(1, order)[:, :width]


class QFormerStepper:
    """Steps the Q-Former's text side over the memory of B images: its queries read them once, at the start."""

    def __init__(self, qformer: QFormer, memory: ImageMemory) -> None:
        assert qformer.head is not None, "a Q-Former without language head cannot write"
        self.qformer, self.memory, self.head = qformer, memory, qformer.head
        self.cache = KVCache()
        self.vocab_size = self.head.word.num_embeddings
        self.max_length: int | None = qformer.config.max_positions

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As `DecoderStepper.start`."""
        self.qformer.read_image(self.memory, self.cache)
        ids, mask = _pad_right(prompt_ids, attention_mask)
        hidden = self.qformer.write(ids, None if bool(mask.all()) else mask, self.cache, grow=True)
        return self.head(hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1])

    def step(self, token: Tensor) -> Tensor:
        """As `DecoderStepper.step`."""
        return self.head(self.qformer.write(token[:, None], None, self.cache, grow=True)[:, 0])

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        """As `DecoderStepper.reorder`; the queries' keys and values go with the rows."""
        self.cache.reorder(index)
