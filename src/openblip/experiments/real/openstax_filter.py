"""openstax through CapFilt: does the retrieval model, as a filter, tell an image's alt text from others?

The images of a split become a collection as the web would give it. For each there are four texts, and what they
are is known: its own alt text, the alt text of another image (of any book, or of the same one), the book's own
caption, which often speaks of what the image does not show, and one that the captioner writes. `openblip capfilt`
scores them; the own alt texts are the true ones, those of other images the false ones.

An ITM head that has seen two false pairs for each true one says "unmatched" to most when it knows little. So the
filter is measured at the paper's threshold, and at one that keeps half of the own and other alt texts of `val`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from openblip.bootstrap.job import NUCLEUS, CapFiltConfig, Output
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import run_capfilt
from openblip.bootstrap.table import Text
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.experiments.real.measures import wrong_images
from openblip.experiments.real.openstax import Settings, run_seed, source
from openblip.experiments.results import described, spread
from openblip.metrics.scores import roc_auc

__all__ = ["KINDS", "PAPER", "SETTINGS", "judged", "run", "table", "texts_by_kind", "write_noisy"]

KINDS = ("own", "other", "same book", "book caption", "written")
"""of texts; "same book" is another image's alt text too, but of the same book"""
PAPER = 0.5
"""the paper's threshold"""

SETTINGS = {"openstax-filter": Settings()}
"""the models are those of `openblip experiments openstax`, in the same folder"""

Scores = list[dict[str, float]]
"""for each image the ITM probability of its text of each kind that it has"""


def run(
    name: str, data: Path, out: Path, seeds: int, settings: Settings, *, command: str = "", show: bool = True
) -> dict[str, Any]:
    """Train what is not trained of every seed, filter `val` and `test`, and sum up.

    Returns:
        "command", "settings", "machine", "versions", "seeds"; "test": each number as `spread` gives it;
        "examples": of seed 0, texts with their scores.
    """
    found, examples = [], []
    for seed in range(seeds):
        folder = out / f"seed-{seed}"
        run_seed(data, folder, seed, settings, show=show)
        scores = {split: _filtered(data, folder, split, seed) for split in ("val", "test")}
        level = median(row[kind] for row in scores["val"] for kind in ("own", "other") if kind in row)
        found.append({**judged(scores["test"], PAPER, "paper"), **judged(scores["test"], level, "half")})
        found[-1] |= {"threshold_half": level}
        if seed == 0:
            examples = _examples(folder)
    return {
        **described(name, command, seeds, settings),
        "images": len(scores["test"]),
        "test": {
            measure: spread([metrics[measure] for metrics in found])
            for measure in found[0]
            if all(measure in metrics for metrics in found)
        },
        "examples": examples,
    }


def write_noisy(data: Path, split: str, path: Path) -> int:
    """Write a captions file with the texts and their kinds for each image of a split; returns the images."""
    alt, book = (open_source(source(data, split, column=column)) for column in ("caption", "web_text"))
    samples = [alt[index] for index in range(len(alt))]
    captions = {sample.key: sample.texts for sample in (book[index] for index in range(len(book)))}
    books = [str(sample.meta["book"]) for sample in samples]
    others = wrong_images(["all"] * len(samples), 1)[0].tolist()
    neighbours = wrong_images(books, 1)[0].tolist()
    lines = []
    for place, sample in enumerate(samples):
        texts = {"own": sample.texts[0], "other": samples[others[place]].texts[0]}
        if neighbours[place] != place:
            texts["same book"] = samples[neighbours[place]].texts[0]
        if words := captions.get(sample.key, ()):
            texts["book caption"] = words[0]
        lines.append({"image": sample.key, "captions": list(texts.values()), "kinds": list(texts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _filtered(data: Path, folder: Path, split: str, seed: int) -> Scores:
    """The scores of a split by the models of a seed."""
    noisy, target = folder / f"{split}.jsonl", folder / f"clean-{split}"
    if not noisy.exists():
        write_noisy(data, split, noisy)
    config = CapFiltConfig(
        source=SourceConfig(path=str(noisy), image_root=str(data.resolve()), meta_columns=("kinds",)),
        captioner=str(folder / "captioner" / "best"),
        filter=str(folder / "retrieval" / "best"),
        decode=NUCLEUS,
        device="cpu",
        dtype="float32",
    )
    run_capfilt(config, target, Output(layout="none"))
    return [{kind: float(text.itm or 0.0) for kind, text in texts.items()} for _, texts in texts_by_kind(target)]


def texts_by_kind(target: Path) -> Iterator[tuple[str, dict[str, Text]]]:
    """Of a finished run of CapFilt on what `write_noisy` wrote: each image's key, and its texts by kind."""
    for row in Places(target).rows():
        if row.status == "ok":
            yield row.key, dict(zip([*row.meta["kinds"], "written"], row.texts, strict=True))


def judged(scores: Scores, threshold: float, name: str) -> dict[str, float]:
    """What a threshold keeps of each kind, its precision and recall among own and other alt texts, half and half.

    Besides, whatever the threshold: ROC AUC of own against other alt texts, and how often the filter prefers an
    image's own alt text to the book's caption and to the written text.
    """
    kept = {kind: [row[kind] >= threshold for row in scores if kind in row] for kind in KINDS}
    metrics = {f"kept_{kind}_{name}": sum(found) / len(found) for kind, found in kept.items() if found}
    both = sum(kept["own"]) + sum(kept["other"])
    if both:
        metrics[f"precision_{name}"] = sum(kept["own"]) / both
    metrics[f"recall_{name}"] = metrics[f"kept_own_{name}"]
    for other in ("other", "same book"):
        if not (pairs := [(row["own"], row[other]) for row in scores if other in row]):
            continue
        right = [True] * len(pairs) + [False] * len(pairs)
        metrics[f"auc_{other}"] = roc_auc([own for own, _ in pairs] + [wrong for _, wrong in pairs], right)
    for other in ("book caption", "written"):
        if not (pairs := [(row["own"], row[other]) for row in scores if other in row]):
            continue
        metrics[f"own_over_{other}"] = sum(own > wrong for own, wrong in pairs) / len(pairs)
    return metrics


def _examples(folder: Path) -> list[dict[str, Any]]:
    rows = list(texts_by_kind(folder / "clean-test"))
    return [
        {
            "image": key,
            "texts": [
                {"kind": kind, "text": text.text, "itm": round(text.itm or 0.0, 4)} for kind, text in texts.items()
            ],
        }
        for key, texts in rows[:: max(1, len(rows) // 6)][:6]
    ]


def table(result: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = [f"{result['name']}, {result['seeds']} seeds, {result['images']} images of test"]
    lines += [f"{name:26} {found['mean']:.4f} ± {found['sd']:.4f}" for name, found in result["test"].items()]
    return "\n".join(lines)
