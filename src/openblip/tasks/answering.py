"""Answering questions about pictures: written freely, or ranked among given answers.

A question is read with its picture once; all beams and all candidates read the same question states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.data.sample import Batch
from openblip.data.sources.answers import GivenAnswers
from openblip.data.sources.questions import answers_of
from openblip.data.transforms import clean_question, normalize
from openblip.generation.decode import decode
from openblip.generation.rank import rank_two_step
from openblip.generation.types import DecodeConfig
from openblip.metrics.answers import AccuracyRule, answer_accuracy, normalise_answer
from openblip.models.layers import ImageMemory
from openblip.models.stepper import DecoderStepper
from openblip.models.vqa import BlipVqa

__all__ = [
    "MAX_LENGTH",
    "Answer",
    "Answered",
    "ask",
    "encode_questions",
    "evaluate_answers",
    "rank_answers",
    "score_answer",
    "write_answers",
]

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


def score_answer(prediction: str, given: GivenAnswers, *, rule: AccuracyRule = "official") -> float:
    """How right an answer is, 0 to 1.

    Of answers by several people VQA's accuracy: right if three gave it. Where they have weights of their own: the
    share of these that agrees with the prediction.

    Args:
        rule: as of `answer_accuracy`.
    """
    if len(set(given.weights)) == 1:
        return answer_accuracy(prediction, given.texts, rule=rule)
    predicted = normalise_answer(prediction)
    agreeing = sum(w for text, w in given.merged.items() if normalise_answer(text) == predicted)
    return agreeing / sum(given.weights)


@torch.no_grad()
def evaluate_answers(
    model: BlipVqa,
    tokenizer: TextTokenizer,
    batches: Iterable[Batch],
    config: DecodeConfig,
    *,
    candidates: Sequence[str] = (),
    keep: int = 128,
    clean: str = "simplify",
    max_length: int = MAX_LENGTH,
    max_rows: int = 64,
    rule: AccuracyRule = "official",
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Answer every question freely, and by ranking `candidates` where there are any.

    Args:
        batches: with all questions of every picture (`text_mode="all"`).
        max_rows: questions that are answered at once.
        rule: of accuracy, as of `answer_accuracy`.

    Returns:
        numbers by name: "accuracy_generated", "accuracy_ranked", and "accuracy_most": that of ranking if it never
        erred, since an answer may not be among the candidates; and one record for each question.
    """
    device = next(model.parameters()).device
    records: list[dict[str, object]] = []
    totals: dict[str, float] = {}
    known: dict[str, list[str]] = {}
    for text in dict.fromkeys(candidates):
        known.setdefault(normalise_answer(text), []).append(text)
    for batch in batches:
        memory = model.remember(model.encode_image(normalize(batch.images.to(device))))
        given = [answers_of(meta) for meta in batch.meta]
        for rows in torch.arange(len(batch.texts)).split(max_rows):
            owners = batch.image_index[rows]
            texts = [batch.texts[row] for row in rows.tolist()]
            tokens = encode_questions(tokenizer, texts, clean=clean, max_length=max_length).to(device)
            read = ask(model, memory.select(owners.to(device)), tokens)
            written = write_answers(model, tokenizer, read, config)
            ranked = (
                rank_answers(model, tokenizer, read, candidates, keep=keep) if candidates else [()] * len(texts)
            )
            for owner, question, (free, *_), chosen in zip(owners.tolist(), texts, written, ranked, strict=True):
                right = given[owner][question]
                scores = {"generated": score_answer(free.text, right, rule=rule)}
                record = {"key": batch.keys[owner], "question": question, "answers": list(right.texts)}
                record |= {"generated": free.text, "log_prob": free.log_prob}
                if chosen:
                    scores["ranked"] = score_answer(chosen[0].text, right, rule=rule)
                    there = {near for text in right.texts for near in known.get(normalise_answer(text), ())}
                    scores["most"] = max((score_answer(text, right, rule=rule) for text in there), default=0.0)
                    record |= {"ranked": chosen[0].text, "probability": chosen[0].probability}
                for name, value in scores.items():
                    totals[name] = totals.get(name, 0.0) + value
                records.append({**record, **{f"accuracy_{name}": value for name, value in scores.items()}})
    return {f"accuracy_{name}": total / len(records) for name, total in totals.items()}, records
