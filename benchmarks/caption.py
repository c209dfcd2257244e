"""Captions of four images, beam 3, 20 new tokens: ours against transformers, ViT-B/16, 384 px.

Both write exactly 20 tokens, so that both do the same steps. In float32 the ids must be equal; in bfloat16, where
two beams of a random model may lie closer than its rounding, the log-probability of a given text must agree. The
dtype "default" is what a user gets who names none: ours computes in bfloat16 where the CPU has it, theirs in
that of the file, which is float32 for all published BLIP checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.harness import Subject, compare, dtypes_to_measure, result_of
from openblip.checkpoints.store import open_model
from openblip.core.compute import choose_dtype
from openblip.core.memory import keep_freed_memory
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.models.stepper import DecoderStepper

BATCH, BEAMS, NEW = 4, 3, 20
CASES = {"float32": 1e-4, "bfloat16": 0.05, "default": 0.05}
"""dtype -> tolerance of the outputs"""


def run(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Measure all dtypes, or `only` one."""
    rows = []
    with published.published(published.captioner(quick)):
        for dtype in dtypes_to_measure(CASES, only):
            case = "4 images, beam 3, 20 tokens"
            rows.append(
                compare(
                    "benchmarks.caption",
                    case,
                    dtype=dtype,
                    quick=quick,
                    repeats=2 if quick else 3,
                    tolerance=CASES[dtype],
                )
            )
    return result_of("caption", rows, batch=BATCH, beams=BEAMS, new_tokens=NEW)


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """One side."""
    torch.set_grad_enabled(False)
    if dtype == "default":
        torch_dtype = choose_dtype("auto", "cpu") if side == "ours" else torch.float32
    else:
        torch_dtype = getattr(torch, dtype)
    subject = Ours(torch_dtype) if side == "ours" else Theirs(torch_dtype)
    subject.exact = dtype == "float32"
    return subject


class Captioning(ABC):
    """Images; a run writes a caption for each."""

    exact = True

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.size, self.dtype, self.device = size, dtype, torch.device(device)
        self.take(BATCH)

    def take(self, batch: int) -> None:
        """Draw so many images, and texts that stand for their captions."""
        pixels = torch.randn(batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(2))
        self.pixels = pixels.to(self.device, self.dtype)
        self.text = published.texts(batch, 12, published.DEC).to(self.device)

    def outputs(self) -> dict[str, float]:
        """Ids of every caption, or the log-probability of a given one."""
        if self.exact:
            ids = self.write()
            return {f"image {i} token {j}": float(ids[i, j]) for i in range(len(ids)) for j in range(NEW)}
        logits = self.read().float().log_softmax(-1)[:, :-1]
        own = logits.gather(-1, self.text[:, 1:, None])[..., 0].sum(1)
        return {f"log-probability {i}": float(value) for i, value in enumerate(own)}

    def run(self) -> None:
        """Write."""
        self.write()

    @abstractmethod
    def write(self) -> Tensor:
        """New ids [B, 20]."""

    @abstractmethod
    def read(self) -> Tensor:
        """Logits [B, T, V] of the given texts."""


class Ours(Captioning):
    """This library."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        keep_freed_memory()
        self.model = open_model(published.folder(), like="transformers").model.to(device, dtype)
        self.config = DecodeConfig(num_beams=BEAMS, min_new_tokens=NEW, max_new_tokens=NEW)
        super().__init__(self.model.config.vision.pixels[0], dtype, device)

    def write(self) -> Tensor:
        """As the class says."""
        memory = self.model.remember(self.model.encode_image(self.pixels))
        start = torch.full((len(self.pixels), 1), published.DEC, device=self.device)
        stepper = DecoderStepper(self.model.decoder, memory)
        return decode(stepper, start, None, self.config, eos_ids=published.SEP, pad_id=0).ids

    def read(self) -> Tensor:
        """As the class says."""
        memory = self.model.remember(self.model.encode_image(self.pixels))
        logits: Tensor = self.model.decoder(self.text, memory=memory)
        return logits


class Theirs(Captioning):
    """transformers."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        from transformers import BlipForConditionalGeneration

        model: Any = BlipForConditionalGeneration.from_pretrained(published.folder(), dtype=dtype)
        self.model = model.to(device).eval()
        super().__init__(self.model.config.vision_config.image_size, dtype, device)

    def write(self) -> Tensor:
        """As the class says."""
        ids: Tensor = self.model.generate(
            pixel_values=self.pixels, num_beams=BEAMS, min_new_tokens=NEW, max_new_tokens=NEW, do_sample=False
        )
        return ids[:, -NEW:]

    def read(self) -> Tensor:
        """As the class says."""
        logits: Tensor = self.model(pixel_values=self.pixels, input_ids=self.text).logits
        return logits
