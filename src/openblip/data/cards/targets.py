"""The published figures of the cards as numbers: what each model reached on a split, measure by measure."""

from __future__ import annotations

from dataclasses import dataclass

from openblip.data.cards.card import Card, Target

__all__ = ["MEASURES", "Published", "compared_metrics", "published_figures", "why_unlike"]

MEASURES: dict[str, tuple[str, ...]] = {
    "text": ("i2t_recall_itm@1",),
    "image recall@1": ("t2i_recall_itm@1",),
    "BLEU-4": ("BLEU-4",),
    "CIDEr": ("CIDEr",),
    "SPICE": ("SPICE",),
    "accuracy": ("accuracy", "accuracy_ranked", "accuracy_generated, lemmas", "accuracy_generated"),
    "direct answers": ("accuracy_ranked", "accuracy_generated"),
    "MRR": ("mean_reciprocal_rank",),
    "recall@1": ("recall@1", "t2i_recall_itm@1"),
    "@5": ("recall@5", "t2i_recall_itm@5"),
    "@10": ("recall@10", "t2i_recall_itm@10"),
    "mean rank": ("mean_rank",),
}
"""a card's name of a measure -> metrics of an evaluation that it may be compared with, the first that is there"""
_OWN_MEASURES = {
    ("gqa", "accuracy"): ("accuracy_generated, normalised",),
    ("aokvqa", "direct answers"): ("accuracy_ranked, difficult too", "accuracy_generated, difficult too"),
}
"""of a dataset and its card's measure, where the figures are not by the official program: LAVIS' GQATask normalises
both sides, its AOKVQATask counts questions whose direct answers are difficult"""
_SPLITS = {"test-P": "test1"}
"""splits that the papers call otherwise"""


@dataclass(frozen=True)
class Published:
    """What a model reached on a split, in percent."""

    model: str
    remark: str
    """"fine-tuned" or "zero-shot", "" where neither is said"""
    figures: dict[str, str]
    """by the card's name of the measure, as published"""
    source: str


def published_figures(card: Card, split: str) -> list[Published]:
    """The published figures of a split, a row for each model and source; measures of no evaluation are left out."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for target in card.targets:
        names, splits, remark = _parts(target)
        values = target.value.split(" / ")
        for place, value in enumerate(values):
            name = names[place] if len(names) == len(values) else names[0]
            own = splits[place] if len(splits) == len(values) and len(names) != len(values) else splits[0]
            if _SPLITS.get(own, own) == split and name in MEASURES:
                rows.setdefault((target.model, remark, target.source), {})[name] = value
    return [Published(model, remark, figures, source) for (model, remark, source), figures in rows.items()]


def compared_metrics(dataset: str, measure: str) -> tuple[str, ...]:
    """Metrics of an evaluation that stand in the column of a card's measure, the first that is there."""
    return _OWN_MEASURES.get((dataset, measure), MEASURES[measure])


def why_unlike(dataset: str, metric: str, family: str) -> str:
    """Why a metric is no measure by the protocol of the published figure, "" where it is."""
    if (dataset, metric, family) == ("okvqa", "accuracy_generated", "blip2"):
        return "BLIP-2's figures of OK-VQA are of base forms (openblip evaluate --lemmas)"
    return ""


def _parts(target: Target) -> tuple[list[str], list[str], str]:
    """Names of measures, of splits, and the remark: "accuracy, dev / test-P, fine-tuned"."""
    head, *rest = target.measure.split(", ")
    return head.split(" / "), rest[0].split(" / ") if rest else [""], ", ".join(rest[1:])
