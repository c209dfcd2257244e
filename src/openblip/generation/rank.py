"""How likely a model finds given texts: log-likelihoods, and the ranking of candidates by them.

Used for the log-likelihood of a caption, for choosing among captions, and for VQA's closed answers. What
reads is a `ReadLogits` callable over an image memory (or question states); rows of one prompt stand
together, so a memory is shared by all candidates and never copied.

    def read(input_ids, attention_mask, rows):          # candidates of the prompts `rows`
        return decoder(input_ids, attention_mask, memory=memory.select(rows))

    ranking = rank_two_step(read, answer_ids, answer_mask, num_rows=len(questions), keep=128)
    ranking.indices[:, 0], ranking.probabilities[:, 0]

With a `ReadTree` besides, the tokens that candidates of a prompt share at their beginning are computed once.

Shapes: R prompts (images or questions), C candidates, K kept, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.generation.prefixes import Prefixes, ReadTree

__all__ = ["Ranking", "ReadLogits", "log_likelihood", "rank_all", "rank_two_step", "token_log_probs"]


_MOST_NODES = 1024
"""of the trees that are read at once: each node is compared with each of its tree"""
_MOST_TOKENS = 8192
"""of texts that are read at once, padding included: each has logits over the vocabulary, 1 GB for BERT's"""


class ReadLogits(Protocol):
    """A decoder that reads whole texts at once."""

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
        """Next-token logits [P * n, T, V] for texts int64 [P * n, T] (mask bool, padding on the right).

        `rows` int64 [P], rising, names the prompts; their n texts each stand together.
        """


@dataclass(frozen=True)
class Ranking:
    """Candidates of each prompt, the most likely first."""

    indices: Tensor
    """int64 [R, K], indices into the candidates."""
    log_probs: Tensor
    """float32 [R, K], log-likelihood of the candidate's tokens after the prompt."""

    @property
    def probabilities(self) -> Tensor:
        """float32 [R, K]: how the kept candidates share out certainty, softmax of the log-likelihoods."""
        return torch.softmax(self.log_probs, dim=1)


