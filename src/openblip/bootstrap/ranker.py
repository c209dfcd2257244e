"""An outside image-text similarity model, for BLIP-2's policy: any CLIP-like model that transformers opens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image

from openblip.checkpoints.clip import open_clip_like

__all__ = ["Ranker", "open_ranker"]


class Ranker(Protocol):
    """Cosine similarity of images with their texts."""

    fingerprint: str

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each image one number for each of its texts."""


def open_ranker(name: str, device: torch.device | str) -> Ranker:
    """Open a CLIP-like model by hub name or folder."""
    return open_clip_like(name, device=device)
