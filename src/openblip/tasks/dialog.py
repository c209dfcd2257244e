"""Dialogs about images (VisDial): trained on the answers that were given, evaluated by ranking 100 candidates.

What the paper says (Li et al. 2022, section 5.5): the discriminative setting, in which a pool of candidates is
ranked given the question, the dialog so far and the image with its caption; figure 5 shows image and caption
embeddings, concatenated, before a dialog encoder that is trained with ITM to tell whether an answer is true. No
code was published, and the format of the history, the negatives and the treatment of long dialogs are not told.

What is done here: `BlipVqa` with the dialog in place of the question. Its encoder reads caption, earlier rounds and
question over the image's memory,

    [ENC] caption [SEP] question answer [SEP] ... [SEP] question [SEP]

and its decoder, trained on the answer that was given, ranks the candidates by likelihood: no negatives are needed,
and 100 candidates read one projection of the dialog's states. The earliest rounds are left out where all are longer
than `max_length`, then the end of the caption. All rounds of a dialog read the one memory of its image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.core.sharing import joint
from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.data.clean import clean_question
from openblip.data.sample import Batch, BrokenSample
from openblip.data.sources.base import Source
from openblip.data.sources.dialogs import Dialog, Round, dialog_of, open_dialogs
from openblip.metrics.retrieval import ndcg, rank_of_relevant, rank_scores
from openblip.objectives.answering import VqaObjective
from openblip.tasks.answering import QuestionBatch, VqaStep
from openblip.tasks.config import DIALOG_TOKENS, RunConfig
from openblip.tasks.protocols import Adapter, Discusses
from openblip.tasks.step import Training, unless_even
from openblip.tasks.task import Batches, Evaluation, RunData, Task

__all__ = [
    "DIALOG",
    "encode_rounds",
    "evaluate_dialogs",
    "prepare_dialogs",
    "submit_dialogs",
    "write_ranks",
]


def encode_rounds(
    tokenizer: TextTokenizer, dialog: Dialog, rounds: Sequence[int], *, clean: str = "simplify", max_length: int
) -> list[list[int]]:
    """Ids of the dialog up to the question of each of `rounds`, which count from 0.

    Args:
        clean: as the model was trained: "simplify" lower-cases and drops punctuation, "spaces", "none".
        max_length: tokens of each; the earliest rounds are left out, then the end of the caption, then the
            beginning of the question.
    """
    texts = [dialog.caption]
    for one in dialog.rounds[: max(rounds, default=-1) + 1]:
        texts += [one.question, one.answer]
    if clean != "none":
        texts = [clean_question(text, None, simplify=clean == "simplify") for text in texts]
    tokens = tokenizer.encode(texts, end=False)
    caption, *said = (
        ids[mask][1:].tolist() for ids, mask in zip(tokens.input_ids, tokens.attention_mask, strict=True)
    )
    sep = tokenizer.sep_id
    found = []
    for place in rounds:
        question = [*said[2 * place][-(max_length - 2) :], sep]
        room = max_length - 1 - len(question)
        opening = [*caption[: room - 1], sep] if caption and room > 1 else []
        room -= len(opening)
        history: list[int] = []
        for earlier in range(place - 1, -1, -1):
            turn = [*said[2 * earlier], *said[2 * earlier + 1], sep]
            if len(turn) + len(history) > room:
                break
            history = turn + history
        found.append([tokenizer.enc_id, *opening, *history, *question])
    return found


def prepare_dialogs(
    tokenizer: TextTokenizer, *, clean: str = "simplify", max_length: int = DIALOG_TOKENS
) -> Callable[[Batch], QuestionBatch]:
    """A function from batches of dialogs to what BLIP trains on: every round that has an answer, with that one.

    Args:
        clean: as `encode_rounds`; answers to learn are taken as they are given.
        max_length: tokens of a dialog up to a question, and of an answer.
    """

    def prepare(batch: Batch) -> QuestionBatch:
        rows: list[list[int]] = []
        answers: list[str] = []
        owners: list[int] = []
        for image, meta in enumerate(batch.meta):
            dialog = dialog_of(meta)
            told = [place for place, one in enumerate(dialog.rounds) if one.answer.strip()]
            rows += encode_rounds(tokenizer, dialog, told, clean=clean, max_length=max_length)
            answers += [dialog.rounds[place].answer for place in told]
            owners += [image] * len(told)
        if not rows:
            raise UserError(
                f"the dialog of {batch.keys[0]} has no answers to train on; leave test splits to evaluate"
            )
        return QuestionBatch(
            images=batch.images,
            questions=tokenizer.pad(rows),
            image_of=unless_even(torch.tensor(owners), len(batch)),
            answers=tokenizer.encode(answers, first="dec", max_length=max_length),
            question_of=None,
            weights=torch.ones(len(rows)),
        )

    return prepare


def train_blip(config: RunConfig, adapter: Adapter, data: RunData) -> Training:
    """BLIP: the loss of VQA, with one answer to each question."""
    tokenizer, smoothing = adapter.tokenizer, config.answering.label_smoothing
    objective = VqaObjective(
        adapter.model, enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id, label_smoothing=smoothing
    )
    length = min(config.max_length, adapter.max_positions)
    prepare = prepare_dialogs(tokenizer, clean=config.clean, max_length=length)
    return Training(VqaStep(objective), prepare, text_mode="all")


@torch.no_grad()
def evaluate_dialogs(
    model: Discusses,
    batches: Iterable[Batch],
    *,
    clean: str = "simplify",
    max_length: int = DIALOG_TOKENS,
    max_rows: int = 16,
) -> Evaluation:
    """Rank the candidates of every round that has some.

    Args:
        batches: of dialogs.
        clean, max_length: as of `encode_rounds`.
        max_rows: rounds whose candidates are ranked at once.

    Returns:
        metrics by name: "recall@1|5|10", "mean_rank", "median_rank" and "mean_reciprocal_rank" of the answers that
        were given, candidates of equal likelihood before them; "ndcg" of rounds with dense annotations, and
        "num_without_relevance" where some have no relevant candidate and so no NDCG; "num_unanswered" rounds that
        do not tell theirs; and one record for each round, with the place of every candidate, a permutation from 1.
    """
    records: list[dict[str, object]] = []
    ranks: list[int] = []
    gains: list[float] = []
    for batch in batches:
        memory = model.remember(model.encode(batch.images))
        todo = [
            (image, place)
            for image, meta in enumerate(batch.meta)
            for place, one in enumerate(dialog_of(meta).rounds)
            if one.options
        ]
        for part in (todo[first : first + max_rows] for first in range(0, len(todo), max_rows)):
            rounds = [dialog_of(batch.meta[image]).rounds[place] for image, place in part]
            rows = _rows_of(model.tokenizer, batch, part, clean, max_length).to(model.device)
            owners = torch.tensor([image for image, _ in part], device=model.device)
            asked = model.read(memory.select(owners), rows)
            scores = model.likelihoods(asked, [one.options for one in rounds]).double().cpu().numpy()
            for (image, place), one, row in zip(part, rounds, scores, strict=True):
                own = row[: len(one.options)]
                records.append(_record(batch.keys[image], dialog_of(batch.meta[image]), place, own))
                if one.right is not None:
                    right = np.arange(len(own)) == one.right
                    ranks.append(int(rank_of_relevant(own[None], right[None])[0]))
                    records[-1]["rank"] = ranks[-1]
                if one.relevance:
                    gains.append(float(ndcg(own[None], np.array([one.relevance]))[0]))
                    records[-1]["ndcg"] = gains[-1] if gains[-1] == gains[-1] else None
    records, ranks, gains = joint(records), joint(ranks), joint(gains)
    metrics = rank_scores(ranks) if ranks else {}
    rated = [gain for gain in gains if gain == gain]  # no NDCG where no candidate is relevant
    metrics |= {"ndcg": sum(rated) / len(rated)} if rated else {}
    metrics |= {"num_without_relevance": float(lost)} if (lost := len(gains) - len(rated)) else {}
    metrics |= {"num_unanswered": float(left)} if (left := len(records) - len(ranks)) else {}
    return metrics, records


def _rows_of(
    tokenizer: TextTokenizer, batch: Batch, part: Sequence[tuple[int, int]], clean: str, max_length: int
) -> TokenBatch:
    """Dialogs up to the questions of `part`, of which the rounds of one image stand together."""
    rows: list[list[int]] = []
    for image in dict.fromkeys(image for image, _ in part):
        own = [place for one, place in part if one == image]
        rows += encode_rounds(tokenizer, dialog_of(batch.meta[image]), own, clean=clean, max_length=max_length)
    return tokenizer.pad(rows)


def _record(key: str, dialog: Dialog, place: int, scores: np.ndarray) -> dict[str, object]:
    one: Round = dialog.rounds[place]
    order = np.argsort(-scores, kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(1, len(order) + 1)
    record: dict[str, object] = {"key": key, "image_id": dialog.image_id, "round_id": place + 1}
    record |= {"question": one.question, "ranked": one.options[int(order[0])]}
    return record | ({"answer": one.answer} if one.answer else {}) | {"ranks": places.tolist()}


def submit_dialogs(out: Path, records: Iterable[Mapping[str, Any]], sources: Iterable[Source]) -> None:
    """Write the ranks of all rounds of `sources` that have candidates; see `write_ranks`.

    Raises:
        UserError: as `write_ranks`, or a dialog cannot be read.
    """
    write_ranks(out, records, (one for source in sources for one in _rounds_of(source)))


def _rounds_of(source: Source) -> Iterator[tuple[int | str, int]]:
    if source.bad_rows:
        raise UserError(f"{source.name} has {len(source.bad_rows)} bad dialogs, first {source.bad_rows[0]}")
    for index in range(len(source)):
        try:
            dialog = dialog_of(source[index].meta)
        except BrokenSample as broken:
            raise UserError(f"{source.name} cannot be submitted: {broken}") from broken
        yield from ((dialog.image_id, place) for place, one in enumerate(dialog.rounds, 1) if one.options)


def write_ranks(out: Path, records: Iterable[Mapping[str, Any]], expected: Iterable[tuple[int | str, int]]) -> None:
    """Write the file that VisDial's server takes: [{"image_id", "round_id" from 1, "ranks"}].

    Args:
        records: as `evaluate_dialogs` gives them.
        expected: image id and round of everything to be ranked.

    Raises:
        UserError: a round is missing; nothing is written.
    """
    rows = [{name: record[name] for name in ("image_id", "round_id", "ranks")} for record in records]
    missing = dict.fromkeys(expected).keys() - {(row["image_id"], row["round_id"]) for row in rows}
    if missing:
        image, place = min(missing, key=str)
        raise UserError(
            f"the submission needs every round with candidates, and {len(missing)} have no ranks, one of them "
            f"round {place} of image {image}; repair what was left out"
        )
    write_json(out, rows)


def evaluate(config: RunConfig, adapter: Adapter, batches: Batches, answers: Sequence[str]) -> Evaluation:
    """MRR, recall, mean rank and NDCG of ranked candidates."""
    length = min(config.max_length, adapter.max_positions)
    return evaluate_dialogs(adapter.need("dialog"), batches(), clean=config.clean, max_length=length)


DIALOG = Task(train={"blip": train_blip}, evaluate=evaluate, open=open_dialogs, cleans=False)
