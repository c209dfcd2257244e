"""Judging statements about two images (NLVR2): trained, and evaluated by accuracy and consistency.

All statements about a pair of images read its one memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.sharing import joint
from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.data.clean import CleanText, cleaned
from openblip.data.sample import Batch
from openblip.data.sources.statements import open_statements, statements_of
from openblip.metrics.nlvr import judgement_scores
from openblip.objectives.nlvr import NlvrObjective
from openblip.tasks.config import RunConfig
from openblip.tasks.protocols import Adapter, Judges
from openblip.tasks.step import PreparedBatch, Training, TrainingStep, unless_even
from openblip.tasks.task import Batches, Evaluation, RunData, Task

__all__ = ["NLVR", "NlvrStep", "StatementBatch", "evaluate_statements", "prepare_statements", "swap_sides"]

_SCORED = ("prediction", "label", "group")
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class StatementBatch(PreparedBatch):
    """B pairs of images, uint8 [B, 2, 3, H, W], and R statements about them."""

    statements: TokenBatch
    pair_of: Tensor | None
    """int64 [R]; None when there are equally many statements about each pair"""
    labels: Tensor
    """int64 [R], 1 is true"""

    @property
    def num_scored(self) -> int:
        """Statements."""
        return len(self.labels)


class NlvrStep(TrainingStep[StatementBatch]):
    """`NlvrObjective` over `StatementBatch`es."""

    def forward(self, batch: StatementBatch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        return self.objective(
            self.model.vision.normalize(batch.images),
            batch.statements,
            batch.labels,
            pair_of=batch.pair_of,
            num_statements=self.divisor,
        )


def swap_sides(text: str) -> str:
    """A statement about the same two images in the other order: the words "left" and "right" change places."""
    return _SIDES.sub(lambda word: "right" if word[0].lower() == "left" else "left", text)


def prepare_statements(
    tokenizer: TextTokenizer, *, clean: CleanText = "simplify", max_length: int, swap: bool = True
) -> Callable[[Batch], StatementBatch]:
    """A function from the loader's batches, with all statements of each pair, to `StatementBatch`es.

    Args:
        clean: "simplify" lower-cases and drops punctuation, "spaces", "none".
        max_length: tokens of a statement; longer ones are cut.
        swap: exchange the images of every second pair at random, and the sides in its statements, as the reference
            trains (it does so in evaluation too, which makes its accuracy differ from run to run).
    """

    def prepare(batch: Batch) -> StatementBatch:
        # [B]; torch's generator is saved with a checkpoint, so that a resumed run swaps the same pairs.
        swapped = torch.rand(len(batch)) < 0.5 if swap else torch.zeros(len(batch), dtype=torch.bool)
        owners = batch.image_index.tolist()
        texts = [
            swap_sides(text) if swapped[owner] else text for text, owner in zip(batch.texts, owners, strict=True)
        ]
        texts = [cleaned(text, clean) for text in texts]
        statements = [statement for meta in batch.meta for statement in statements_of(meta)]
        labels = [statement.label for statement in statements]
        if None in labels:
            text = statements[labels.index(None)].text
            raise UserError(f'a statement without a label cannot be trained on ("{text:.60}"); train on others')
        return StatementBatch(
            images=torch.where(swapped[:, None, None, None, None], batch.images.flip(1), batch.images),
            statements=tokenizer.encode(texts, first="enc", max_length=max_length),
            pair_of=unless_even(batch.image_index, len(batch)),
            labels=torch.tensor(labels, dtype=torch.int64),
        )

    return prepare


def train_blip(config: RunConfig, adapter: Adapter, data: RunData) -> Training:
    """BLIP: a cross-attention for each image, two-way cross-entropy."""
    objective = NlvrObjective(adapter.model, enc_id=adapter.tokenizer.enc_id)
    prepare = prepare_statements(adapter.tokenizer, clean=config.clean, max_length=config.max_length)
    return Training(NlvrStep(objective), prepare, text_mode="all")


@torch.no_grad()
def evaluate_statements(model: Judges, batches: Iterable[Batch], *, max_rows: int = 64) -> Evaluation:
    """Judge every statement.

    Args:
        batches: with all statements of every pair (`text_mode="all"`).
        max_rows: statements that are judged at once.

    Returns:
        metrics by name: "accuracy", "consistency" and "standard_error", as `judgement_scores`, of statements with a
        label, and "num_unanswered" where some have none; and one record for each statement.
    """
    records: list[dict[str, Any]] = []
    for batch in batches:
        embeds = model.encode(batch.images.flatten(0, 1)).unflatten(0, (-1, batch.images.shape[1]))
        statements = [statement for meta in batch.meta for statement in statements_of(meta)]
        for rows in torch.arange(len(statements)).split(max_rows):
            owners, own = batch.image_index[rows], [statements[row] for row in rows.tolist()]
            probabilities = model.judge(embeds[owners.to(embeds.device)], [s.text for s in own]).tolist()
            for owner, statement, probability in zip(owners.tolist(), own, probabilities, strict=True):
                record: dict[str, Any] = {
                    "key": batch.keys[owner],
                    "statement": statement.text,
                    "group": statement.group,
                }
                record |= {"identifier": statement.identifier} if statement.identifier else {}
                record |= {} if statement.label is None else {"label": statement.label}
                record |= {"prediction": probability >= 0.5, "probability": probability}
                records.append(record)
    records = joint(records)
    scored = [record for record in records if "label" in record]
    predictions, labels, groups = ([record[name] for record in scored] for name in _SCORED)
    metrics = judgement_scores(predictions, labels, groups) if scored or not records else {}
    if len(scored) < len(records):
        metrics["num_unanswered"] = float(len(records) - len(scored))
    return metrics, records


def evaluate(config: RunConfig, adapter: Adapter, batches: Batches, answers: Sequence[str]) -> Evaluation:
    """Accuracy and consistency of the judgements."""
    return evaluate_statements(adapter.need("judge"), batches())


NLVR = Task(train={"blip": train_blip}, evaluate=evaluate, open=open_statements, num_images=2, cleans=False)
