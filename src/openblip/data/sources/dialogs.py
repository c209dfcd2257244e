"""Dialogs about images as VisDial v1.0 publishes them: questions, answers, and candidates to rank.

    source = open_dialogs("visdial:val")
    dialog = dialog_of(source[0].meta)
    dialog.caption, dialog.rounds[0].question       # "a man rides a horse", "is it outside"
    dialog.rounds[0].options[dialog.rounds[0].right]    # the answer that was given

A dialog and its image make one sample, so that the image is decoded and encoded once for all rounds. Rounds of the
test split have no candidates, but for the last, which has no answer; a dialog may have any number of rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from openblip.core.errors import UserError
from openblip.core.places import local_path, missing_data
from openblip.core.text import read_json, without_halves
from openblip.data.cards.find import find_split, missing_images
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources.base import Source, refuse_unread, string_array
from openblip.data.sources.cells import given_id, is_too_deep
from openblip.data.sources.digest import MOST_SIZES, Digest, spread
from openblip.data.sources.paths import image_roots, locate_image, name_images

__all__ = ["Dialog", "DialogSource", "Round", "dialog_of", "open_dialogs"]

_DIALOG = "dialog"
_OF_TRAIN = tuple(f"{folder}COCO_{year}_{{image_id:012}}.jpg" for year in ("train2014", "val2014")
                  for folder in (f"{year}/", ""))  # fmt: skip
"""The images of the train split are those of COCO 2014, and no column says in which folder."""


@dataclass(frozen=True, slots=True)
class Round:
    """A question with what was answered."""

    question: str
    answer: str = ""
    """"" where it is not told"""
    options: tuple[str, ...] = ()
    """candidates to rank; none in earlier rounds of the test split"""
    right: int | None = None
    """which of the options was answered; None where it is not told"""
    relevance: tuple[float, ...] = ()
    """of each option, 0 to 1, in the one round of a dialog that has dense annotations"""


@dataclass(frozen=True, slots=True)
class Dialog:
    """All rounds about an image."""

    image_id: int | str
    caption: str
    rounds: tuple[Round, ...]


class DialogSource(Source):
    """The dialogs of a file.

    Args:
        content: of the file, `answer_options` as int32 arrays.
        relevance: of the options, by image id and number of the round from 0.
    """

    reads = frozenset(("image_root", "image_name"))

    def __init__(
        self,
        content: Mapping[str, Any],
        path: Path,
        config: SourceConfig,
        relevance: dict[tuple[str, int], np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.name = config.name or config.path
        data = content.get("data")
        if not isinstance(data, Mapping) or not all(
            isinstance(data.get(name), list) for name in ("questions", "answers", "dialogs")
        ):
            raise UserError(
                f'{path} holds no dialogs: as VisDial v1.0 it is an object whose "data" has "questions", "answers" '
                'and "dialogs"'
            )
        self._questions, self._answers = (string_array([str(t) for t in data[n]]) for n in ("questions", "answers"))
        self._roots = image_roots(config.image_root, str(path.parent))
        self._patterns = _image_patterns(config, str(content.get("split", "")))
        self._relevance = relevance or {}
        self._dialogs: list[tuple[int | str, str, str]] = []  # image id, caption, path of the image or ""
        self._starts = [0]
        self._rounds: list[tuple[int, int, int, np.ndarray]] = []  # question, answer, right one, options
        known, kept = set[str](), set[str]()
        for number, dialog in enumerate(data["dialogs"]):
            label = f"{path.name} dialog {number}"
            try:
                self._take(dialog, label, known, kept)
            except BrokenSample as broken:
                self.bad_rows.append(broken)
        for image, place in sorted(self._relevance.keys() - self._with_options()):
            if image in known and image not in kept:
                continue  # its dialog was told above
            detail = f"the dense annotations are of round {place + 1}, which has no options"
            if image not in known:
                detail = f"the dense annotations are of round {place + 1} of image {image}, which has no dialog"
            self.bad_rows.append(BrokenSample("bad-row", f"{path.name} image {image}", detail))

    def _take(self, dialog: Any, label: str, known: set[str], kept: set[str]) -> None:
        """Add a dialog, and its image to those that are `known`, and `kept` where nothing is wrong with it.

        Raises:
            BrokenSample: "bad-row", it is none, or its image has one already.
        """
        number = given_id(dialog.get("image_id")) if isinstance(dialog, Mapping) else ""
        if not number:
            raise BrokenSample("bad-row", label, "it has no image_id")
        known.add(number)
        if is_too_deep(dialog):
            raise BrokenSample("bad-row", label, "nested too deep")
        if not isinstance(dialog.get("dialog"), list) or not dialog["dialog"]:
            raise BrokenSample("bad-row", label, "it has no rounds")
        if number in kept:
            raise BrokenSample("bad-row", label, f"image {number} has a dialog already")
        rounds = [self._round(one, number, place, label) for place, one in enumerate(dialog["dialog"])]
        kept.add(number)
        self._rounds += rounds
        self._starts.append(len(self._rounds))
        image = dialog.get("image")
        own = image if isinstance(image, str) else ""
        identity = dialog["image_id"] if type(dialog["image_id"]) is int else number
        self._dialogs.append((identity, without_halves(str(dialog.get("caption") or "")), own))

    def _round(self, one: Any, image: str, place: int, label: str) -> tuple[int, int, int, np.ndarray]:
        where = f"round {place + 1}"
        if not isinstance(one, Mapping):
            raise BrokenSample("bad-row", label, f"{where} is no object")
        question = _index(one.get("question"), len(self._questions), f"question of {where}", label)
        if not self._questions[question].as_py().strip():
            raise BrokenSample("bad-row", label, f"the question of {where} is empty")
        told = one.get("answer")
        most = len(self._answers)
        answer = -1 if told is None else _index(told, most, f"answer of {where}", label)
        options, right = one.get("answer_options"), one.get("gt_index")
        if options is None or (isinstance(options, np.ndarray) and not len(options)):
            return question, answer, -1, np.zeros(0, np.int32)
        if not (isinstance(options, np.ndarray) and 0 <= options.min() <= options.max() < most):
            raise BrokenSample("bad-row", label, f"the answer_options of {where} are not indices of answers")
        chosen = -1 if right is None else _index(right, len(options), f"gt_index of {where}", label)
        answer = int(options[chosen]) if answer < 0 <= chosen else answer
        if chosen >= 0 and options[chosen] != answer:
            raise BrokenSample("bad-row", label, f"the gt_index of {where} is of another answer than its own")
        rated = self._relevance.get((image, place))
        if rated is not None and len(rated) != len(options):
            detail = f"{len(rated)} dense annotations for the {len(options)} options of {where}"
            raise BrokenSample("bad-row", label, detail)
        return question, answer, chosen, options

    def _with_options(self) -> set[tuple[str, int]]:
        return {
            (given_id(image), place - first)
            for (image, _, _), first, last in zip(self._dialogs, self._starts, self._starts[1:], strict=False)
            for place in range(first, last)
            if len(self._rounds[place][3])
        }

    def __len__(self) -> int:
        return len(self._dialogs)

    def __getitem__(self, index: int) -> Sample:
        image_id, caption, own = self._dialogs[index]
        number = given_id(image_id)
        first, last = self._starts[index], self._starts[index + 1]
        rounds = []
        for place, (question, answer, right, options) in enumerate(self._rounds[first:last]):
            rated = self._relevance.get((number, place))
            rounds.append(
                Round(
                    question=self._questions[question].as_py(),
                    answer="" if answer < 0 else self._answers[answer].as_py(),
                    options=tuple(self._answers.take(pa.array(options)).to_pylist()),
                    right=None if right < 0 else right,
                    relevance=() if rated is None else tuple(rated.tolist()),
                )
            )
        said = (caption, *(text for one in rounds for text in (one.question, one.answer)))
        return Sample(
            key=f"{number}",
            images=(self._image(number, own),),
            texts=tuple(text for text in said if text.strip()),
            image_id=number,
            meta={_DIALOG: Dialog(image_id, caption, tuple(rounds))},
        )

    def _image(self, number: str, own: str) -> Path:
        """The first of the usual paths that is there, else the first of all."""
        names = [own] if own else [_named(pattern, number) for pattern in self._patterns]
        paths = [locate_image(name, self._roots, key=number, absolute=False) for name in names]
        return next((path for path in paths if path.exists()), paths[0])

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        for index in spread(span, MOST_SIZES):
            try:
                sample = self[index]
            except BrokenSample as broken:
                digest.broken(broken)
                continue
            digest.add(sample.key, sample.texts if texts else ())
            digest.image_size(sample)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "kind": "dialogs", "num_rounds": len(self._rounds)}


def _index(value: Any, count: int, what: str, label: str) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise BrokenSample("bad-row", label, f"the {what} is {value!r:.40}, not an index of {count}")
    return value


def _image_patterns(config: SourceConfig, split: str) -> tuple[str, ...]:
    """How the files of images are called, the likeliest first."""
    if config.image_name:
        return tuple(config.image_name.split("+"))
    if split.endswith("2018"):
        stem = f"VisualDialog_{split}"
        return f"{stem}/{stem}_{{image_id:012}}.jpg", f"{stem}_{{image_id:012}}.jpg"
    return _OF_TRAIN


def _named(pattern: str, number: str) -> str:
    (row,) = (row for _, row in name_images([(number, {"image_id": number})], pattern))
    if isinstance(row, BrokenSample):
        raise row
    return row["image"]


def open_dialogs(spec: SourceConfig | str) -> Source:
    """Open dialogs in VisDial's format: a file, or a split such as visdial:val; see docs/dialog.md.

    Dense annotations, `visdial_1.0_val_dense_annotations.json`, are read where they lie beside the file.

    Raises:
        UserError: it is not there, or holds no dialogs.
    """
    given = parse_spec(spec) if isinstance(spec, str) else spec
    config = find_split(given)
    path = Path(local_path(config.path)).expanduser()
    if not path.is_file():
        raise UserError(missing_data(config.path))
    content = read_json(path, object_hook=_packed)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no dialogs in VisDial's format: it is no JSON object")
    dense = sorted(path.parent.glob(f"{path.stem}_dense_*.json"))
    relevance: dict[tuple[str, int], np.ndarray] = {}
    twice: list[BrokenSample] = []
    for number, (rated, values) in enumerate(_rated(dense[0]) if dense else ()):
        if rated in relevance:
            image, place = rated
            detail = f"round {place + 1} of image {image} has dense annotations already, which are used"
            twice.append(BrokenSample("bad-row", f"{dense[0].name}[{number}]", detail))
        relevance.setdefault(rated, values)
    source = DialogSource(content, path, config, relevance)
    source.bad_rows += twice
    if not len(source):
        bad = f"; {len(source.bad_rows)} cannot be read, first {source.bad_rows[0]}" if source.bad_rows else ""
        raise UserError(f"{path} holds no dialogs{bad}")
    refuse_unread(replace(config, need_answers=True), source.reads, config.path)
    source.name = config.name or config.path
    if config is not given:
        missing_images(source, given.path)
    return source


def _packed(value: dict[str, Any]) -> dict[str, Any]:
    """Candidates as an array: the train split has 123 million of them."""
    options = value.get("answer_options")
    if isinstance(options, list) and all(type(one) is int and abs(one) < 2**31 for one in options):
        value["answer_options"] = np.array(options, np.int32)
    return value


def _rated(path: Path) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    """Dense annotations: relevance of each option by image id and round from 0, which the file counts from 1.

    Raises:
        UserError: a row is none.
    """
    rows = read_json(path)
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        if not isinstance(row, Mapping):
            raise UserError(f"{path}: row {number} is no object")
        values = row.get("gt_relevance", row.get("relevance"))  # the file of train calls it so
        place, image = row.get("round_id"), given_id(row.get("image_id"))
        if not _are_numbers(values) or type(place) is not int or place < 1 or not image:
            raise UserError(
                f"{path}: row {number} is no dense annotation of image_id, round_id (from 1) and gt_relevance"
            )
        yield (image, place - 1), np.array(values, np.float64)


def _are_numbers(values: Any) -> bool:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return False
    return all(isinstance(one, int | float) and 0 <= one <= 1 for one in values)


def dialog_of(meta: Mapping[str, Any]) -> Dialog:
    """The dialog of a sample.

    Raises:
        UserError: the sample has none.
    """
    dialog = meta.get(_DIALOG)
    if not isinstance(dialog, Dialog):
        raise UserError("this sample holds no dialog; open its source with open_dialogs")
    return dialog
