"""A linear probe: how well a linear layer over the frozen vision tower's features tells classes apart.

    train, test = labelled(parse_spec("train/")), labelled(parse_spec("test/"))
    tower = PooledTower(adapter.model)
    report = probe(read_features(train, tower, folder / "train"), read_features(test, tower, folder / "test"))

An image's features are the first token of what the tower gives ([CLS]), the mean of its patches, or both, computed
once and kept on disk. The layer is trained by full-batch L-BFGS on the cross-entropy plus l2 / 2 times the sum of
its squared weights; l2 is the one that does best on a part of the training images that is held out, and with it the
layer is trained again on all of them. Nothing is drawn at random.

Shapes: n images, D width of the features, K classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.core.text import counted
from openblip.data.sample import BrokenSample, stable_id
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import Source
from openblip.data.sources.classes import AS_FOLDERS
from openblip.data.sources.folder import FolderSource
from openblip.data.sources.open import open_source
from openblip.metrics.classification import Accuracy
from openblip.models.tower import FrozenTower
from openblip.tasks.feature_cache import FeatureCache, describe_tower
from openblip.tasks.features import FeatureJob

__all__ = [
    "L2",
    "Labelled",
    "Linear",
    "Pool",
    "PooledTower",
    "check_sweep",
    "fit",
    "hold_out",
    "labelled",
    "probe",
    "read_features",
]

Pool = Literal["cls", "mean", "both"]
L2 = tuple(10.0**power for power in range(-6, 3))
"""strengths of the regularisation that are tried, unless named otherwise"""
_STEPS = 500


class PooledTower(nn.Module):
    """A model's vision side as `FeatureJob` takes it, giving one token for each image.

    Args:
        model: a BLIP or BLIP-2 model; its features are those that its text side reads.

    Raises:
        UserError: the tower has no [CLS] token, and one is asked for.
    """

    def __init__(self, model: Any, pool: Pool = "cls") -> None:
        super().__init__()
        vision = model.vision
        own = vision if isinstance(vision, FrozenTower) else vision.config
        self.pixels, self.width = own.pixels, own.width
        self.first = own.first if isinstance(own, FrozenTower) else 1 + own.registers
        if not self.first and pool != "mean":
            raise UserError("this vision tower has no [CLS] token; take --pool mean")
        self.pool, self._model = pool, [model]  # in a list: what belongs to the model is not a part of this
        norm = [model.vision_norm] if isinstance(vision, FrozenTower) else []
        self.encoder = nn.ModuleList([vision, *norm])
        self.normalize = vision.normalize
        source = vision.config.source if isinstance(vision, FrozenTower) else "BLIP's own"
        self.config = SimpleNamespace(source=source, drop_layers=0)

    @property
    def dtype(self) -> torch.dtype:
        """Of the features."""
        return torch.float32

    def describe_input(self) -> dict[str, Any]:
        """What tells these features from others, besides the weights."""
        return {"pixels": list(self.pixels), "pool": self.pool}

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> features [B, 1, D]."""
        tokens = self._model[0].encode_image(images).float()
        parts = {"cls": tokens[:, :1], "mean": tokens[:, self.first :].mean(1, keepdim=True)}
        return torch.cat(
            [parts[name] for name in (("cls", "mean") if self.pool == "both" else (self.pool,))], dim=2
        )


def labelled(config: SourceConfig) -> Source:
    """Images with one text each, the class: a folder of class folders, or a table.

    Raises:
        UserError: as `open_source`.
    """
    source = open_source(config)
    if type(source) is FolderSource:
        source = open_source(replace(config, classes=AS_FOLDERS))
    return source


@dataclass(frozen=True)
class Labelled:
    """Features of images with their classes."""

    features: Tensor
    """[n, D]"""
    labels: list[str]
    keys: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Labelled:
        """The same on a device."""
        return replace(self, features=self.features.to(device))

    def select(self, rows: Sequence[int]) -> Labelled:
        """Some of the images."""
        return Labelled(self.features[list(rows)], [self.labels[r] for r in rows], [self.keys[r] for r in rows])


