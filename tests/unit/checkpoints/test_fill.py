"""Weights of a folder in a model that was made on "meta"."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from openblip.checkpoints.stored import fill
from openblip.core.meta import on_meta


class Scaled(nn.Module):
    """A layer with a buffer that is not stored."""

    def __init__(self, *, buffer_device: str | None) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.register_buffer("scale", torch.ones(3, device=buffer_device), persistent=False)


STATE = {"layer.weight": torch.ones(3, 2, dtype=torch.bfloat16), "layer.bias": torch.zeros(3)}


def test_weights_are_taken_as_float32_and_buffers_keep_their_values() -> None:
    with on_meta():
        model = Scaled(buffer_device="cpu")
    fill(model, STATE, Path("model.safetensors"))
    assert model.layer.weight.dtype == torch.float32
    assert model.layer.weight.sum() == 6
    assert model.scale.tolist() == [1, 1, 1]
    assert not model.training


def test_a_buffer_without_values_is_not_left_in_the_model() -> None:
    with on_meta():
        model = Scaled(buffer_device=None)
    with pytest.raises(AssertionError, match='no values for the buffer "scale" of Scaled'):
        fill(model, STATE, Path("model.safetensors"))
