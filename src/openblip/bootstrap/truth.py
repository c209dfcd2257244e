"""How well a filter tells true texts from false ones, and a captioner writes true ones, judged by the world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from openblip.bootstrap.table import Row
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.truth import judge
from openblip.metrics.scores import roc_auc

__all__ = ["judge_rows"]


def judge_rows(rows: Iterable[Row], *, threshold: float = 0.5) -> dict[str, float]:
    """Measure a result table whose source kept the columns "scene" and "noise".

    Returns:
        for "web" and "synthetic", as "NAME_ORIGIN": texts, true (share that is true of the picture), kept (share at
        or above the threshold), precision (of the kept, the true), recall (of the true, the kept), auc (of the ITM
        probability), distinct (different texts of all), without those that cannot be told; and "kept_KIND" of web
        texts by the kind of their noise.
    """
    found: dict[str, list[tuple[bool, float, str]]] = {"web": [], "synthetic": []}
    kinds: dict[str, list[bool]] = {}
    for row in rows:
        if row.status != "ok":
            continue
        scene = scene_from_meta(row.meta)
        for text in row.texts:
            assert text.itm is not None
            found[text.origin].append((judge(text.text, scene).true, text.itm, text.text))
        noise = row.meta.get("noise") or []
        for kind, text in zip(noise, (t for t in row.texts if t.origin == "web"), strict=False):
            assert text.itm is not None
            kinds.setdefault(kind, []).append(text.itm >= threshold)
    numbers: dict[str, Any] = {}
    for origin, texts in found.items():
        if texts:
            measured = _judged(texts, threshold)
            numbers |= {f"{name}_{origin}": value for name, value in measured.items()}
    return numbers | {f"kept_{kind}": sum(kept) / len(kept) for kind, kept in sorted(kinds.items())}


def _judged(texts: list[tuple[bool, float, str]], threshold: float) -> dict[str, float]:
    counts = Counter((is_true, score >= threshold) for is_true, score, _ in texts)
    true, kept = counts[True, True] + counts[True, False], counts[True, True] + counts[False, True]
    numbers = {
        "texts": float(len(texts)),
        "true": true / len(texts),
        "kept": kept / len(texts),
        "distinct": len({text for _, _, text in texts}) / len(texts),
    }
    if kept:
        numbers["precision"] = counts[True, True] / kept
    if true:
        numbers["recall"] = counts[True, True] / true
    if len({is_true for is_true, _, _ in texts}) == 2:
        numbers["auc"] = roc_auc([score for _, score, _ in texts], [is_true for is_true, _, _ in texts])
    return numbers