def read_features(
    source: Source,
    tower: PooledTower,
    folder: Path,
    *,
    batch_size: int = 32,
    num_workers: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> Labelled:
    """Features of a source's images: read where they are on disk, computed otherwise.

    Args:
        source: as `labelled` opens it.
        folder: where they are kept.

    Raises:
        UserError: the folder holds other features, or an image has not one class.
        Stopped: a signal came; what is computed is kept.
    """
    frozen = cast(FrozenTower, tower)
    options = {"batch_size": batch_size, "num_workers": num_workers, "device": device}
    FeatureJob([source], frozen, folder, **options).run(progress)  # type: ignore[arg-type]
    cache = FeatureCache.open([folder], describe_tower(frozen))
    named = cache.source(source)
    metas, labels, keys = [], [], []
    for index in range(len(named)):
        try:
            sample = named[index]
        except BrokenSample:
            continue  # listed in the folder's skipped.jsonl
        if len(sample.texts) != 1:
            number = counted(len(sample.texts), "text")
            raise UserError(f"{sample.key} has {number}; an image to probe with has exactly one, its class")
        metas.append(sample.meta)
        labels.append(sample.texts[0])
        keys.append(sample.key)
    return Labelled(cache.read(metas)[:, 0], labels, keys)


def hold_out(images: Labelled, share: float) -> tuple[list[int], list[int]]:
    """Rows to train on and rows held out: that share of every class, by a hash of the images' names.

    A class with one image is trained on alone.
    """
    of_class: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(images.labels):
        of_class[label].append(row)
    held: list[int] = []
    for rows in of_class.values():
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held += sorted(rows, key=lambda row: stable_id(images.keys[row]))[:count]
    return sorted(set(range(len(images))) - set(held)), sorted(held)


@dataclass(frozen=True)
class Linear:
    """A linear layer over standardised features."""

    weight: Tensor
    """[K, D]"""
    bias: Tensor
    """[K]"""
    mean: Tensor
    """[D], of the features that it was trained on; `deviation` likewise"""
    deviation: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [n, K] of features [n, D]."""
        return F.linear((features - self.mean) / self.deviation, self.weight, self.bias)


def fit(features: Tensor, targets: Tensor, num_classes: int, *, l2: float, start: Linear | None = None) -> Linear:
    """Train by full-batch L-BFGS to the minimum, which is one: the loss is convex.

    Args:
        targets: int64 [n].
        l2: weight of half the sum of the squared weights; the biases are free.
        start: weights to begin at, which saves steps.
    """
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    inputs = (features - mean) / deviation
    weight = inputs.new_zeros(num_classes, inputs.shape[1]) if start is None else start.weight.clone()
    bias = inputs.new_zeros(num_classes) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    search = torch.optim.LBFGS(parameters, max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), targets) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)
    return Linear(weight.detach(), bias.detach(), mean, deviation)


def check_sweep(strengths: Sequence[float], share: float) -> None:
    """Refuse strengths of the regularisation, and a share held out, that `probe` cannot choose with.

    Raises:
        UserError: a strength is negative or not finite, there is none, or the share is not between 0 and 1.
    """
    if not strengths or not all(0 <= l2 < math.inf for l2 in strengths) or not 0 < share < 1:
        raise UserError("a sweep needs strengths that are not negative, and a share held out between 0 and 1")


def probe(
    train: Labelled, test: Labelled, *, strengths: Sequence[float] = L2, share: float = 0.1
) -> tuple[Linear, list[str], dict[str, Any]]:
    """Choose l2 on a held-out share of `train`, train on all of it, measure on `test`.

    Returns:
        the layer, its classes, and the figures: "top1", "top5" of more than five classes, "mean_per_class",
        "per_class", the chosen "l2", the "sweep", how many images were used, and the layer's parameters.

    Raises:
        UserError: as `check_sweep`; fewer than two classes, one of `test` that `train` lacks, or none to hold out.
    """
    check_sweep(strengths, share)
    classes = sorted(set(train.labels))
    if len(classes) < 2:
        raise UserError(f"a probe tells classes apart, and the training images are of {len(classes)}")
    if unknown := sorted(set(test.labels) - set(classes)):
        raise UserError(f'no training image is of the class "{unknown[0]}", which the test images have')
    number = {name: place for place, name in enumerate(classes)}
    kept, held = hold_out(train, share)
    if not held:
        raise UserError("no class has two training images, so that one could be held out")
    own, others, targets = train.select(kept), train.select(held), _numbers(train, number)
    found: dict[float, float] = {}
    layer: Linear | None = None
    for l2 in sorted(strengths, reverse=True):  # each begins where the stronger one ended
        layer = fit(own.features, targets[kept], len(classes), l2=l2, start=layer)
        found[l2] = _figures(layer, others, classes)["top1"]
    best = max(found, key=lambda l2: (found[l2], l2))  # of equal ones the stronger
    layer = fit(train.features, targets, len(classes), l2=best)
    figures = _figures(layer, test, classes)
    sweep = [{"l2": l2, "held_out_top1": top1} for l2, top1 in sorted(found.items())]
    counts = {"train_images": len(train), "held_out_images": len(held), "test_images": figures.pop("images")}
    trained = layer.weight.numel() + layer.bias.numel()
    return layer, classes, {**figures, "l2": best, "sweep": sweep, **counts, "trained_parameters": trained}


def _numbers(images: Labelled, number: dict[str, int]) -> Tensor:
    return torch.tensor([number[label] for label in images.labels], device=images.features.device)


def _figures(layer: Linear, images: Labelled, classes: Sequence[str]) -> dict[str, Any]:
    accuracy = Accuracy(classes)
    best = layer(images.features).topk(min(5, len(classes)), dim=1).indices
    for label, row in zip(images.labels, best.tolist(), strict=True):
        accuracy.add(label, [classes[place] for place in row])
    return accuracy.figures()
