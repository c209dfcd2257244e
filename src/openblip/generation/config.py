"""How text is written, read without importing torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from openblip.core.errors import UserError

__all__ = ["DecodeConfig"]


_LEAST = 1e-6
"""that scores are divided by"""


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
