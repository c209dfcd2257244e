"""How well a filter tells true texts from false ones, and a captioner writes true ones, judged by the world."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

from openblip.bootstrap.table import Row
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.truth import judge
from openblip.metrics.scores import roc_auc

__all__ = ["judge_rows"]


def judge_rows(rows: Iterable[Row], *, threshold: float = 0.5) -> dict[str, float]:
    """Measure a result table whose source kept the columns "scene" and "noise".

    Returns:
        for "web" and "synthetic", as "NAME_ORIGIN": texts, true (share that is true of the image), kept (share at
        or above the threshold), precision (of the kept, the true), recall (of the true, the kept), auc (of the ITM
        probability), auc_log_prob (of the captioner's own log-probability, of written texts), itm_of_true and
        itm_of_false (means), distinct (different texts of all), without those that cannot be decided; of web texts
        "kept_KIND" by the kind of their noise, and "auc_half_true", of the clean against the half-true ones alone.
    """
    found: dict[str, list[_Judged]] = {"web": [], "synthetic": []}
    kinds: dict[str, list[float]] = {}
    for row in rows:
        if row.status != "ok":
            continue
        scene = scene_from_meta(row.meta)
        for text in row.texts:
            assert text.itm is not None
            found[text.origin].append(_Judged(judge(text.text, scene).true, text.itm, text.log_prob, text.text))
        noise = row.meta.get("noise") or []
        for kind, text in zip(noise, (t for t in row.texts if t.origin == "web"), strict=False):
            assert text.itm is not None
            kinds.setdefault(kind, []).append(text.itm)
    metrics: dict[str, float] = {}
    for origin, texts in found.items():
        if texts:
            measured = _measured(texts, threshold)
            metrics |= {f"{name}_{origin}": value for name, value in measured.items()}
    metrics |= {f"kept_{kind}": fmean(itm >= threshold for itm in scores) for kind, scores in sorted(kinds.items())}
    clean, half_true = kinds.get("clean", []), kinds.get("half-true", [])
    if clean and half_true:
        metrics["auc_half_true"] = roc_auc(clean + half_true, [True] * len(clean) + [False] * len(half_true))
    return metrics


class _Judged(NamedTuple):
    true: bool
    itm: float
    log_prob: float | None
    text: str


def _measured(texts: list[_Judged], threshold: float) -> dict[str, float]:
    kept = [text for text in texts if text.itm >= threshold]
    right, wrong = ([text.itm for text in texts if text.true is wanted] for wanted in (True, False))
    metrics = {
        "texts": float(len(texts)),
        "true": len(right) / len(texts),
        "kept": len(kept) / len(texts),
        "distinct": len({text.text for text in texts}) / len(texts),
    }
    if kept:
        metrics["precision"] = fmean(text.true for text in kept)
    if right:
        metrics["recall"] = fmean(itm >= threshold for itm in right)
        metrics["itm_of_true"] = fmean(right)
    if wrong:
        metrics["itm_of_false"] = fmean(wrong)
    if right and wrong:
        truth = [text.true for text in texts]
        metrics["auc"] = roc_auc([text.itm for text in texts], truth)
        likelihoods = [text.log_prob for text in texts if text.log_prob is not None]
        if len(likelihoods) == len(texts):
            metrics["auc_log_prob"] = roc_auc(likelihoods, truth)
    return metrics
