"""BLIP on torch, and by onnxruntime on the graphs of `openblip convert --to onnx`: ViT-B/16, 384 px.

Three cases, float32, which is the graphs' dtype:

    images      4 images to ITC features and image memories
    match       ITM of one image's memory with 32 texts of 12 tokens
    caption     4 memories to 20 tokens each, greedily, one token at a time over the cache

Weights, inputs and number of threads are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import published
from benchmarks.harness import THREADS, Subject, compare, result_of
from openblip.checkpoints.store import open_model
from openblip.core.errors import require
from openblip.core.memory import keep_freed_memory
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.models.layers import ImageMemory
from openblip.models.stepper import DecoderStepper

CASES = ("images", "match", "caption")
IMAGES, TEXTS, TOKENS, NEW = 4, 32, 12, 20
Arrays = dict[str, Any]


def run(quick: bool) -> dict[str, Any]:
    """Measure all cases; `quick` takes two layers and 64 px."""
    with published.published(published.both(quick), "openblip", "onnx"):
        repeats = 2 if quick else 5
        rows = [compare("benchmarks.onnx_runtime", case, quick=quick, repeats=repeats) for case in CASES]
    runtime = require("onnxruntime", "onnx").__version__
    return result_of("onnx", rows, images=IMAGES, texts=TEXTS, new_tokens=NEW, onnxruntime=runtime)


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """One side of a case."""
    torch.set_grad_enabled(False)
    return Torch(case) if side == "ours" else OnnxRuntime(case)


class Using(ABC):
    """Images and texts; a run does what the case says."""

    def __init__(self, case: str, pixels: tuple[int, int]) -> None:
        self.case = case
        images = 1 if case == "match" else IMAGES
        generator = torch.Generator().manual_seed(2)
        self.pixels = torch.randint(0, 256, (images, 3, *pixels), dtype=torch.uint8, generator=generator)
        self.ids = published.texts(TEXTS, TOKENS, published.ENC)
        self.features, self.memory = self.see()

    def outputs(self) -> dict[str, float]:
        """Similarities of the images and sizes of their memories, probabilities of a match, or ids."""
        if self.case == "images":
            given = torch.cat((self.features @ self.features.T, self.size(self.memory)), dim=1)
        else:
            given = self.match().softmax(1)[:, 1] if self.case == "match" else self.write()
        return {f"number {i}": float(value) for i, value in enumerate(given.flatten())}

    def run(self) -> None:
        """What the case says."""
        {"images": self.see, "match": self.match, "caption": self.write}[self.case]()

    @abstractmethod
    def see(self) -> tuple[Tensor, Any]:
        """ITC features [B, E] and memories of the images."""

    @abstractmethod
    def size(self, memory: Any) -> Tensor:
        """The mean size of each head's last values, [B, H]."""

    @abstractmethod
    def match(self) -> Tensor:
        """ITM logits [texts, 2]."""

    @abstractmethod
    def write(self) -> Tensor:
        """New ids [B, 20]."""


class Torch(Using):
    """This library."""

    def __init__(self, case: str) -> None:
        keep_freed_memory()
        self.model = open_model(published.folder("openblip")).model
        super().__init__(case, self.model.config.vision.pixels)

    def see(self) -> tuple[Tensor, ImageMemory]:
        """As the class says."""
        embeds = self.model.encode_pixels(self.pixels)
        return self.model.image_features(embeds), self.model.remember(embeds)

    def size(self, memory: ImageMemory) -> Tensor:
        """As the class says."""
        return memory.values[-1].abs().mean((2, 3))

    def match(self) -> Tensor:
        """As the class says."""
        logits: Tensor = self.model.match(self.ids, torch.ones_like(self.ids, dtype=torch.bool), self.memory)
        return logits

    def write(self) -> Tensor:
        """As the class says."""
        start = torch.full((IMAGES, 1), published.DEC)
        config = DecodeConfig(num_beams=1, min_new_tokens=NEW, max_new_tokens=NEW)
        stepper = DecoderStepper(self.model.decoder, self.memory)
        return decode(stepper, start, None, config, eos_ids=published.SEP, pad_id=0).ids


class OnnxRuntime(Using):
    """onnxruntime on the CPU."""

    def __init__(self, case: str) -> None:
        runtime = require("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = THREADS
        names = {"images": ("image",), "match": ("image", "match"), "caption": ("image", "decoder")}[case]
        self.sessions = {
            name: runtime.InferenceSession(
                published.folder("onnx") / f"{name}.onnx", options, providers=["CPUExecutionProvider"]
            )
            for name in names
        }
        super().__init__(case, tuple(self.sessions["image"].get_inputs()[0].shape[2:]))

    def compute(self, name: str, inputs: Arrays) -> Arrays:
        """What a graph gives, by name."""
        session = self.sessions[name]
        return dict(zip((port.name for port in session.get_outputs()), session.run(None, inputs), strict=True))

    def see(self) -> tuple[Tensor, Arrays]:
        """As the class says."""
        given = self.compute("image", {"pixels": self.pixels.numpy()})
        return torch.from_numpy(given.pop("image_features")), given

    def size(self, memory: Arrays) -> Tensor:
        """As the class says."""
        return torch.from_numpy(memory[list(memory)[-1]]).abs().mean((2, 3))

    def match(self) -> Tensor:
        """As the class says."""
        ids = self.ids.numpy()
        given = self.compute("match", {"input_ids": ids, "attention_mask": np.ones_like(ids), **self.memory})
        return torch.from_numpy(given["itm_logits"])

    def write(self) -> Tensor:
        """As the class says."""
        ports = [port for port in self.sessions["decoder"].get_inputs() if port.name.startswith("past.")]
        past = {port.name: np.zeros((IMAGES, port.shape[1], 0, port.shape[3]), dtype=np.float32) for port in ports}
        written = np.full((IMAGES, 1), published.DEC)
        for _ in range(NEW):
            inputs = {"input_ids": written[:, -1:], "attention_mask": np.ones_like(written), **self.memory, **past}
            given = self.compute("decoder", inputs)
            logits = given["logits"][:, -1]
            logits[:, published.SEP] = -np.inf
            written = np.concatenate((written, logits.argmax(-1)[:, None]), axis=1)
            past = {name: given[name.replace("past", "present")] for name in past}
        return torch.from_numpy(written[:, 1:])
