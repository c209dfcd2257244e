"""The loader: JPEG images of 500 x 375 from tars to normalised 224 px tensors, for each second on two cores.

Ours is `openblip.data.stream.Loader`; the peer is `benchmarks.plain_pipeline`. Both read the same tars, which lie
in the page cache, and clean the captions beside. What comes out is compared:

- evaluation transform: pixel by pixel and caption by caption over the first 256 samples, in grey levels, and the
  mean and the spread of each channel over all of them;
- transforms with random crops: the mean and the spread of each channel over the epoch.

The loader's share of training is the CPU time that it takes for a batch, relative to that of one training
step of ViT-B on the same machine (`blip-pretrain`, stored in benchmarks/results).
"""

from __future__ import annotations

import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import THREADS, Subject, compare, machine_slug, result_of
from benchmarks.photographs import write_tars
from benchmarks.plain_pipeline import make_loader
from openblip.data.sources import open_source
from openblip.data.stream import Loader
from openblip.data.transform_config import ImageTransformConfig
from openblip.data.transforms import ImageTransform, evaluation_transform, pretraining_transform
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, normalize

SIZE, BATCH = 224, 32
TARGET = 400
"""images a second that two cores must reach"""
LARGEST, MEAN = 2.0, 0.1
"""grey levels of 255 by which a pixel may differ from Pillow's resize, at most and on average"""
STATISTICS = 0.03
"""by how much means and spreads over an epoch of random crops may differ, relative"""
CASES = {
    f"{kind}, {workers} workers" if workers != 1 else f"{kind}, 1 worker": (kind, workers)
    for kind, all_workers in (("evaluation", (0, 1, 2)), ("crop and flip", (2,)), ("pre-training", (0, 1, 2)))
    for workers in all_workers
}
FOLDER = "OPENBLIP_BENCHMARK_TARS"
"""environment variable that tells the processes of both sides where the tars are"""


