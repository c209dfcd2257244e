"""The step equals the plain path written as the original repository computes it: losses, gradients, queue, momentum
copy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip, blip_config
from openblip.objectives.configs import ObjectiveConfig
from openblip.objectives.matching import Negatives
from openblip.objectives.pretraining import BlipPretraining

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from benchmarks.reference_path import ReferencePretraining

DEC, ENC = 38, 39


def make_step() -> BlipPretraining:
    torch.manual_seed(0)
    model = Blip(blip_config("nano", vocab_size=40))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    torch.manual_seed(1)
    return BlipPretraining(model, ObjectiveConfig(queue_size=7), enc_id=ENC, dec_id=DEC).train()


@pytest.mark.parametrize(("batch", "length"), [(4, 8), (2, 30), (3, 5)])
def test_the_step_equals_the_plain_path(batch: int, length: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.randint(3, length + 1, (batch,), generator=generator)
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    ids = torch.randint(5, 38, (batch, length), generator=generator).masked_fill(~mask, 0)
    images = torch.randn(batch, 3, 64, 64, generator=generator)
    negatives = Negatives(torch.arange(batch).roll(1), torch.arange(batch).roll(-1), torch.ones(batch).bool())
    ours, other = make_step(), make_step()
    plain = ReferencePretraining(other)
    for _ in range(2):
        losses = ours(images, TokenBatch(ids, mask), negatives=negatives)
        wanted = plain(images, TokenBatch(ids, mask), negatives=negatives)
        for name, value in wanted.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        losses["loss"].backward()
        wanted["loss"].backward()
    for (name, mine), (_, theirs) in zip(
        ours.model.named_parameters(), other.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(
            mine.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"gradient of {n}: {m}"
        )
    for part in ("queue", "momentum_copy"):
        mine, theirs = getattr(ours, part).state_dict(), getattr(other, part).state_dict()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)
