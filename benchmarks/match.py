"""ITM of an image with 32 texts of 12 tokens: ours against transformers' BlipForImageTextRetrieval, ViT-B, 384 px.

Three cases, for what a user of transformers may write:

    features       the vision tower's output is at hand and repeated for the texts (the text side alone is timed)
    shared         the same, the one image's features handed over unrepeated: its attention broadcasts them
    pixels         the model's own call, the image repeated for each text, as its processor gives it

Ours is the same in all three: the image's memory is projected once and all texts read it; "pixels" adds the
vision tower, once. Weights and ids are the same, and both sides begin texts with [ENC].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.harness import Subject, compare, dtypes_to_measure, result_of
from openblip.checkpoints.store import open_model
from openblip.core.memory import keep_freed_memory

TEXTS, TOKENS = 32, 12
CASES = ("features", "shared", "pixels")
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}


def run(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Measure both dtypes, or `only` one; `quick` takes two layers and 64 px."""
    dtypes = dtypes_to_measure(TOLERANCES, only)
    rows = []
    with published.published(published.matcher(quick)):
        for dtype in dtypes:
            for case in CASES:
                slow = case == "pixels"  # 32 images through transformers' vision tower
                row = compare(
                    "benchmarks.match",
                    case,
                    dtype=dtype,
                    quick=quick,
                    repeats=2 if quick else 1 if slow else 5,
                    tolerance=TOLERANCES[dtype],
                )
                pairs = {
                    f"{side}_ms_per_pair": round(1000 * row[f"{side}_s"] / TEXTS, 2) for side in ("ours", "peer")
                }
                rows.append({**row, **pairs})
    return result_of("match", rows, texts=TEXTS, tokens=TOKENS)


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """One side of a case."""
    torch.set_grad_enabled(False)
    torch_dtype = getattr(torch, dtype)
    return Ours(case, torch_dtype) if side == "ours" else Theirs(case, torch_dtype)


class Matching(ABC):
    """Ids and an image; a run scores all texts with it."""

    def __init__(
        self, case: str, dtype: torch.dtype, device: torch.device | str = "cpu", texts: int = TEXTS
    ) -> None:
        self.case, self.dtype, self.device = case, dtype, torch.device(device)
        self.ids = published.texts(texts, TOKENS, published.ENC).to(device)
        self.embeds = torch.empty(0)
        self.pixels = torch.empty(0)

    def look(self, size: int) -> None:
        """Draw the image, and see it where a case begins with what was seen."""
        pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
        self.pixels = pixels.to(self.device, self.dtype)
        self.embeds = self.see(self.pixels)

    def outputs(self) -> dict[str, float]:
        """The probability of each pair, as its logit."""
        scores = self.score().float()
        return {f"text {i}": float(value) for i, value in enumerate(scores[:, 1] - scores[:, 0])}

    def run(self) -> None:
        """All pairs."""
        self.score()

    @abstractmethod
    def see(self, pixels: Tensor) -> Tensor:
        """image_embeds of images."""

    @abstractmethod
    def score(self) -> Tensor:
        """ITM logits [texts, 2]."""


class Ours(Matching):
    """This library."""

    def __init__(
        self, case: str, dtype: torch.dtype, device: torch.device | str = "cpu", texts: int = TEXTS
    ) -> None:
        super().__init__(case, dtype, device, texts)
        keep_freed_memory()
        self.model = open_model(published.folder(), like="transformers").model.to(device, dtype)
        self.look(self.model.config.vision.pixels[0])

    def see(self, pixels: Tensor) -> Tensor:
        """As the class says."""
        embeds: Tensor = self.model.encode_image(pixels)
        return embeds

    def score(self) -> Tensor:
        """As the class says."""
        embeds = self.see(self.pixels) if self.case == "pixels" else self.embeds
        scores: Tensor = self.model.match(self.ids, None, self.model.remember(embeds))
        return scores


class Theirs(Matching):
    """transformers."""

    def __init__(
        self, case: str, dtype: torch.dtype, device: torch.device | str = "cpu", texts: int = TEXTS
    ) -> None:
        from transformers import BlipForImageTextRetrieval

        super().__init__(case, dtype, device, texts)
        model: Any = BlipForImageTextRetrieval.from_pretrained(published.folder(), dtype=dtype)
        self.model = model.to(device).eval()
        self.look(self.model.config.vision_config.image_size)

    def see(self, pixels: Tensor) -> Tensor:
        """As the class says."""
        embeds: Tensor = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return embeds

    def score(self) -> Tensor:
        """As the class says."""
        mask = torch.ones_like(self.ids)
        if self.case == "pixels":
            pixels = self.pixels.expand(len(self.ids), -1, -1, -1).contiguous()
            whole: Tensor = self.model(input_ids=self.ids, attention_mask=mask, pixel_values=pixels).itm_score
            return whole
        embeds = self.embeds if self.case == "shared" else self.embeds.repeat(len(self.ids), 1, 1)
        hidden = self.model.text_encoder(
            input_ids=self.ids,
            attention_mask=mask,
            encoder_hidden_states=embeds,
            encoder_attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=self.device),
        ).last_hidden_state
        scores: Tensor = self.model.itm_head(hidden[:, 0])
        return scores
