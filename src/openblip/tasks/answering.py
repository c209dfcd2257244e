"""Answering questions about pictures: written freely, or ranked among given answers.

A question is read with its picture once; all beams and all candidates read the same question states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.data.transforms import clean_question
from openblip.generation.decode import decode
from openblip.generation.rank import rank_two_step
from openblip.generation.types import DecodeConfig
from openblip.models.layers import ImageMemory
from openblip.models.stepper import DecoderStepper
from openblip.models.vqa import BlipVqa

__all__ = ["MAX_LENGTH", "Answer", "Answered", "ask", "encode_questions", "rank_answers", "write_answers"]

MAX_LENGTH = 35
"""Tokens of a question, the first and the last special token included; longer ones are cut, as in the paper."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with how sure the model is."""

    text: str
    log_prob: float
    """natural logarithm of the probability of the whole answer, its end included"""
    probability: float
    """among the answers that came back for the question: softmax of their log-probabilities"""


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its answers, the best first."""

    question: str
    answers: tuple[Answer, ...]

    @property
    def text(self) -> str:
        """The best answer."""
        return self.answers[0].text


def encode_questions(
    tokenizer: TextTokenizer, questions: Sequence[str], *, clean: str = "simplify", max_length: int = MAX_LENGTH
) -> TokenBatch:
    """Questions as the model reads them, beginning with [ENC].

    Args:
        clean: as the model was trained: "simplify" lower-cases and drops punctuation, "spaces", "none".
    """
    texts = questions if clean == "none" else [clean_question(q, simplify=clean == "simplify") for q in questions]
    return tokenizer.encode(texts, first="enc", max_length=max_length)


@torch.no_grad()
def ask(model: BlipVqa, memory: ImageMemory, questions: TokenBatch, *, read_padding: bool = False) -> ImageMemory:
    """Read R questions with their B images, R a multiple of B, rows of one image together.

    Args:
        questions: ids [R, T], beginning with [ENC].
        read_padding: let answers read padded states, as generation in the original and in transformers does.
    """
    states = model.read_question(questions.input_ids, questions.attention_mask, memory)
    return model.remember_question(states, None if read_padding else questions.attention_mask)


@torch.no_grad()
def write_answers(
    model: BlipVqa,
    tokenizer: TextTokenizer,
    read: ImageMemory,
    config: DecodeConfig,
    *,
    keys: Tensor | None = None,
) -> list[tuple[Answer, ...]]:
    """`config.num_sequences` answers to each question that `read` holds."""
    device = read.keys[0].device
    decoded = decode(
        DecoderStepper(model.text_decoder, read),
        torch.full((read.batch_size, 1), tokenizer.dec_id, device=device),
        None,
        config,
        eos_ids=tokenizer.sep_id,
        pad_id=tokenizer.pad_id,
        keys=keys,
    )
    log_probs = decoded.log_probs.view(read.batch_size, -1)
    shares = log_probs.softmax(1).flatten().tolist()
    answers: list[list[Answer]] = [[] for _ in range(read.batch_size)]
    rows = zip(
        decoded.rows.tolist(), decoded.ids.tolist(), decoded.lengths.tolist(), log_probs.flatten().tolist(), shares,
        strict=True,
    )  # fmt: skip
    for row, ids, length, log_prob, share in rows:
        answers[row].append(Answer(tokenizer.decode(ids[:length]), log_prob, share))
    return [tuple(found) for found in answers]


@torch.no_grad()
def rank_answers(
    model: BlipVqa,
    tokenizer: TextTokenizer,
    read: ImageMemory,
    candidates: Sequence[str],
    *,
    keep: int = 128,
    label_smoothing: float = 0.0,
) -> list[tuple[Answer, ...]]:
    """The `keep` likeliest of `candidates` for each question that `read` holds, the best first.

    Args:
        keep: candidates that are read whole, chosen by their first token (the paper: 128).
        label_smoothing: 0.1 ranks by the training loss, as the original does; 0 by likelihood.
    """
    device = read.keys[0].device
    tokens = tokenizer.encode(candidates, first="dec").to(device)

    def logits(input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
        return model.text_decoder(input_ids, attention_mask, memory=read.select(rows))

    ranking = rank_two_step(
        logits,
        tokens.input_ids,
        tokens.attention_mask,
        num_rows=read.batch_size,
        keep=min(keep, len(candidates)),
        label_smoothing=label_smoothing,
    )
    rows = zip(ranking.indices.tolist(), ranking.log_probs.tolist(), ranking.probabilities.tolist(), strict=True)
    return [tuple(Answer(candidates[i], p, share) for i, p, share in zip(*row, strict=True)) for row in rows]
