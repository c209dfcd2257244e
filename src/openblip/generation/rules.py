"""Rules that reshape next-token scores before a token is chosen, and the seeded draw itself.

Every rule is a pure function of tensors, works on all rows at once and never asks the device for a value,
so a decoding step stays free of host synchronisation. The order in which they are applied (repetition
penalty, n-grams, minimum length, suppressed tokens, then temperature, top-k, top-p) is the order of
`transformers`, so that equal settings give equal ids.

Shapes: S sequences, V vocabulary, L tokens so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.generation.config import DecodeConfig

__all__ = [
    "History",
    "apply_rules",
    "draw",
    "forbid",
    "forbid_repeated_ngrams",
    "penalise_repetition",
    "row_uniforms",
    "suppressed_ids",
]

MINUS_INFINITY = float("-inf")
# On a CPU a full sort of 30k scores costs more than a small model's step; nucleus sampling nearly always
# needs only the head of the distribution, so that is tried first.
SORTED_HEAD = 1024


@dataclass
class History:
    """The tokens of each sequence so far: prompts aligned to the right, new tokens after them.

    tokens [S, L] int64; real [S, L] bool, False where a shorter prompt was padded.
    """

    tokens: Tensor
    real: Tensor

    @classmethod
    def from_prompts(cls, prompt_ids: Tensor, attention_mask: Tensor) -> History:
        """Collect the real tokens of every row at the right end, whichever side the padding was on."""
        # False sorts before True, and a stable sort keeps the order of the real tokens.
        order = attention_mask.to(torch.uint8).argsort(dim=1, stable=True)
        return cls(prompt_ids.gather(1, order), attention_mask.gather(1, order))

    def select(self, index: Tensor) -> History:
        """The rows named by `index` int64 [S']."""
        return History(self.tokens[index], self.real[index])

    def append(self, token: Tensor) -> History:
        """One more token int64 [S] for each row."""
        token = token[:, None]
        return History(
            torch.cat([self.tokens, token], dim=1),
            torch.cat([self.real, torch.ones_like(token, dtype=torch.bool)], dim=1),
        )


def suppressed_ids(config: DecodeConfig, device: torch.device) -> Tensor | None:
    """`suppress_ids` int64 on the device, to be made once for all steps: each transfer would wait for it."""
    return torch.tensor(config.suppress_ids, device=device) if config.suppress_ids else None


def apply_rules(
    scores: Tensor, history: History, step: int, config: DecodeConfig, eos: Tensor, suppressed: Tensor | None
) -> Tensor:
    """The rules that hold for every way of decoding, in the order of `transformers`; scores [S, V].

    Args:
        suppressed: of `suppressed_ids`.
    """
    if config.repetition_penalty != 1.0:
        scores = penalise_repetition(scores, history, config.repetition_penalty)
    if config.no_repeat_ngram:
        scores = forbid_repeated_ngrams(scores, history, config.no_repeat_ngram)
    if step < config.min_new_tokens:
        scores = forbid(scores, eos)
    if suppressed is not None:
        scores = forbid(scores, suppressed)
    return scores


def penalise_repetition(scores: Tensor, history: History, penalty: float) -> Tensor:
    """Make tokens that already occurred less likely: positive scores are divided, negative multiplied.

    The penalty of CTRL (Keskar et al., 2019, section 4.1) with the sign handled as in `transformers`;
    prompt tokens count, padding does not. A token is penalised once, however often it occurred.
    """
    # Padding columns repeat the row's last real token: every duplicate then writes the same value.
    ids = torch.where(history.real, history.tokens, history.tokens[:, -1:])
    values = scores.gather(1, ids)
    values = torch.where(values < 0, values * penalty, values / penalty)
    return scores.scatter(1, ids, values)


def forbid_repeated_ngrams(scores: Tensor, history: History, size: int) -> Tensor:
    """Forbid every token that would complete an n-gram of `size` tokens which the row already holds."""
    length = history.tokens.shape[1]
    if length < size:
        return scores
    windows = history.tokens.unfold(1, size, 1)  # [S, L-size+1, size]
    # A window that reaches into padding is no n-gram of the row.
    whole = history.real.unfold(1, size, 1).all(dim=-1)
    tail = history.tokens[:, length - size + 1 :]
    seen = (windows[..., :-1] == tail[:, None, :]).all(dim=-1) & whole
    vocab_size = scores.shape[1]
    # Windows that do not match write into one column past the vocabulary.
    target = torch.where(seen, windows[..., -1], vocab_size)
    banned = torch.zeros(scores.shape[0], vocab_size + 1, dtype=torch.bool, device=scores.device)
    banned.scatter_(1, target, True)
    return scores.masked_fill(banned[:, :-1], MINUS_INFINITY)


def forbid(scores: Tensor, token_ids: Tensor) -> Tensor:
    """Give the tokens of `token_ids` int64 [N] no chance in any row."""
    return scores.index_fill(1, token_ids, MINUS_INFINITY)


def draw(scores: Tensor, uniforms: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Draw one token for each row from the truncated distribution; int64 [S].

    `top_k` keeps the k best tokens (0: all); `top_p` keeps the smallest set of best tokens whose
    probability reaches p (nucleus sampling, Holtzman et al., ICLR 2020, section 3.1). The draw inverts the
    cumulative distribution at `uniforms` float32 [S] in [0, 1), so it depends on the row alone.
    """
    scores = scores / temperature
    if not top_k and top_p >= 1.0:
        return _invert(torch.softmax(scores, dim=-1), uniforms)
    if top_k:
        values, order = scores.topk(min(top_k, scores.shape[1]), dim=-1)
        probabilities = torch.softmax(values, dim=-1)
    else:
        probabilities, order = _sorted_probabilities(scores, top_p)
    # A token is kept while those before it fall short of top_p, so the token that crosses it is kept too.
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = before < top_p
    kept[:, 0] = True
    place = _invert(probabilities * kept, uniforms)
    return order.gather(1, place[:, None])[:, 0]


def _sorted_probabilities(scores: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities from the largest down, and their tokens; only a head of them when that is enough."""
    total = scores.logsumexp(dim=-1, keepdim=True)
    if scores.device.type == "cpu" and scores.shape[1] > 4 * SORTED_HEAD:
        values, order = scores.topk(SORTED_HEAD, dim=-1)
        probabilities = (values - total).exp()
        flat = ~(probabilities.sum(dim=-1) >= top_p)
        if not bool(flat.any()):
            return probabilities, order
        # Each row by itself: the two order equal scores differently, and a row must not depend on its neighbours.
        rest = (0, scores.shape[1] - SORTED_HEAD)
        probabilities, order = F.pad(probabilities, rest), F.pad(order, rest)
        values, order[flat] = scores[flat].sort(dim=-1, descending=True)
        probabilities[flat] = (values - total[flat]).exp()
        return probabilities, order
    values, order = scores.sort(dim=-1, descending=True)
    return (values - total).exp(), order


def _invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """First index whose cumulative probability exceeds the uniform number; never one of probability 0."""
    cumulative = probabilities.cumsum(dim=-1)
    # For u < 1 in float32, u * total rounds to less than total: an index inside the row is always found.
    threshold = uniforms[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, threshold, right=True).clamp(max=probabilities.shape[1] - 1)
    # A parallel scan need not be monotone to the last bit; fall back on the best token then.
    possible = probabilities.gather(1, index) > 0
    return torch.where(possible, index, probabilities.argmax(dim=-1, keepdim=True))[:, 0]


def row_uniforms(seed: int, keys: Tensor, num_sequences: int, num_steps: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 [R * num_sequences, num_steps], sequences of one row together.

    Each number is a hash of (seed, key of the row, number of the sequence, step), so what is drawn for a
    row depends neither on its neighbours in the batch, nor on the device, nor on the order of work. The
    hash chains the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    base = _mix(torch.tensor(seed, dtype=torch.int64))
    rows = _mix(base ^ keys.to("cpu", torch.int64))
    sequences = _mix(rows[:, None] + torch.arange(1, num_sequences + 1))
    steps = _mix(sequences.reshape(-1, 1) + torch.arange(1, num_steps + 1))
    # The upper 24 bits: float32 holds them exactly, so no number rounds up to 1.
    return (_shift_right(steps, 40).to(torch.float32) / 2.0**24).to(keys.device)


def _shift_right(value: Tensor, by: int) -> Tensor:
    """Logical right shift of int64 (torch shifts copies of the sign bit in)."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _mix(value: Tensor) -> Tensor:
    """SplitMix64: add the golden-ratio constant, then avalanche; int64 arithmetic wraps modulo 2**64."""
    value = value + (0x9E3779B97F4A7C15 - 2**64)
    value = (value ^ _shift_right(value, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    value = (value ^ _shift_right(value, 27)) * (0x94D049BB133111EB - 2**64)
    return value ^ _shift_right(value, 31)
