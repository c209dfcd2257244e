"""One training step of BLIP ViT-B: 224 px, batch 8, captions of 12 tokens, queue of 57,600, AdamW.

Ours is `BlipPretraining`, the peer computes the same as the original repository does
(`benchmarks.reference_path`): same weights, same negatives while outputs are compared, the same optimiser.
Outputs (losses, the norm of every parameter's gradient) are compared without dropout, time is taken with it.

Both sides use torch's fused AdamW. The plain one walks over 250 million parameters once for each of its
dozen operations, the fused one once in all; with it the optimiser is no part of the comparison.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.harness import SLOW_BFLOAT16, Subject, compare, dtypes_to_measure, matmul_gflops, result_of
from benchmarks.reference_path import ReferencePretraining
from openblip.core.memory import keep_freed_memory
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip, BlipConfig, blip_config
from openblip.objectives.configs import ObjectiveConfig
from openblip.objectives.matching import Negatives
from openblip.objectives.pretraining import BlipPretraining

BATCH, TOKENS = 8, 12
ENC, DEC = 30523, 30522
FUSED = "openblip.models.vision.uses_fused_attention"
REPOSITORY_S = 22.4
"""what the original repository took for this step on a machine of this kind, float32"""


def run(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Measure both dtypes, or `only` one; `quick` takes two layers and 64 pixels."""
    case = "two layers, 64 px" if quick else "ViT-B, 224 px, batch 8, 12 tokens"
    tolerances = {"float32": 1e-4, "bfloat16": 0.05}
    dtypes = dtypes_to_measure(tolerances, only)
    skipped = [SLOW_BFLOAT16] if only is None and "bfloat16" not in dtypes else []
    rows = []
    for dtype in dtypes:
        rate = matmul_gflops(dtype)
        row = compare(
            "benchmarks.blip_pretrain",
            case,
            dtype=dtype,
            quick=quick,
            repeats=2 if quick else 3,
            tolerance=tolerances[dtype],
            profile=True,
        )
        rate = max(rate, matmul_gflops(dtype))
        # What the arithmetic alone would take at the rate of a large matrix product.
        row |= {"matmul_gflops": rate, "floor_s": round(1000 * row["ours_tflop"] / rate, 3)}
        rows.append(row)
    more = {} if quick else {"repository_s": REPOSITORY_S}
    return result_of("blip-pretrain", rows, skipped=skipped, **more)


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """The training step of one side."""
    return TrainingStep(side, dtype, config_of(quick), queue_size=960 if quick else 57600)


def config_of(quick: bool) -> BlipConfig:
    """ViT-B, or two layers of it on small images."""
    config = blip_config("base", image_size=64 if quick else 224)
    if quick:
        config = replace(config, vision=replace(config.vision, depth=2), text=replace(config.text, depth=2))
    return config


class TrainingStep:
    """A model, a batch and an optimiser; every run is one whole step."""

    def __init__(
        self,
        side: str,
        dtype: str,
        config: BlipConfig,
        *,
        queue_size: int,
        batch: int = BATCH,
        device: torch.device | str = "cpu",
    ) -> None:
        keep_freed_memory()  # on both sides, as the command line does: without it the allocator is measured
        torch.manual_seed(0)
        self.device = torch.device(device)
        with self.device:
            step = BlipPretraining(Blip(config), ObjectiveConfig(queue_size=queue_size), enc_id=ENC, dec_id=DEC)
        _unsettle(step)
        self.step = step.train()
        self.module: nn.Module = step if side == "ours" else ReferencePretraining(step).train()
        self.dropout = config.text.dropout
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
        self.written_out = side == "peer"
        self.optimizer = torch.optim.AdamW(step.model.parameters(), lr=1e-6, weight_decay=0.05, fused=True)
        self.images = torch.randn(batch, 3, *config.vision.pixels, device=self.device)
        ids = torch.randint(1000, 30000, (batch, TOKENS), device=self.device)
        ids[:, 0], ids[:, -1] = 101, 102
        self.text = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    def outputs(self) -> dict[str, float]:
        """Losses and the norm of each parameter's gradient, with negatives given and without dropout."""
        own = torch.arange(len(self.images), device=self.device)
        negatives = Negatives(own.roll(1), own.roll(3), torch.ones_like(own, dtype=torch.bool))
        _set_dropout(self.step, 0.0)
        losses = self._losses(negatives)
        losses["loss"].backward()
        named = {name: float(value.detach()) for name, value in losses.items() if name != "itm_accuracy"}
        for name, parameter in self.step.model.named_parameters():
            assert parameter.grad is not None, name
            named[f"gradient of {name}"] = float(parameter.grad.norm())
        self.optimizer.zero_grad()
        _set_dropout(self.step, self.dropout)
        return named

    def run(self) -> None:
        """Forward, backward, optimiser."""
        self._losses(None)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _losses(self, negatives: Negatives | None) -> dict[str, Tensor]:
        # The original repository's vision tower writes attention out, on every device.
        attention = mock.patch(FUSED, return_value=False) if self.written_out else nullcontext()
        with self.autocast, attention:
            losses: dict[str, Tensor] = self.module(self.images, self.text, negatives=negatives)
        return losses


@torch.no_grad()
def _unsettle(step: BlipPretraining) -> None:
    """Make the text's weights large enough for attention and for every loss to depend on all that they read."""
    for name, parameter in step.model.named_parameters():
        if "text" in name and parameter.ndim == 2 and "embeddings" not in name:
            parameter.mul_(2.0)
    assert step.momentum_copy is not None
    step.momentum_copy.update(step.model)


def _set_dropout(module: nn.Module, rate: float) -> None:
    for part in module.modules():
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = rate  # type: ignore[assignment]
