"""The demo's report on BLIP-2: a language model that has only read is shown images, and asked about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openblip.data.sources.open import open_source
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.documents import ASKED
from openblip.data.world.truth import judge
from openblip.experiments.demo.blip2 import FOLDER
from openblip.experiments.demo.config import left_by
from openblip.experiments.judges.blip2_stages import GREEDY
from openblip.experiments.judges.zero_shot import ask_about, check_answer
from openblip.experiments.labels import labels
from openblip.report import Card, CardText, Cell, Column, Gallery, Section, Table, Text, page_image
from openblip.tasks.load import load

__all__ = ["blip2_section"]

_KINDS = {"decoder": "decoder (Llama)", "encoder-decoder": "encoder-decoder (T5)"}
_ASKED = {"all": "all"} | dict(zip(ASKED, labels(*(f"answers_{kind}" for kind in ASKED)).values(), strict=True))


def blip2_section(out: Path, *, examples: int = 9) -> Section:
    """The section of the demo's report, from what the stages of BLIP-2 left.

    Args:
        examples: images with caption and answers.
    """
    measured, first = left_by(out, "zero-shot"), left_by(out, "stage1")
    return Section(
        title="What BLIP-2 answers",
        intro="The captioner's vision tower and two small language models that have only read, all frozen. A "
        "Q-Former between them learns, from captions; no question was ever put together with an image.",
        blocks=[
            Text(paragraphs=_sentences(measured, first)),
            _answers(measured["test"]),
            Gallery(cards=_cards(out, examples), title="What it says of new images, and answers",
                    note="By the decoder; the questions are of kinds that it has only read."),
            _table(measured, first),
        ],
    )  # fmt: skip


def _sentences(measured: dict[str, Any], first: dict[str, Any]) -> list[str]:
    test, matched = measured["test"], first["test"]
    sentences = [
        f"{first['trained_parameters'] / 1e6:.2f} million parameters learn. After {first['steps']:,} steps of "
        f"stage 1 (ITC, ITM, ITG) a text finds its image in {matched['t2i_recall_itm@1']:.0%} of the cases, "
        f"and ITM is right in {matched['itm_accuracy']:.0%}."
    ]
    for name, label in _KINDS.items():
        found = test[name]
        sees, blind, told = found["sees"]["answers_all"], found["blind"]["all"], found["told"]["all"]
        sentences.append(
            f"Of {test['questions']:,} questions the {label} answers **{sees:.0%}** rightly when it sees the "
            f"image, {blind:.0%} when it does not (guessing gives {test['guessing']['all']:.0%}), and {told:.0%} "
            f"when it reads in words what is there. {found['sees']['truth']:.0%} of its captions are true in every "
            "fact."
        )
    return sentences


def _answers(test: dict[str, Any]) -> Table:
    rows: list[list[Cell | float | str | None]] = [["guessing", *(test["guessing"].get(kind) for kind in _ASKED)]]
    for name, label in _KINDS.items():
        found = test[name]
        rows.append([f"{label}, no image", *(found["blind"].get(kind) for kind in _ASKED)])
        rows.append([f"{label}, sees", *(found["sees"].get(f"answers_{kind}") for kind in _ASKED)])
        rows.append([f"{label}, told in words", *(found["told"].get(kind) for kind in _ASKED)])
    columns = [Column(name=""), *(Column(name=name, unit="fraction") for name in _ASKED.values())]
    return Table(title="Questions answered rightly, by kind", columns=columns, rows=rows)


def _cards(out: Path, count: int) -> list[Card]:
    predictor = load(out / FOLDER / "stage2-decoder" / "model", device="cpu", dtype="float32")
    source = open_source(f"{out / 'world' / 'test'}?text_column=captions&meta_columns=scene")
    samples = [source[index] for index in range(min(count, len(source)))]
    images: list[Any] = [sample.image for sample in samples]
    scenes = [scene_from_meta(sample.meta) for sample in samples]
    asked = ask_about(scenes)
    captions = predictor.caption(images, GREEDY)  # as its captions are measured
    cards = []
    for row, (sample, scene) in enumerate(zip(samples, scenes, strict=True)):
        verdict = judge(captions[row][0].text, scene)
        texts = [
            CardText(
                text=captions[row][0].text,
                verdict="true" if verdict.true else "partly" if verdict.num_true else "false",
                reason=verdict.reason,
            )
        ]
        own = [one.question for one in asked if one.row == row]
        for question, answered in zip(own, predictor.answer([images[row]], [q.text for q in own])[0], strict=True):
            given = answered.text
            right = check_answer(question, given)
            texts.append(
                CardText(
                    text=f"{question.text} {given}",
                    verdict="true" if right else "false",
                    reason="" if right else f"right: {question.answer}",
                )
            )
        cards.append(Card(image=page_image(images[row], alt=sample.texts[0]), texts=texts, truth=[sample.texts[0]]))
    return cards


def _table(measured: dict[str, Any], first: dict[str, Any]) -> Table:
    splits = ("test", "novel")
    rows: list[list[Cell | float | str | None]] = [
        [f"after stage 1: {label}", *(first[split][measure] for split in splits)]
        for measure, label in labels("t2i_recall@1", "t2i_recall_itm@1", "itm_accuracy").items()
    ]
    for name, kind in _KINDS.items():
        rows += [
            [f"{kind}: {label}", *(measured[split][name]["sees"][measure] for split in splits)]
            for measure, label in labels("truth", "fact_accuracy", "coverage", "answers_all").items()
        ]
    columns = [Column(name="measure"), Column(name="unseen images", unit="fraction"),
               Column(name="combinations never seen", unit="fraction")]  # fmt: skip
    return Table(title="BLIP-2: metrics", columns=columns, rows=rows)