def run(quick: bool) -> dict[str, Any]:
    """Measure; `quick` takes 128 images and two cases."""
    num_tars, per_tar, num_images = (4, 32, 16) if quick else (8, 128, 256)
    count = num_tars * per_tar
    cases = {
        name: case for name, case in CASES.items() if not quick or case in (("evaluation", 2), ("pre-training", 0))
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        size_kb = write_tars(Path(folder), num_tars, per_tar, num_images)
        difference = pixel_difference(Path(folder), 1 if quick else 8)
        os.environ[FOLDER] = folder
        try:
            for case, (kind, workers) in cases.items():
                tolerance = 1e-3 if kind == "evaluation" else STATISTICS * (4 if quick else 1)
                row = compare(
                    "benchmarks.loader", case, quick=quick, repeats=1 if quick else 3, tolerance=tolerance
                )
                row["tolerance"] = tolerance
                row["ours_images_s"], row["peer_images_s"] = (
                    round(count / row[f"{s}_s"]) for s in ("ours", "peer")
                )
                if kind == "evaluation":
                    row["outputs_agree"] &= agree(difference)
                if workers:  # the harness counts the time of the process that asks, not of those that decode
                    del row["ours_cpu_s"], row["peer_cpu_s"]
                rows.append(row)
        finally:
            del os.environ[FOLDER]
    cpu_ms = {
        CASES[row["case"]][0]: round(1000 * row["ours_cpu_s"] / count, 2) for row in rows if "ours_cpu_s" in row
    }
    return result_of(
        "loader",
        rows,
        images=count,
        image_kb=round(size_kb, 1),
        target_images_s=TARGET,
        pixel_difference=difference,
        cpu_ms_per_image=cpu_ms,
        **({} if quick else share_of_step(cpu_ms["pre-training"] / 1000)),
    )


def agree(difference: dict[str, float]) -> bool:
    """Whether what `pixel_difference` found is within the tolerance."""
    close = difference["largest"] <= LARGEST and difference["mean"] <= MEAN
    return close and not difference["other_captions"]


def share_of_step(cpu_s: float) -> dict[str, Any]:
    """The loader's share of a stored training step's CPU time, for each dtype; {} where none is stored."""
    path = Path(__file__).parent / "results" / f"blip-pretrain-{machine_slug()}.json"
    if not path.exists():
        return {}
    from benchmarks.blip_pretrain import BATCH as STEP  # its models take seconds to import

    steps = json.loads(path.read_text())["rows"]
    shares = {row["dtype"]: round(STEP * cpu_s / (THREADS * row["ours_s"] + STEP * cpu_s), 5) for row in steps}
    return {"share_of_training_step": shares}


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """One side of a case, ready to read the tars."""
    kind, workers = CASES[case]
    folder = Path(os.environ[FOLDER])
    return Ours(folder, kind, workers) if side == "ours" else Plain(folder, kind, workers)


def our_transform(kind: str) -> ImageTransform:
    """The transform called `kind`."""
    if kind == "evaluation":
        return evaluation_transform(SIZE)
    if kind == "pre-training":
        return pretraining_transform(SIZE)
    return ImageTransform(ImageTransformConfig(image_size=SIZE, ops=()))


class Reading(ABC):
    """An epoch over the tars; what it gives is normalised float32 [B, 3, S, S]."""

    @abstractmethod
    def batches(self) -> Iterator[Tensor]:
        """The batches of one epoch."""

    def outputs(self) -> dict[str, float]:
        """Mean and spread of each channel in grey levels, over the epoch."""
        scale, shift = (torch.tensor(values).view(3, 1, 1) * 255 for values in (IMAGE_STD, IMAGE_MEAN))
        total = torch.zeros(3, dtype=torch.float64)
        squares, count = total.clone(), 0
        for batch in self.batches():
            for image in batch:  # one by one: what this takes would count as memory of the loader
                levels = image * scale + shift
                total += levels.sum((1, 2), dtype=torch.float64)
                squares += levels.square().sum((1, 2), dtype=torch.float64)
            count += batch[:, 0].numel()
        spread = (squares / count - (total / count).square()).sqrt()
        named = {f"mean {channel}": float(total[channel]) / count for channel in range(3)}
        return named | {f"spread {channel}": float(spread[channel]) for channel in range(3)} | {"pixels": count}

    def run(self) -> None:
        """Read every image once."""
        for batch in self.batches():
            assert batch.dtype == torch.float32


class Ours(Reading):
    """`Loader`; images are normalised where training does it."""

    def __init__(self, folder: Path, kind: str, workers: int) -> None:
        self.loader = Loader(open_source(str(folder)), our_transform(kind), BATCH, num_workers=workers)

    def batches(self) -> Iterator[Tensor]:
        for batch in self.loader:
            yield normalize(batch.images)


class Plain(Reading):
    """The peer."""

    def __init__(self, folder: Path, kind: str, workers: int) -> None:
        self.loader = make_loader(folder, kind, SIZE, BATCH, workers)

    def batches(self) -> Iterator[Tensor]:
        for images, _ in self.loader:
            yield images


def pixel_difference(folder: Path, num_batches: int) -> dict[str, float]:
    """Largest and mean difference of a pixel in grey levels of 255, and how many captions differ.

    Both sides read the first batches of the same tars in order, in the evaluation transform.
    """
    ours = Loader(open_source(str(folder)), our_transform("evaluation"), BATCH, shuffle=False, text_mode="first")
    theirs = make_loader(folder, "evaluation", SIZE, BATCH, 0)
    scale = torch.tensor(IMAGE_STD).view(3, 1, 1) * 255
    largest, means, other_texts = 0.0, [], 0
    for mine, (images, texts) in islice(zip(ours, theirs, strict=False), num_batches):
        difference = ((normalize(mine.images) - images) * scale).abs()
        largest = max(largest, float(difference.max()))
        means.append(float(difference.mean()))
        other_texts += sum(a != b for a, b in zip(mine.texts, texts, strict=True))
    return {"largest": round(largest, 2), "mean": round(sum(means) / len(means), 4), "other_captions": other_texts}
