"""Beam search, on all prompts and beams at once, with the reference's or today's `transformers`' scoring.

At each step every prompt has `num_beams` (K) open texts. The best 2K continuations are looked at (more
where several tokens end a text): among the best K, those that end join the finished texts, of which the K
best are kept; the first K that do not end stay open.

Two scorings give different texts now and then, and both are wanted:

- "reference": what the BLIP repository got from the `transformers` of its day (4.15). A text's sum of
  log-probabilities is divided by length ** length_penalty, where the length counts the prompt and does not
  count the end token. A prompt is done when its worst finished text is at least as good as the best
  continuation of this step, ended or not, at the length before it. At the last step all open texts join.
- "transformers": releases 4.50 and later. The length counts new tokens only, the end token included. Done
  is judged by the best text that is still open. At the last step only the best K continuations join.

Shapes: B prompts still open, K beams, C continuations looked at, N new tokens at most, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.generation.config import DecodeConfig
from openblip.generation.rules import History, apply_rules, suppressed_ids
from openblip.generation.types import Decoded, Stepper

__all__ = ["beam_search"]

MINUS_INFINITY = float("-inf")
# Beams 2..K start here, so that the first step takes K different tokens from the first beam. A number, not
# infinity, as in the reference: where the vocabulary is too small to fill K beams they still can be used.
UNUSED_BEAM = -1.0e9


@dataclass
class _Texts:
    """Texts of B prompts with what is known of them; `scores` sort them where they are finished."""

    ids: Tensor  # int64 [B, K, N]
    log_probs: Tensor  # float32 [B, K, N], of the model itself
    scores: Tensor  # float32 [B, K]; finished: after the length penalty, -inf where there is none
    lengths: Tensor  # int64 [B, K]

    def take(self, index: Tensor) -> _Texts:
        """For each prompt the texts named by `index` int64 [B, K']."""
        wide = index[:, :, None].expand(-1, -1, self.ids.shape[2])
        return _Texts(
            self.ids.gather(1, wide),
            self.log_probs.gather(1, wide),
            self.scores.gather(1, index),
            self.lengths.gather(1, index),
        )

    def prompts(self, index: Tensor) -> _Texts:
        """The texts of the prompts named by `index` int64 [B']."""
        return _Texts(self.ids[index], self.log_probs[index], self.scores[index], self.lengths[index])

    def extend(self, token: Tensor, log_prob: Tensor, scores: Tensor, step: int) -> _Texts:
        """The same texts with one more token [B, K] at place `step`."""
        ids, log_probs = self.ids.clone(), self.log_probs.clone()
        ids[:, :, step], log_probs[:, :, step] = token, log_prob
        return _Texts(ids, log_probs, scores, torch.full_like(self.lengths, step + 1))

    def merge(self, others: _Texts, scores: Tensor) -> _Texts:
        """The best K of these and of `others`, which count with `scores` (-inf: not at all)."""
        both = _cat([self, _Texts(others.ids, others.log_probs, scores, others.lengths)], dim=1)
        # Stable, so that of equal scores the text that was finished first stays.
        best = both.scores.argsort(dim=1, descending=True, stable=True)[:, : self.scores.shape[1]]
        return both.take(best)


def _cat(parts: list[_Texts], dim: int) -> _Texts:
    return _Texts(
        torch.cat([part.ids for part in parts], dim=dim),
        torch.cat([part.log_probs for part in parts], dim=dim),
        torch.cat([part.scores for part in parts], dim=dim),
        torch.cat([part.lengths for part in parts], dim=dim),
    )


@dataclass
class _Search:
    """What the search knows of the B prompts that are still open."""

    rows: Tensor  # int64 [B] the prompt's row in the input
    prompt_lengths: Tensor  # float32 [B, 1]
    running: _Texts
    finished: _Texts
    done: Tensor  # bool [B]

    def select(self, index: Tensor) -> _Search:
        return _Search(
            self.rows[index],
            self.prompt_lengths[index],
            self.running.prompts(index),
            self.finished.prompts(index),
            self.done[index],
        )


def beam_search(
    stepper: Stepper, logits: Tensor, history: History, config: DecodeConfig, *, eos: Tensor, pad_id: int
) -> Decoded:
    """Search from the scores `logits` [R, V] that followed the prompts in `history`; see `decode`."""
    num_beams, num_prompts = config.num_beams, logits.shape[0]
    spread = torch.arange(num_prompts, device=logits.device).repeat_interleave(num_beams)
    # From here on the stepper's rows are beams; those of one prompt share its image memory.
    stepper.reorder(spread)
    search = _begin(history, config, pad_id)
    logits, history = logits[spread], history.select(spread)
    suppressed = suppressed_ids(config, logits.device)
    closed: list[_Search] = []  # prompts that are done and were dropped from the batch

    for step in range(config.max_new_tokens):
        last = step + 1 == config.max_new_tokens
        token, beam = _advance(search, logits, history, step, config, eos, suppressed)
        num_alive = len(search.rows)
        num_open = 0 if last else int((~search.done).sum())  # the one host synchronisation of a step
        if num_open == 0:
            break
        # The stepper's row of a beam is prompt * K + beam.
        index = torch.arange(num_alive, device=beam.device)[:, None] * num_beams + beam  # [B, K]
        # Dropping copies what is left of cache and memory, so it waits until it halves the work.
        left: Tensor | None = None
        if num_open <= num_alive // 2:
            closed.append(search.select(search.done.nonzero()[:, 0]))
            left = (~search.done).nonzero()[:, 0]
            search, index, token = search.select(left), index[left], token[left]
        stepper.reorder(index.reshape(-1), left)
        history = history.select(index.reshape(-1)).append(token.reshape(-1))
        logits = stepper.step(token.reshape(-1))

    return _collect([*closed, search], config.num_sequences, eos)


def _begin(history: History, config: DecodeConfig, pad_id: int) -> _Search:
    """The search before its first step: K empty open texts for each prompt, of which one counts."""
    num_prompts, num_beams = history.tokens.shape[0], config.num_beams
    device = history.tokens.device
    shape = (num_prompts, num_beams, config.max_new_tokens)
    ids = torch.full(shape, pad_id, dtype=torch.int64, device=device)
    log_probs = torch.zeros(shape, device=device)
    lengths = torch.zeros(shape[:2], dtype=torch.int64, device=device)
    scores = torch.full(shape[:2], UNUSED_BEAM, device=device)
    scores[:, 0] = 0.0
    return _Search(
        rows=torch.arange(num_prompts, device=device),
        prompt_lengths=history.real.sum(dim=1, keepdim=True).float(),
        running=_Texts(ids, log_probs, scores, lengths),
        finished=_Texts(ids, log_probs, torch.full_like(scores, MINUS_INFINITY), lengths),
        done=torch.zeros(num_prompts, dtype=torch.bool, device=device),
    )


def _advance(
    search: _Search,
    logits: Tensor,
    history: History,
    step: int,
    config: DecodeConfig,
    eos: Tensor,
    suppressed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step of the search, in place; the tokens [B, K] of the open texts and the beams they came from."""
    num_prompts, num_beams = search.running.scores.shape
    vocab_size = logits.shape[1]
    last = step + 1 == config.max_new_tokens
    # float32: in half precision the sums of many tokens would tie texts that differ. The rules change which texts
    # win, not the log-probabilities that are reported.
    model_log_probs = torch.log_softmax(logits.float(), dim=-1)
    ruled = apply_rules(model_log_probs, history, step, config, eos, suppressed)
    totals = search.running.scores[:, :, None] + ruled.view(num_prompts, num_beams, vocab_size)

    # Each beam can end in as many ways as there are end tokens: so many spare continuations are needed.
    num_looked_at = min(max(2, 1 + len(eos)), vocab_size) * num_beams
    scores, flat = totals.view(num_prompts, -1).topk(num_looked_at, dim=1)
    beam, token = flat // vocab_size, flat % vocab_size
    log_prob = model_log_probs.view(num_prompts, -1).gather(1, flat)
    candidates = search.running.take(beam).extend(token, log_prob, scores, step)

    ends = torch.isin(token, eos)
    first = ends.to(torch.uint8).argsort(dim=1, stable=True)[:, :num_beams]  # the best K that continue
    search.running = candidates.take(first)
    among_best = torch.arange(num_looked_at, device=token.device) < num_beams
    if config.beam_scoring == "reference":
        _finish_reference(search, candidates, ends & among_best, step, last, config)
    else:
        _finish_transformers(search, candidates, (ends | last) & among_best, step, config)
    return token.gather(1, first), beam.gather(1, first)


def _finish_reference(
    search: _Search, candidates: _Texts, joins: Tensor, step: int, last: bool, config: DecodeConfig
) -> None:
    """Take in the texts that `joins` [B, C] marks, and judge which prompts are done, as 4.15 did."""
    length = search.prompt_lengths + step  # of the text without its end token, [B, 1]
    scores = candidates.scores / length**config.length_penalty
    joins = joins & ~search.done[:, None]
    search.finished = search.finished.merge(candidates, scores.masked_fill(~joins, MINUS_INFINITY))
    worst = search.finished.scores[:, -1]
    full = worst > MINUS_INFINITY
    search.done = search.done | (full if config.early_stopping else full & (worst >= scores[:, 0]))
    if last:
        # Open texts have no end token, so all of their tokens count.
        scores = search.running.scores / (length + 1) ** config.length_penalty
        scores = scores.masked_fill(search.done[:, None], MINUS_INFINITY)
        search.finished = search.finished.merge(search.running, scores)


def _finish_transformers(
    search: _Search, candidates: _Texts, joins: Tensor, step: int, config: DecodeConfig
) -> None:
    """The same as current `transformers` do."""
    divisor = float(step + 1) ** config.length_penalty
    joins = joins & ~search.done[:, None]
    scores = (candidates.scores / divisor).masked_fill(~joins, MINUS_INFINITY)
    search.finished = search.finished.merge(candidates, scores)
    worst = search.finished.scores[:, -1]
    full = worst > MINUS_INFINITY
    best_open = search.running.scores[:, 0] / divisor
    search.done = search.done | (full if config.early_stopping else full & (worst >= best_open))


def _collect(searches: list[_Search], num_sequences: int, eos: Tensor) -> Decoded:
    """The finished texts of all prompts in the order of the input."""
    order = torch.cat([search.rows for search in searches]).argsort()
    texts = _cat([search.finished for search in searches], dim=0).prompts(order)
    num_prompts, _, max_new = texts.ids.shape
    lengths = texts.lengths[:, :num_sequences].reshape(-1)
    longest = int(lengths.max())
    ids = texts.ids[:, :num_sequences].reshape(-1, max_new)
    # A prompt without any finished text has length 0: `ended` masks what is gathered for it.
    final = ids.gather(1, (lengths[:, None] - 1).clamp(min=0))[:, 0]
    return Decoded(
        ids=ids[:, :longest],
        lengths=lengths,
        token_log_probs=texts.log_probs[:, :num_sequences].reshape(-1, max_new)[:, :longest],
        scores=texts.scores[:, :num_sequences].reshape(-1),
        rows=torch.arange(num_prompts, device=ids.device).repeat_interleave(num_sequences),
        ended=torch.isin(final, eos) & (lengths > 0),
    )
