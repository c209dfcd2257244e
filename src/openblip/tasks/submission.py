"""Files of predictions as evaluation servers take them: every question once, none missing.

    write_submission(Path("vqa.json"), "vqa", records, question_ids(sources))

Formats: VQA's is a list of {"question_id": int, "answer": str}, A-OKVQA's an object of {"multiple_choice",
"direct_answer"} by question id, GQA's a list of {"questionId": str, "prediction": str}, VisDial's a list of
{"image_id": int, "round_id": int from 1, "ranks": [a permutation from 1]}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.core.places import NAMED
from openblip.data.cards import CARDS
from openblip.data.cards.card import Submission
from openblip.data.sample import BrokenSample
from openblip.data.sources.base import Source, SourceConfig
from openblip.data.sources.dialogs import open_dialogs
from openblip.data.sources.questions import asked_of, open_questions
from openblip.tasks.dialog import submit_dialogs

__all__ = ["question_ids", "submission_format", "submit", "write_submission"]


def submission_format(sources: Sequence[SourceConfig]) -> Submission:
    """The format of the server that evaluates the dataset in `sources`.

    Raises:
        UserError: they are not one split of a dataset that has such a server.
    """
    named = NAMED.fullmatch(sources[0].path)
    card = CARDS.get(named["name"]) if named else None
    if len(sources) != 1 or card is None or not card.submission:
        known = ", ".join(card.name for card in CARDS.values() if card.submission)
        raise UserError(f"--submission writes the predictions for one split of {known}, as vqav2:test")
    return card.submission


def submit(
    out: Path, form: Submission, records: Iterable[Mapping[str, Any]], sources: Sequence[SourceConfig]
) -> None:
    """`write_submission` for all questions of `sources`.

    Raises:
        UserError: as `write_submission`.
    """
    if form == "visdial":
        submit_dialogs(out, records, [open_dialogs(config) for config in sources])
        return
    write_submission(
        out, form, records, (number for config in sources for number in question_ids(open_questions(config)))
    )


def question_ids(source: Source) -> Iterator[int | str | None]:
    """The id of each question of a source, broken images included.

    Raises:
        UserError: a row of it cannot be read.
    """
    if source.bad_rows:
        raise UserError(
            f"{source.name} has {len(source.bad_rows)} rows that cannot be read, first {source.bad_rows[0]}"
        )
    for index in range(len(source)):
        try:
            sample = source[index]
        except BrokenSample as broken:
            raise UserError(f"{source.name} cannot be submitted: {broken}") from broken
        yield from (given.about.id for given in asked_of(sample.meta).given)


def write_submission(
    out: Path, form: Submission, records: Iterable[Mapping[str, Any]], expected: Iterable[int | str | None]
) -> int:
    """Write the predictions of `records`, as `evaluate_answers` gives them, and return how many there are.

    Args:
        expected: the id of every question there is.

    Raises:
        UserError: an id is missing, there twice, unknown, or of a kind that the server does not take; nothing is
            written.
    """
    predictions: dict[int | str, Mapping[str, Any]] = {}
    for record in records:
        number = _id(record.get("question_id"), form)
        if number in predictions:
            raise UserError(f"question {number!r} is answered twice; the submission needs every question once")
        predictions[number] = record
    ids = Counter(_id(number, form) for number in expected)
    if twice := next((number for number, count in ids.items() if count > 1), None):
        raise UserError(f"the data have question {twice!r} twice; the submission needs every question once")
    if missing := [number for number in ids if number not in predictions]:
        raise UserError(
            f"the submission needs all {len(ids)} questions, and {len(missing)} have no prediction, the first "
            f"{missing[0]!r}; repair what was left out"
        )
    if unknown := [number for number in predictions if number not in ids]:
        raise UserError(f"question {unknown[0]!r} is not among those of the data")
    write_json(out, _content(form, predictions))
    return len(predictions)


def _id(number: object, form: Submission) -> int | str:
    """A question's id in the type that the server takes.

    Raises:
        UserError: it has none, or one that is no integer where one is needed.
    """
    if number is None or isinstance(number, bool) or not isinstance(number, int | str):
        raise UserError("a question has no question_id, by which the server would know it")
    if form != "vqa":
        return str(number)
    if isinstance(number, str) and not number.isdecimal():
        raise UserError(f"the question_id {number!r} is not an integer, as the server needs")
    return int(number)


def _content(form: Submission, predictions: Mapping[int | str, Mapping[str, Any]]) -> Any:
    answers = {number: record.get("ranked", record["generated"]) for number, record in predictions.items()}
    if form == "vqa":
        return [{"question_id": number, "answer": answer} for number, answer in answers.items()]
    if form == "gqa":
        return [{"questionId": number, "prediction": answer} for number, answer in answers.items()]
    return {
        number: {"multiple_choice": predictions[number].get("choice", ""), "direct_answer": answer}
        for number, answer in answers.items()
    }
