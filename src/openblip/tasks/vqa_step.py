"""From a batch of pictures with their questions to the VQA loss: tokens on the way in, the objective inside.

All questions about a picture read its one memory, all answers to a question read that question's one memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openblip.core.runtime import average
from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.data.sample import Batch
from openblip.data.sources.questions import answers_of
from openblip.data.transforms import normalize
from openblip.objectives.answering import VqaObjective
from openblip.tasks.answering import MAX_LENGTH, encode_questions
from openblip.tasks.step import depth_of_layers

__all__ = ["QuestionBatch", "VqaStep", "make_question_prepare"]


@dataclass(frozen=True)
class QuestionBatch:
    """What VQA trains on: B pictures, Q questions about them, A different answers to these."""

    images: Tensor
    """uint8 [B, 3, S, S]; made floats on the device"""
    questions: TokenBatch
    image_of: Tensor | None
    """int64 [Q]; None when there are equally many questions about each picture"""
    answers: TokenBatch
    question_of: Tensor | None
    """int64 [A]; None when there are equally many answers to each question"""
    weights: Tensor
    """float32 [A]"""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> QuestionBatch:
        """Move all tensors."""
        image_of, question_of = (
            None if index is None else index.to(device, non_blocking=non_blocking)
            for index in (self.image_of, self.question_of)
        )
        return QuestionBatch(
            self.images.to(device, non_blocking=non_blocking),
            self.questions.to(device, non_blocking=non_blocking),
            image_of,
            self.answers.to(device, non_blocking=non_blocking),
            question_of,
            self.weights.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return len(self.images)


def make_question_prepare(
    tokenizer: TextTokenizer, *, clean: str = "simplify", max_length: int = MAX_LENGTH
) -> Callable[[Batch], QuestionBatch]:
    """A function from the loader's batches to `QuestionBatch`es.

    Args:
        clean: as `encode_questions`; answers are taken as they are given.
        max_length: tokens of a question, and of an answer; longer ones are cut.
    """

    def prepare(batch: Batch) -> QuestionBatch:
        known = [answers_of(meta) for meta in batch.meta]
        texts: list[str] = []
        owners: list[int] = []
        weights: list[float] = []
        rows = zip(batch.texts, batch.image_index.tolist(), strict=True)
        for row, (question, picture) in enumerate(rows):
            given = known[picture][question].merged
            texts += given
            weights += given.values()
            owners += [row] * len(given)
        return QuestionBatch(
            images=batch.images,
            questions=encode_questions(tokenizer, batch.texts, clean=clean, max_length=max_length),
            image_of=_unless_even(batch.image_index, len(batch)),
            answers=tokenizer.encode(texts, first="dec", max_length=max_length),
            question_of=_unless_even(torch.tensor(owners), len(batch.texts)),
            weights=torch.tensor(weights),
        )

    return prepare


def _unless_even(owner: Tensor, count: int) -> Tensor | None:
    """None where each of `count` owners has equally many rows, which then need not be gathered."""
    each = torch.bincount(owner, minlength=count)
    return None if bool((each == each[0]).all()) else owner


class VqaStep(nn.Module):
    """`VqaObjective` over `QuestionBatch`es: the training loop's step."""

    num_questions: Tensor

    def __init__(self, objective: VqaObjective) -> None:
        super().__init__()
        self.objective = objective
        self.register_buffer("num_questions", torch.zeros(()), persistent=False)
        self._counted = False

    def count_step(self, batches: Sequence[QuestionBatch]) -> None:
        """Take note of how many questions a step holds: on average in a micro-batch of a process."""
        self.num_questions.fill_(sum(len(batch.questions) for batch in batches) / len(batches))
        self.num_questions.copy_(average(self.num_questions))
        self._counted = True

    def gradient_checkpointing_enable(self) -> None:
        """As `BlipVqa.gradient_checkpointing_enable`."""
        self.objective.model.gradient_checkpointing_enable()

    def layer_ids(self) -> dict[str, int]:
        """Depth of each parameter for layer-wise decay, see `depth_of_layers`."""
        config = self.objective.model.config
        return depth_of_layers(self, config.vision.depth, config.text.depth)

    def forward(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        return self.objective(
            normalize(batch.images),
            batch.questions,
            batch.answers,
            batch.question_of,
            batch.weights,
            image_of=batch.image_of,
            num_questions=self.num_questions if self._counted else None,
        )
