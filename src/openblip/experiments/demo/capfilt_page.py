"""The demo's report on CapFilt: what its filter kept, judged by the truth, and what a new model made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openblip.bootstrap.run import load_run
from openblip.bootstrap.summary import summarise
from openblip.bootstrap.table import Row
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.noise import NOISE_KINDS
from openblip.data.world.truth import judge
from openblip.experiments.demo.capfilt import LEARNERS, PAGE
from openblip.experiments.demo.config import left_by
from openblip.experiments.labels import labels, unit
from openblip.report import Card, Column, Gallery, Section, Table, Text
from openblip.report.capfilt import sample_card
from openblip.report.content import Block

__all__ = ["capfilt_section"]

_SHEETS = {
    "rescued": ("Kept only by a written caption", "The web's text goes; what the captioner wrote stays."),
    "dropped": ("Dropped", "Neither text is kept."),
    "kept": ("Kept", "Both stay."),
}
_KINDS = {
    "clean": "a true caption",
    "half-true": "a caption with one thing changed",
    "other-image": "a caption of another image",
    "advertising": "advertising",
}
_ORIGINS = {"web": "from the web", "synthetic": "written by the captioner"}


def capfilt_section(out: Path, *, examples: int = 6) -> Section:
    """The section of the demo's report, from what the stages "capfilt" and "again" left.

    Args:
        examples: images of each kind.
    """
    cleaned, again = (left_by(out, name) for name in ("capfilt", "again"))
    judged = cleaned["judged"]
    blocks: list[Block] = [
        Text(paragraphs=_sentences(cleaned, again)),
        _filter(judged),
        _kinds(judged),
        *([_learners(again)] if "cleaned" in again else []),
        *_galleries(out / "clean", examples),
    ]
    return Section(
        title="What it makes of the noisy web",
        intro="CapFilt: the captioner writes a text for each web image, the matcher drops what does not match, "
        "from the web or written.",
        blocks=blocks,
    )


def _sentences(cleaned: dict[str, Any], again: dict[str, Any]) -> list[str]:
    judged = cleaned["judged"]
    kept = {origin: judged[f"kept_{origin}"] * judged[f"texts_{origin}"] for origin in _ORIGINS}
    true = sum(judged.get(f"precision_{origin}", 0.0) * kept[origin] for origin in _ORIGINS)
    share = true / sum(kept.values()) if sum(kept.values()) else 0.0
    link = f"[Every score and more images are in CapFilt's own report]({PAGE.as_posix()})."
    first = (
        f"Of {judged['texts_web']:,.0f} texts from the web **{judged['true_web']:.0%}** are true of their "
        f"images; of the {cleaned['texts']:,} that CapFilt leaves, **{share:.0%}** are."
    )
    if "cleaned" not in again:
        return [first, "That is too little for a new model to learn from: the matcher has learned too short.", link]
    truth = {name: f"{again[name]['truth']:.0%}" for name in LEARNERS}
    says = {name: f"{again[name]['mean_facts']:.1f} facts a caption" for name in LEARNERS}
    objects = {name: f"{again[name]['coverage']:.0%}" for name in LEARNERS}
    return [
        first,
        f"Two captioners were fine-tuned from the pre-trained model for {again['cleaned']['steps']:,} steps with "
        f"nothing but web pairs. The one that saw them as found names {objects['as found']} of the objects "
        f"rightly, and {truth['as found']} of its captions are true in every fact ({says['as found']}); the "
        f"other names {objects['cleaned']}, and {truth['cleaned']} are true ({says['cleaned']}).",
        link,
    ]


def _filter(judged: dict[str, float]) -> Table:
    measures = labels("texts", "true", "kept", "precision", "recall", "auc")
    return Table(
        title="The filter against the truth",
        columns=[
            Column(name="texts"),
            *(Column(name=label, unit=unit(measure)) for measure, label in measures.items()),
        ],
        rows=[
            [label, *(judged.get(f"{measure}_{origin}") for measure in measures)]
            for origin, label in _ORIGINS.items()
        ],
    )


def _kinds(judged: dict[str, float]) -> Table:
    return Table(
        title="Texts from the web that stay, by what they are",
        columns=[Column(name="text"), Column(name="stay", unit="fraction")],
        rows=[[_KINDS[kind], judged.get(f"kept_{kind}")] for kind in NOISE_KINDS],
    )


def _learners(again: dict[str, Any]) -> Table:
    rows = labels("truth", "fact_accuracy", "coverage")
    return Table(
        title="A captioner from web pairs alone, on unseen images",
        columns=[
            Column(name="measure"),
            *(Column(name=f"pairs {name}", unit="fraction") for name in LEARNERS),
        ],
        rows=[[label, *(again[name][measure] for name in LEARNERS)] for measure, label in rows.items()],
        note="Both start from the pre-trained model and learn for equally many steps.",
    )


def _galleries(run: Path, examples: int) -> list[Block]:
    """Samples with the filter's verdicts and the truth."""
    summary, (config, _) = summarise(run, examples=examples), load_run(run)
    blocks: list[Block] = []
    for kind, (title, note) in _SHEETS.items():
        cards = [_judged(sample_card(row, summary, config.source), row) for row in summary.examples[kind]]
        if cards:
            blocks.append(Gallery(cards=cards, title=title, note=note))
    return blocks


def _judged(card: Card, row: Row) -> Card:
    scene = scene_from_meta(row.meta)
    for text in card.texts:
        verdict = judge(text.text, scene)
        if not verdict.parsed:
            text.reason = "in truth: no caption"
        else:
            text.reason = f"in truth: {'true' if verdict.true else verdict.reason or 'false'}"
    return card
