"""Captions by beam search, BLIP ViT-L at 384 px, and ITM of an image with 128 texts: beside transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import caption, match, published
from benchmarks.gpu.measure import attention_kernels, measured
from benchmarks.gpu.predict import predicted
from benchmarks.gpu.report import Report
from benchmarks.harness import largest_difference

__all__ = ["measure"]

BATCHES = (16, 64, 1)
TEXTS = 128
AIM = 3.0
"""times faster than transformers"""

Sides = dict[str, Callable[..., Any]]


def measure(report: Report) -> None:
    """Rows for captions in each batch, then for re-ranking; outputs compared before time is taken."""
    torch.set_grad_enabled(False)
    with published.published(published.captioner(report.pretend, "base" if report.pretend else "large")):
        _captions(report)
    with published.published(published.matcher(report.pretend)):
        _reranking(report)


def half(report: Report) -> torch.dtype:
    """What is timed."""
    return torch.float32 if report.pretend else torch.bfloat16


def _captions(report: Report) -> None:
    sides: Sides = {"ours": caption.Ours, "transformers": caption.Theirs}
    dtype, device = half(report), report.device
    # In float32, where the texts must be equal: without the shorter products that cuDNN takes for convolutions.
    torch.backends.cudnn.allow_tf32 = False
    with report.case("captions: ids in float32"):
        ids = [side(torch.float32, device).outputs() for side in sides.values()]
        worst = largest_difference(*ids)
        report.add("captions: ids in float32", compared=len(ids[0]), outputs_agree=worst == 0.0)
    torch.backends.cudnn.allow_tf32 = True
    with report.case("captions"):
        models = {name: side(dtype, device) for name, side in sides.items()}
        for model in models.values():
            model.exact = False
        texts = [model.outputs() for model in models.values()]
        report.add("captions: log-probabilities", largest_difference=largest_difference(*texts))
        for batch in (2,) if report.pretend else BATCHES:
            found: dict[str, Any] = {}
            for name, model in models.items():
                with report.case(f"captions, batch {batch}: {name}"):
                    model.take(batch)
                    found[name] = measured(model.run, device, images=batch, seconds=3, pretend=report.pretend)
                    before = predicted(f"captions, batch {batch}") if name == "ours" else None
                    report.add(f"captions, batch {batch}: {name}", **found[name], predicted=before)
            if len(found) == 2:
                times = found["transformers"]["seconds"] / found["ours"]["seconds"]
                report.add(f"captions, batch {batch}: times faster", ratio=round(times, 3), aim=AIM)
            # Where the device computes for a small part of the time, the host's launches are what takes it.
            report.add(f"captions, batch {batch}: kernels of ours", **attention_kernels(models["ours"].run, device))


def _reranking(report: Report) -> None:
    texts, device = 4 if report.pretend else TEXTS, report.device
    for case in ("features", "pixels"):
        found: dict[str, Any] = {}
        outputs = []
        for name, side in (("ours", match.Ours), ("transformers", match.Theirs)):
            with report.case(f"{texts} texts, {case}: {name}"):
                subject: Any = side(case, half(report), device, texts)
                outputs.append(subject.outputs())
                found[name] = measured(subject.run, device, images=texts, seconds=2, pretend=report.pretend)
                pairs = {"pairs_per_s": found[name].pop("images_per_s")}
                before = predicted(f"{texts} texts, {case}") if name == "ours" else None
                report.add(f"{texts} texts, {case}: {name}", **found[name], **pairs, predicted=before)
        if len(found) == 2:
            times = found["transformers"]["seconds"] / found["ours"]["seconds"]
            worst = largest_difference(*outputs)
            report.add(f"{texts} texts, {case}: times faster", ratio=round(times, 3), largest_difference=worst)
