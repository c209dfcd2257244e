"""Files of predictions as evaluation servers take them: every question, image or statement once, none missing.

    write_submission(Path("vqa.json"), "vqa", records, question_ids(sources))

Formats: VQA's is a list of {"question_id": int, "answer": str}, A-OKVQA's an object of {"multiple_choice",
"direct_answer"} by question id, GQA's a list of {"questionId": str, "prediction": str}, VisDial's a list of
{"image_id": int, "round_id": int from 1, "ranks": [a permutation from 1]}; COCO's and NoCaps' captions are a list
of {"image_id": int, "caption": str}, NLVR2's judgements lines of IDENTIFIER,True or IDENTIFIER,False.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from openblip.core.errors import UserError
from openblip.core.files import write_json, write_text
from openblip.core.places import NAMED
from openblip.data.cards import CARDS
from openblip.data.cards.card import Submission
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import Source
from openblip.data.sources.dialogs import open_dialogs
from openblip.data.sources.open import open_source
from openblip.data.sources.questions import asked_of, open_questions
from openblip.data.sources.statements import open_statements, statements_of
from openblip.tasks.config import TaskName
from openblip.tasks.dialog import submit_dialogs

__all__ = ["image_number", "question_ids", "submission_format", "submit", "submitted_task", "write_submission"]

_COCO_NAME = re.compile(r"captions_[^_]+_.+_results\.json")
_UNITS = {"coco": "image", "nocaps": "image", "nlvr": "statement", "visdial": "round"}
"""what is counted, where it is not questions"""
_IDS = {"image": "image_id", "statement": "identifier", "question": "question_id"}
"""where a record has its id"""


def submission_format(sources: Sequence[SourceConfig], out: Path) -> Submission:
    """The format of the server that evaluates the dataset in `sources`, for the file `out`.

    Raises:
        UserError: they are not one split of a dataset that has such a server, or it wants another name.
    """
    named = NAMED.fullmatch(sources[0].path)
    card = CARDS.get(named["name"]) if named else None
    if len(sources) != 1 or card is None or not card.submission:
        known = ", ".join(card.name for card in CARDS.values() if card.submission)
        raise UserError(f"--submission writes the predictions for one split of {known}, as vqav2:test")
    if card.submission == "coco" and not _COCO_NAME.fullmatch(out.name):
        raise UserError(
            f"COCO's server takes captions_SPLIT_NAME_results.json, not {out.name}; call it such as "
            "captions_val2014_blip_results.json"
        )
    return card.submission


def submitted_task(form: Submission) -> TaskName:
    """The task whose predictions a server of that format takes."""
    tasks: dict[str, TaskName] = {"image": "captioning", "statement": "nlvr", "round": "dialog"}
    return tasks.get(_UNITS.get(form, ""), "answering")


def submit(
    out: Path, form: Submission, records: Iterable[Mapping[str, Any]], sources: Sequence[SourceConfig]
) -> None:
    """`write_submission` for all of `sources`.

    Args:
        records: as the evaluation of `submitted_task` gives them.

    Raises:
        UserError: as `write_submission`.
    """
    (config,) = sources
    unit = _UNITS.get(form, "question")
    if unit == "round":
        submit_dialogs(out, records, [open_dialogs(config)])
    elif unit == "question":
        write_submission(out, form, records, question_ids(open_questions(config)))
    elif unit == "statement":
        samples = _samples(open_statements(config))
        write_submission(out, form, records, (s.identifier for one in samples for s in statements_of(one.meta)))
    else:
        numbers = [(sample.key, image_number(sample)) for sample in _samples(open_source(config))]
        known = dict(numbers)
        described = ({**record, "image_id": known[record["key"]]} for record in records)
        write_submission(out, form, described, (number for _, number in numbers))


def image_number(sample: Sample) -> str:
    """The id of an image as COCO's and NoCaps' servers know it: its own, else the number that ends its name.

    Raises:
        UserError: it has neither.
    """
    name = PurePath(str(sample.image) if isinstance(sample.image, Path) else sample.key).stem
    number = sample.image_id if sample.image_id.isdecimal() else name.rpartition("_")[2]
    if not number.isdecimal():
        raise UserError(
            f"{sample.key} has no number as the server's image_id: neither an id nor a name such as "
            "COCO_val2014_000000000042.jpg"
        )
    return number


def _samples(source: Source) -> Iterator[Sample]:
    """All samples, those with broken images included.

    Raises:
        UserError: a row cannot be read.
    """
    if source.bad_rows:
        raise UserError(
            f"{source.name} has {len(source.bad_rows)} rows that cannot be read, first {source.bad_rows[0]}"
        )
    for index in range(len(source)):
        try:
            yield source[index]
        except BrokenSample as broken:
            raise UserError(f"{source.name} cannot be submitted: {broken}") from broken


def question_ids(source: Source) -> Iterator[int | str | None]:
    """The id of each question of a source, broken images included.

    Raises:
        UserError: a row of it cannot be read.
    """
    for sample in _samples(source):
        yield from (given.about.id for given in asked_of(sample.meta).given)


def write_submission(
    out: Path, form: Submission, records: Iterable[Mapping[str, Any]], expected: Iterable[int | str | None]
) -> int:
    """Write the predictions of `records`, and return how many there are.

    Args:
        records: with "question_id" and "generated" (and "ranked", "choice"), as `evaluate_answers` gives them; with
            "image_id" and "caption"; or with "identifier" and "prediction", as `evaluate_statements` does.
        expected: the id of every question, image or statement there is.

    Raises:
        UserError: an id is missing, there twice, unknown, or of a kind that the server does not take; nothing is
            written.
    """
    unit = _UNITS.get(form, "question")
    predictions: dict[int | str, Mapping[str, Any]] = {}
    for record in records:
        number = _id(record.get(_IDS[unit]), form)
        if number in predictions:
            raise UserError(f"{unit} {number!r} is answered twice; the submission needs every {unit} once")
        predictions[number] = record
    ids = Counter(_id(number, form) for number in expected)
    if twice := next((number for number, count in ids.items() if count > 1), None):
        raise UserError(f"the data have {unit} {twice!r} twice; the submission needs every {unit} once")
    if missing := [number for number in ids if number not in predictions]:
        raise UserError(
            f"the submission needs all {len(ids)} {unit}s, and {len(missing)} have no prediction, the first "
            f"{missing[0]!r}; repair what was left out"
        )
    if unknown := [number for number in predictions if number not in ids]:
        raise UserError(f"{unit} {unknown[0]!r} is not among those of the data")
    if unit == "statement":
        write_text(out, "".join(f"{number},{record['prediction']}\n" for number, record in predictions.items()))
    else:
        write_json(out, _content(form, predictions))
    return len(predictions)


def _id(number: object, form: Submission) -> int | str:
    """An id in the type that the server takes.

    Raises:
        UserError: it has none, or one that is no integer where one is needed.
    """
    unit = _UNITS.get(form, "question")
    if number in (None, "") or isinstance(number, bool) or not isinstance(number, int | str):
        raise UserError(f"a {unit} has no {_IDS[unit]}, by which the server would know it")
    if form in ("aokvqa", "gqa", "nlvr"):
        return str(number)
    if isinstance(number, str) and not number.isdecimal():
        raise UserError(f"the {_IDS[unit]} {number!r} is not an integer, as the server needs")
    return int(number)


def _content(form: Submission, predictions: Mapping[int | str, Mapping[str, Any]]) -> Any:
    if form in ("coco", "nocaps"):
        return [{"image_id": number, "caption": record["caption"]} for number, record in predictions.items()]
    answers = {number: record.get("ranked", record["generated"]) for number, record in predictions.items()}
    if form == "vqa":
        return [{"question_id": number, "answer": answer} for number, answer in answers.items()]
    if form == "gqa":
        return [{"questionId": number, "prediction": answer} for number, answer in answers.items()]
    return {
        number: {"multiple_choice": predictions[number].get("choice", ""), "direct_answer": answer}
        for number, answer in answers.items()
    }
