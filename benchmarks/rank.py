"""128 answers to a question about an image, ordered by log-likelihood: ours against transformers' VQA model.

transformers has no ranking; its part here is what the original repository does with the same modules: the states of
the question are repeated for each answer and the decoder reads all pairs. Both begin with the image's features
and read the question (12 tokens); answers have 5 tokens with [DEC] and [SEP].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.harness import Subject, compare, dtypes_to_measure, result_of
from openblip.checkpoints.store import open_model
from openblip.core.memory import keep_freed_memory
from openblip.generation.rank import log_likelihood

ANSWERS, QUESTION_TOKENS, ANSWER_TOKENS = 128, 12, 5
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}


def run(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Measure both dtypes, or `only` one."""
    dtypes = dtypes_to_measure(TOLERANCES, only)
    with published.published(published.vqa(quick)):
        rows = [
            compare(
                "benchmarks.rank",
                "128 answers to a question",
                dtype=dtype,
                quick=quick,
                repeats=2 if quick else 5,
                tolerance=TOLERANCES[dtype],
            )
            for dtype in dtypes
        ]
    return result_of("rank", rows, answers=ANSWERS)


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """One side."""
    torch.set_grad_enabled(False)
    torch_dtype = getattr(torch, dtype)
    return Ours(torch_dtype) if side == "ours" else Theirs(torch_dtype)


class Ranking(ABC):
    """An image's features, a question and answers; a run gives the answers' log-likelihoods."""

    def __init__(self, tokens: int, width: int, dtype: torch.dtype) -> None:
        self.embeds = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(2)).to(dtype)
        self.question = published.texts(1, QUESTION_TOKENS, published.ENC)
        self.answers = published.texts(ANSWERS, ANSWER_TOKENS, published.DEC)

    def outputs(self) -> dict[str, float]:
        """Every answer's log-likelihood."""
        return {f"answer {i}": float(value) for i, value in enumerate(self.score())}

    def run(self) -> None:
        """All answers."""
        self.score()

    @abstractmethod
    def score(self) -> Tensor:
        """float32 [answers]."""


class Ours(Ranking):
    """This library."""

    def __init__(self, dtype: torch.dtype) -> None:
        keep_freed_memory()
        self.model = open_model(published.folder(), like="transformers").model.to(dtype)
        vision = self.model.config.vision
        super().__init__(1 + vision.grid[0] * vision.grid[1], vision.width, dtype)

    def score(self) -> Tensor:
        """As the class says."""
        states = self.model.read_question(self.question, None, self.model.remember(self.embeds))
        memory = self.model.remember_question(states, None)

        def read(input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
            logits: Tensor = self.model.text_decoder(input_ids, attention_mask, memory=memory)
            return logits

        mask = torch.ones_like(self.answers, dtype=torch.bool)
        return log_likelihood(read, self.answers[None], mask[None])[0]


class Theirs(Ranking):
    """transformers' modules, used as the original repository's `rank_answer` uses its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        from transformers import BlipForQuestionAnswering

        self.model = BlipForQuestionAnswering.from_pretrained(published.folder(), dtype=dtype).eval()
        vision = self.model.config.vision_config
        super().__init__(1 + (vision.image_size // vision.patch_size) ** 2, vision.hidden_size, dtype)

    def score(self) -> Tensor:
        """As the class says."""
        states = self.model.text_encoder(
            input_ids=self.question,
            attention_mask=torch.ones_like(self.question),
            encoder_hidden_states=self.embeds,
            encoder_attention_mask=torch.ones(self.embeds.shape[:2], dtype=torch.long),
        ).last_hidden_state
        logits = self.model.text_decoder(
            input_ids=self.answers,
            attention_mask=torch.ones_like(self.answers),
            encoder_hidden_states=states.repeat(ANSWERS, 1, 1),
            encoder_attention_mask=torch.ones(ANSWERS, QUESTION_TOKENS, dtype=torch.long),
        ).logits
        own = logits.float().log_softmax(-1)[:, :-1].gather(-1, self.answers[:, 1:, None])
        total: Tensor = own[..., 0].sum(1)
        return total
