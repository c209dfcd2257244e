"""Captions by beam search, BLIP ViT-L at 384 px, and ITM of an image with 128 texts: beside transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks import caption, match, published
from benchmarks.gpu.aims import TIMES
from benchmarks.gpu.measure import attention_kernels, forget, measured
from benchmarks.gpu.predict import predicted
from benchmarks.gpu.report import Report
from benchmarks.harness import largest_difference

__all__ = ["measure"]

BATCHES = (16, 64, 1)
TEXTS = 128

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
            before = predicted(f"captions, batch {batch}")
            for name, model in models.items():
                with report.case(f"captions, batch {batch}: {name}"):
                    model.take(batch)
                    with _alone(name, models, device):
                        found[name] = measured(
                            model.run,
                            device,
                            images=batch,
                            seconds=3,
                            tflop=None if before is None else before["tflop"],
                            pretend=report.pretend,
                        )
                    told = before if name == "ours" else None
                    report.add(f"captions, batch {batch}: {name}", **found[name], predicted=told)
            if len(found) == 2:
                times = found["transformers"]["seconds"] / found["ours"]["seconds"]
                report.add(f"captions, batch {batch}: times faster", ratio=round(times, 3), aim=TIMES)
            # Where the device computes for a small part of the time, the host's launches are what takes it.
            report.add(f"captions, batch {batch}: kernels of ours", **attention_kernels(models["ours"].run, device))


@contextmanager
def _alone(name: str, sides: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Within, the weights of the other sides are on the host: a side's peak of memory is its own."""
    others = [side.model for other, side in sides.items() if other != name]
    for model in others:
        model.to("cpu")
    forget(device)
    try:
        yield
    finally:
        for model in others:
            model.to(device)


def _reranking(report: Report) -> None:
    texts, device = 4 if report.pretend else TEXTS, report.device
    for case in ("features", "pixels"):
        found: dict[str, Any] = {}
        outputs = []
        for name, side in (("ours", match.Ours), ("transformers", match.Theirs)):
            with report.case(f"{texts} texts, {case}: {name}"):
                subject: Any = side(case, half(report), device, texts)
                outputs.append(subject.outputs())
                before = predicted(f"{texts} texts, {case}")
                tflop = None if before is None else before["tflop"]
                found[name] = measured(
                    subject.run, device, images=texts, seconds=2, tflop=tflop, pretend=report.pretend
                )
                pairs = {"pairs_per_s": found[name].pop("images_per_s")}
                told = before if name == "ours" else None
                report.add(f"{texts} texts, {case}: {name}", **found[name], **pairs, predicted=told)
            subject = None  # before the next side is opened
            forget(device)
        if len(found) == 2:
            times = found["transformers"]["seconds"] / found["ours"]["seconds"]
            worst = largest_difference(*outputs)
            report.add(f"{texts} texts, {case}: times faster", ratio=round(times, 3), largest_difference=worst)
