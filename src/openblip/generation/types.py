"""What decoding speaks of: who can write (`Stepper`) and what came out (`Decoded`).

Apart from the search itself, so that models can be written against the protocol.

Shapes: R prompts (rows), T prompt tokens, V vocabulary, N new tokens at most, S = R * num_sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Decoded", "Stepper", "Watch"]

Watch = Callable[[Tensor, Tensor], None]
"""Called after each step of greedy decoding or sampling with the texts that were still open, int64 [S'], rows of
`Decoded`, and the token that each of them has got, int64 [S']. A beam search, which may still drop a token, calls
it never."""


class Stepper(Protocol):
    """A text model that writes one token at a time and remembers what it has read.

    Rows are sequences. Those of one prompt are contiguous and, after any `reorder`, equally many for each
    prompt that is left, so a stepper can share one image memory among them by a reshape.
    """

    vocab_size: int
    max_length: int | None
    """Tokens (prompt and new) that the model has positions for; None where there is no limit."""

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Read prompts int64 [R, T] (mask bool [R, T], padding on either side) and fill the cache.

        Returns the scores [R, V] of the token that follows each row's last real token.
        """

    def step(self, token: Tensor) -> Tensor:
        """Read one more token int64 [S] for each row; scores [S, V] of the next."""

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        """Make row i what row `index[i]` was; int64 [S'], which may repeat rows or drop whole prompts.

        `left` int64 [R'], rising, names the prompts that are left among those before; None: all of them, which need
        not be looked up on the device.
        """


@dataclass(frozen=True)
class Decoded:
    """Texts written for R prompts: S = R * n rows, those of one prompt together, the best first (beams)."""

    ids: Tensor
    """int64 [S, L] new tokens, the end token included where it came, then padding."""
    lengths: Tensor
    """int64 [S] new tokens, the end token included."""
    token_log_probs: Tensor
    """float32 [S, L] log-probability of every token under the model itself, before any rule; 0 at padding."""
    scores: Tensor
    """float32 [S] what the search compared: for beams after rules and length penalty, else `log_probs`."""
    rows: Tensor
    """int64 [S] the prompt (row of the input, so the image) that a text belongs to."""
    ended: Tensor
    """bool [S] whether the end token came; False where the text was cut at max_new_tokens."""

    @property
    def log_probs(self) -> Tensor:
        """float32 [S] log-probability of the whole text under the model, the end token included."""
        return self.token_log_probs.sum(dim=1)

    def texts(self) -> Iterator[tuple[int, list[int], float, bool]]:
        """Each text: its prompt's row, its ids without padding, its log-probability, whether the end token came."""
        columns = (self.rows, self.ids, self.lengths, self.log_probs, self.ended)
        for row, ids, length, log_prob, ended in zip(*(column.tolist() for column in columns), strict=True):
            yield row, ids[:length], log_prob, ended

    def with_prompts(self, prompt_ids: Tensor, attention_mask: Tensor | None = None, *, pad_id: int = 0) -> Tensor:
        """int64 [S, T + L] prompt and text of each row with no gap between them, padded on the right."""
        if attention_mask is None:
            attention_mask = torch.ones_like(prompt_ids, dtype=torch.bool)
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)
        ids = torch.cat([prompt_ids[self.rows], self.ids], dim=1)
        real = torch.cat([attention_mask[self.rows], steps < self.lengths[:, None]], dim=1)
        # Real tokens sort first and keep their order, so every gap moves to the right end.
        order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
        ids = ids.masked_fill(~real, pad_id).gather(1, order)
        return ids[:, : int(real.sum(dim=1).max())] if len(ids) else ids
