"""Inputs of ONNX graphs of small models, and how what they give is compared with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from openblip.models.layers import ImageMemory, KVCache

TEXTS = ("a red bus on a road", "two dogs", "a cat on a red chair", "a dog beside a long bus", "the road")
# Products of another library sum in another order; float32 through a few layers of width 64 stays far below.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
LAYERS, HEADS, WIDTH, SIDE = 2, 2, 64, (32, 48)
Arrays = dict[str, Any]


def run_graph(folder: Path, name: str, inputs: Arrays) -> Arrays:
    """Run the graph of a name on tensors by name."""
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    given = session.run(None, {key: np.asarray(value) for key, value in inputs.items()})
    return dict(zip((port.name for port in session.get_outputs()), given, strict=True))


def pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, *SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def words(rows: int, length: int, first: int) -> tuple[Tensor, Tensor]:
    """Random ids and a mask; every second row is padded where there is room."""
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(rows + length))
    ids[:, 0] = first
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1::2, max(1, length - 3) :] = False
    return ids.masked_fill(~mask, 0), mask


def layers(name: str, tensors: ImageMemory | KVCache) -> Arrays:
    """Keys and values by the names that the graphs give them."""
    parts = {"key": tensors.keys, "value": tensors.values}
    return {f"{name}.{n}.{part}": layer for part, values in parts.items() for n, layer in enumerate(values)}


def same(found: Any, expected: Tensor, what: str = "") -> None:
    np.testing.assert_allclose(found, expected.numpy(), err_msg=what, **CLOSE)
