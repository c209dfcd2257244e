"""What decoding speaks of: who can write (`Stepper`), how (`DecodeConfig`), what came out (`Decoded`).

Apart from the search itself, so that models can be written against the protocol and configurations be read
without it.

Shapes: R prompts (rows), T prompt tokens, V vocabulary, N new tokens at most, S = R * num_sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from openblip.core.errors import UserError

__all__ = ["DecodeConfig", "Decoded", "Stepper", "Watch"]

_LEAST = 1e-6
"""that scores are divided by"""
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


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How text is written. The defaults are plain greedy decoding."""

    num_beams: int = 1
    """Beams of the beam search; 1 is greedy decoding (or sampling)."""
    sample: bool = False
    """Draw tokens at random instead of taking the best; excludes beams."""
    num_sequences: int = 1
    """Texts for each prompt: the best beams, or independent samples."""
    max_new_tokens: int = 30
    """Most tokens written after the prompt, the end token included."""
    min_new_tokens: int = 0
    """Tokens written before the end token may appear."""
    temperature: float = 1.0
    """Sampling only: scores are divided by it."""
    top_k: int = 0
    """Sampling only: draw among the k best tokens; 0 is all."""
    top_p: float = 1.0
    """Sampling only: draw among the best tokens that reach this probability (nucleus); 1 is all."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and of the text so far less likely."""
    no_repeat_ngram: int = 0
    """No sequence of so many tokens occurs twice; 0 allows all."""
    suppress_ids: tuple[int, ...] = ()
    """Tokens that are never written."""
    length_penalty: float = 1.0
    """Beam search: a text's log-probability is divided by length ** length_penalty to compare texts."""
    early_stopping: bool = False
    """Beam search: stop at `num_beams` finished texts, even if one could still be better."""
    beam_scoring: Literal["reference", "transformers"] = "reference"
    """Which length the penalty sees and when the search ends; see `openblip.generation.beam`."""
    seed: int = 0
    """Sampling: the same seed and row key give the same text."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_beams", 1),
            ("num_sequences", 1),
            ("max_new_tokens", 1),
            ("min_new_tokens", 0),
            ("top_k", 0),
            ("no_repeat_ngram", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("temperature", "repetition_penalty"):
            # Scores in float32 are divided by it: less would give no numbers.
            if not _LEAST <= getattr(self, name) < float("inf"):
                raise UserError(
                    f"{name} is {getattr(self, name)}; it must be a number from {_LEAST} on (1: no effect)"
                )
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty is {self.length_penalty}; it must be a number (0: no effect)")
        if any(number < 0 for number in self.suppress_ids):
            raise UserError(f"suppress_ids has {min(self.suppress_ids)}; the ids of tokens begin at 0")
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; it must fit into 64 bits")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 keeps all tokens)")
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}; "
                f"lower the first or raise the second"
            )
        if self.sample and self.num_beams > 1:
            raise UserError(f"num_beams {self.num_beams} excludes sampling; set num_beams to 1 or sample to False")
        if not self.sample:
            for name, neutral in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)):
                if getattr(self, name) != neutral:
                    raise UserError(f"{name} {getattr(self, name)} needs sampling; set sample to True")
            if self.num_sequences > self.num_beams:
                raise UserError(
                    f"num_sequences {self.num_sequences} is more than num_beams {self.num_beams}; "
                    f"raise num_beams or set sample to True"
                )
        if self.beam_scoring not in ("reference", "transformers"):
            raise UserError(f'beam_scoring is "{self.beam_scoring}"; it is "reference" or "transformers"')


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
