"""Image-text similarity by any CLIP-like model that transformers opens: CLIP, OpenCLIP's, SigLIP, ALIGN.

model = open_clip_like("openai/clip-vit-large-patch14")      # a hub name or a folder
model([image], [["a red bus", "two dogs"]])                  # [[0.27, 0.11]]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from openblip.core.errors import UserError, first_line
from openblip.core.fingerprint import fingerprint
from openblip.core.places import wrong_place

__all__ = ["ClipLike", "open_clip_like"]


class ClipLike:
    """Cosine similarity of images with their texts.

    Attributes:
        fingerprint: of the weights.
    """

    def __init__(self, model: Any, processor: Any, device: torch.device | str) -> None:
        self._model, self._processor = model.to(device).eval(), processor
        self.fingerprint = fingerprint(sorted(model.state_dict().items()), whole=True)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each image one number for each of its texts."""
        flat = list(chain.from_iterable(texts))
        if not flat:
            return [[] for _ in texts]
        device = self._model.device
        pixels = self._processor(images=list(images), return_tensors="pt").to(device)
        # SigLIP was trained with texts padded to its full length, CLIP ignores what follows the text's end.
        padding = "max_length" if "siglip" in self._model.config.model_type else True
        words = self._processor(text=flat, return_tensors="pt", padding=padding, truncation=True).to(device)
        seen = _normalised(self._model.get_image_features(pixel_values=pixels["pixel_values"]))
        read = _normalised(self._model.get_text_features(**words))
        owner = [row for row, own in enumerate(texts) for _ in own]
        similarity = iter((seen[owner] * read).sum(1).tolist())
        return [[next(similarity) for _ in own] for own in texts]


def _normalised(features: Any) -> Tensor:
    # Newer versions of transformers wrap the features.
    tensor: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(tensor.float(), dim=-1)


def open_clip_like(source: Path | str, *, device: torch.device | str = "cpu") -> ClipLike:
    """Open a model by hub name or folder.

    Raises:
        UserError: it cannot be opened, or has no features of images and texts to compare.
    """
    from transformers import AutoModel, AutoProcessor

    try:
        model, processor = AutoModel.from_pretrained(source), AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if message := wrong_place(source):
            raise UserError(message) from error
        reason = first_line(error)
        raise UserError(f"{source} cannot be opened as a CLIP-like model: {reason}") from error
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise UserError(f"{source} is no CLIP-like model: {type(model).__name__} gives no features to compare")
    return ClipLike(model, processor, device)
