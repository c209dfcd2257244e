"""Steppers and plain searches that the tests of generation compare with.

`TableStepper` is a small language model whose next-token scores follow from (image, last two tokens) by
integer arithmetic, so that it is the same on every machine. `plain_beam_search` is the search written as a
loop over prompts and hypotheses, in Python numbers: slow, and easy to check by reading.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PRIME = 1_000_003


def table_logits(image: Tensor, before: Tensor, last: Tensor, vocab_size: int, sharpness: float) -> Tensor:
    """Scores [S, V] of the token after (before, last) for an image; all inputs int64 [S]."""
    token = torch.arange(vocab_size)
    mixed = image[:, None] * 7919 + before[:, None] * 104_729 + last[:, None] * 1_299_709
    mixed = (mixed + token * 15_485_863 + 12_345) % PRIME
    mixed = (mixed * mixed + 91_193 * mixed) % PRIME
    return mixed.to(torch.float32) / PRIME * sharpness


class TableStepper:
    """One image for each prompt row; keeps (image, last two tokens) as its cache and checks the contract."""

    max_length: int | None = None

    def __init__(self, images: list[int], vocab_size: int, sharpness: float = 6.0) -> None:
        self.images = torch.tensor(images)
        self.vocab_size = vocab_size
        self.sharpness = sharpness
        self.sizes: list[int] = []  # rows of every step, for tests that count work

    def _logits(self) -> Tensor:
        return table_logits(self.images[self.rows], self.before, self.last, self.vocab_size, self.sharpness)

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        assert attention_mask.dtype == torch.bool
        self.rows = torch.arange(len(prompt_ids))
        real = [ids[mask] for ids, mask in zip(prompt_ids, attention_mask, strict=True)]
        self.last = torch.stack([ids[-1] for ids in real])
        self.before = torch.stack([ids[-2] if len(ids) > 1 else torch.tensor(0) for ids in real])
        return self._logits()

    def step(self, token: Tensor) -> Tensor:
        assert token.shape == self.last.shape
        self.sizes.append(len(token))
        self.before, self.last = self.last, token
        return self._logits()

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        before = self.rows.unique()
        self.rows, self.before, self.last = self.rows[index], self.before[index], self.last[index]
        groups = torch.unique_consecutive(self.rows, return_counts=True)
        assert groups[0].unique().numel() == groups[0].numel(), "rows of a prompt must stay together"
        assert groups[1].unique().numel() == 1, "prompts must keep equally many rows"
        expected = before if left is None else before[left]
        assert groups[0].tolist() == expected.tolist(), "the prompts that are left must be named"


def plain_beam_search(
    stepper: TableStepper,
    row: int,
    prompt: list[int],
    *,
    num_beams: int,
    num_sequences: int,
    max_new_tokens: int,
    min_new_tokens: int,
    length_penalty: float,
    early_stopping: bool,
    scoring: str,
    eos: set[int],
) -> list[tuple[list[int], float]]:
    """Beam search for one prompt: the best `num_sequences` (tokens, score), best first."""
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[tuple[float, list[int]]] = []

    def join(tokens: list[int], total: float, length: int) -> None:
        finished.append((total / length**length_penalty, tokens))
        finished.sort(key=lambda item: -item[0])
        del finished[num_beams:]

    for step in range(max_new_tokens):
        last_step = step + 1 == max_new_tokens
        candidates = []
        for tokens, total in beams:
            text = [0, *prompt, *tokens]
            logits = table_logits(
                stepper.images[row : row + 1],
                torch.tensor([text[-2]]),
                torch.tensor([text[-1]]),
                stepper.vocab_size,
                stepper.sharpness,
            )[0]
            for token, value in enumerate(torch.log_softmax(logits, dim=-1).tolist()):
                if token not in eos or step >= min_new_tokens:
                    candidates.append((total + value, [*tokens, token]))
        candidates.sort(key=lambda item: -item[0])
        candidates = candidates[: (1 + len(eos)) * num_beams]
        beams = []
        for place, (total, tokens) in enumerate(candidates):
            if tokens[-1] in eos:
                if place < num_beams:
                    join(tokens, total, len(prompt) + step if scoring == "reference" else step + 1)
            elif len(beams) < num_beams:
                beams.append((tokens, total))
                if last_step and scoring == "transformers" and place < num_beams:
                    join(tokens, total, step + 1)
        full = len(finished) == num_beams
        if full and early_stopping:
            break
        if scoring == "reference":
            if full and finished[-1][0] >= candidates[0][0] / (len(prompt) + step) ** length_penalty:
                break
            if last_step:
                for tokens, total in beams:
                    join(tokens, total, len(prompt) + max_new_tokens)
        elif full and finished[-1][0] >= beams[0][1] / (step + 1) ** length_penalty:
            break
    return [(tokens, score) for score, tokens in finished[:num_sequences]]


def assert_log_prob(stepper: TableStepper, row: int, prompt: list[int], tokens: list[int], value: float) -> None:
    """The reported log-probability of a text is the model's own."""
    text, total = [0, *prompt], 0.0
    for token in tokens:
        logits = table_logits(
            stepper.images[row : row + 1],
            torch.tensor([text[-2]]),
            torch.tensor([text[-1]]),
            stepper.vocab_size,
            stepper.sharpness,
        )[0]
        total += float(torch.log_softmax(logits, dim=-1)[token])
        text.append(token)
    assert math.isclose(total, value, abs_tol=1e-4)