def token_log_probs(logits: Tensor, input_ids: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Log-probability of every token after the first, float32 [..., T - 1].

    logits [..., T, V] where place t speaks of token t + 1. With `label_smoothing` e it is the negative of
    the smoothed cross-entropy, (1 - e) * log p(token) + e * mean of log p over the vocabulary: BLIP's VQA
    ranks answers by its training loss, smoothing included.
    """
    logits = logits[..., :-1, :].float()
    normaliser = logits.logsumexp(dim=-1)
    chosen = logits.gather(-1, input_ids[..., 1:, None])[..., 0] - normaliser
    if label_smoothing:
        chosen = (1 - label_smoothing) * chosen + label_smoothing * (logits.mean(dim=-1) - normaliser)
    return chosen


@torch.no_grad()
def log_likelihood(
    read: ReadLogits,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    num_prompt_tokens: int = 1,
    max_rows: int = 256,
    label_smoothing: float = 0.0,
    read_tree: ReadTree | None = None,
) -> Tensor:
    """Log-likelihood float32 [R, C] of C texts for each of R prompts.

    input_ids int64 [R, C, T] (mask bool, padding on the right). The first `num_prompt_tokens` tokens of a
    text (the start token and a prompt) are read, not scored. At most `max_rows` texts are read at once, fewer long
    ones; the result does not depend on it. With `read_tree`, which is for short texts, it reads in place of `read`
    and what texts of a prompt share at their beginning is read once.
    """
    assert input_ids.ndim == 3, "input_ids must be [R, C, T]"
    assert input_ids.shape == attention_mask.shape, "attention_mask must have the shape of input_ids"
    if max_rows < 1:
        raise UserError(f"max_rows is {max_rows}; it must be at least 1")
    num_prompts, num_texts, width = input_ids.shape
    if num_prompts == 0 or num_texts == 0 or width < 2:
        return torch.zeros(num_prompts, num_texts, device=input_ids.device)
    # Texts of like length share a chunk, which is then cut to its longest: padding is not computed. In trees texts
    # that begin alike do.
    if read_tree is None:
        order = attention_mask.sum(dim=2).argsort(dim=1, descending=True, stable=True)
    else:
        order = _alphabetical(input_ids)
    texts = torch.arange(num_prompts, device=input_ids.device)[:, None]
    input_ids, attention_mask = input_ids[texts, order], attention_mask[texts, order]

    lengths = attention_mask.sum(dim=2).clamp_min(1).cpu()
    padded, most = read_tree is None, _MOST_TOKENS if read_tree is None else _MOST_NODES
    whole = int(lengths.max()) * num_texts if padded else int(lengths.sum(dim=1).max())
    texts_at_once = min(num_texts, max_rows)
    prompts_at_once = max(1, min(max_rows // texts_at_once, most // whole))
    sums = torch.empty(num_prompts, num_texts, device=input_ids.device)
    for prompt in range(0, num_prompts, prompts_at_once):
        longest_of = lengths[prompt : prompt + prompts_at_once].amax(dim=0).tolist()
        share = most // min(prompts_at_once, num_prompts - prompt)
        for columns in _chunks(longest_of, texts_at_once, share, padded=padded):
            block = slice(prompt, prompt + prompts_at_once), columns
            mask = attention_mask[block]
            # At least two tokens, so that there is a prediction to slice where all texts are empty.
            longest = max(2, int(mask.sum(dim=2).max()))
            ids, mask = input_ids[block][..., :longest], mask[..., :longest]
            rows = torch.arange(prompt, prompt + ids.shape[0], device=ids.device)
            if read_tree is None:
                logits = read(ids.flatten(0, 1), mask.flatten(0, 1), rows)
                values = token_log_probs(logits, ids.flatten(0, 1), label_smoothing=label_smoothing)
                values = values.view(*ids.shape[:2], -1)
            else:
                values = _in_trees(read_tree, ids, mask, rows, label_smoothing)
            scored = mask[..., 1:].clone()
            # Column t scores token t + 1, so a prompt of p tokens covers p - 1 columns.
            scored[..., : num_prompt_tokens - 1] = False
            sums[block] = values.masked_fill(~scored, 0.0).sum(dim=2)
    # Back to the order in which the texts were given.
    return torch.empty_like(sums).scatter_(1, order, sums)


def _chunks(lengths: Sequence[int], limit: int, most: int, *, padded: bool) -> Iterator[slice]:
    """At most `limit` neighbours of `most` tokens together, or one; `padded`: each as long as the longest."""
    start = longest = total = 0
    for end, length in enumerate(lengths):
        longest, total = max(longest, length), total + length
        size = longest * (end + 1 - start) if padded else total
        if end > start and (end - start == limit or size > most):
            yield slice(start, end)
            start, longest, total = end, length, length
    yield slice(start, len(lengths))


def _alphabetical(input_ids: Tensor) -> Tensor:
    """The order int64 [R, C] of texts [R, C, T] by their tokens, the first one first."""
    rows, texts, width = input_ids.shape
    order = torch.arange(texts, device=input_ids.device).expand(rows, -1)
    for place in reversed(range(width)):
        order = order.gather(1, input_ids[:, :, place].gather(1, order).argsort(dim=1, stable=True))
    return order


def _in_trees(read: ReadTree, ids: Tensor, mask: Tensor, rows: Tensor, label_smoothing: float) -> Tensor:
    """As `token_log_probs`, float32 [P, n, T - 1], of texts int64 [P, n, T]."""
    tree = Prefixes.of(ids, mask)
    logits = read(tree.input_ids, tree.positions, tree.mask, rows).float()
    normaliser = logits.logsumexp(dim=-1)  # [P, M]
    row = torch.arange(len(ids), device=ids.device)[:, None, None]
    own = normaliser[row, tree.places]
    chosen = logits[row, tree.places, ids[..., 1:]] - own
    if label_smoothing:
        mean = logits.mean(dim=-1)[row, tree.places] - own
        chosen = (1 - label_smoothing) * chosen + label_smoothing * mean
    return chosen


def rank_all(
    read: ReadLogits,
    candidate_ids: Tensor,
    candidate_mask: Tensor,
    *,
    num_rows: int,
    num_prompt_tokens: int = 1,
    max_rows: int = 256,
    label_smoothing: float = 0.0,
    read_tree: ReadTree | None = None,
) -> Ranking:
    """Rank all candidates int64 [C, T] for each of `num_rows` prompts by their full log-likelihood."""
    every = torch.arange(len(candidate_ids), device=candidate_ids.device).expand(num_rows, -1)
    options: _Options = {"num_prompt_tokens": num_prompt_tokens, "max_rows": max_rows}
    options |= {"label_smoothing": label_smoothing, "read_tree": read_tree}
    return _rank(read, candidate_ids, candidate_mask, every, options)


@torch.no_grad()
def rank_two_step(
    read: ReadLogits,
    candidate_ids: Tensor,
    candidate_mask: Tensor,
    *,
    num_rows: int,
    keep: int,
    num_prompt_tokens: int = 1,
    max_rows: int = 256,
    label_smoothing: float = 0.0,
    read_tree: ReadTree | None = None,
) -> Ranking:
    """Keep the `keep` candidates whose first token is most likely, then rank these by log-likelihood.

    BLIP's inference for VQA (Li et al., 2022, appendix; k = 128 of 3,128 answers). All candidates begin
    with the same `num_prompt_tokens` tokens. Of candidates that begin alike the earlier are kept, so the
    result does not depend on the device.
    """
    if keep < 1:
        raise UserError(f"keep is {keep}; at least 1 candidate must be kept")
    assert num_rows == 0 or len(candidate_ids) > 0, "there must be candidates to rank"
    prompt = candidate_ids[:1, :num_prompt_tokens]
    assert bool((candidate_ids[:, :num_prompt_tokens] == prompt).all()), "candidates must share their prompt"
    first_tokens = candidate_ids[:, num_prompt_tokens]
    kept = []
    for start in range(0, num_rows, max_rows):
        rows = torch.arange(start, min(num_rows, start + max_rows), device=candidate_ids.device)
        ids = prompt.expand(len(rows), -1)
        # The shared prompt is read alone: its last position predicts the first token of every candidate at once.
        logits = read(ids, torch.ones_like(ids, dtype=torch.bool), rows)[:, -1].float()
        likely = logits[:, first_tokens].argsort(dim=1, descending=True, stable=True)
        kept.append(likely[:, :keep])
    if not kept:
        kept = [candidate_ids.new_zeros(0, min(keep, len(candidate_ids)))]
    options: _Options = {"num_prompt_tokens": num_prompt_tokens, "max_rows": max_rows}
    options |= {"label_smoothing": label_smoothing, "read_tree": read_tree}
    return _rank(read, candidate_ids, candidate_mask, torch.cat(kept), options)


class _Options(TypedDict, total=False):
    """Of `log_likelihood`."""

    num_prompt_tokens: int
    max_rows: int
    label_smoothing: float
    read_tree: ReadTree | None


def _rank(
    read: ReadLogits, candidate_ids: Tensor, candidate_mask: Tensor, indices: Tensor, options: _Options
) -> Ranking:
    """Order the candidates `indices` int64 [R, K] of each prompt."""
    log_probs = log_likelihood(read, candidate_ids[indices], candidate_mask[indices], **options)
    order = log_probs.argsort(dim=1, descending=True, stable=True)
    return Ranking(indices.gather(1, order), log_probs.gather(1, order))
