"""The training steps that are measured: those that the library trains with, on drawn weights and drawn batches.

    step = blip(small=False).make("cuda")        # a `Step` of the training loop
    train = Train(step, work.batch(128), "cuda", TrainConfig())
    train.run()                                  # what the training loop does in a step

The same steps are predicted without values (`benchmarks.gpu.predict`) and, in the training loop itself, tested for
host synchronisation (`tests/gpu`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from benchmarks.blip2_stage1 import drawn_model
from openblip.core.language_tokenizer import LanguageBatch
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip, BlipConfig, blip_config
from openblip.models.blip2 import Blip2Config
from openblip.models.configs import LanguageConfig, QFormerConfig, TowerConfig
from openblip.models.language import FrozenLanguage
from openblip.models.language_sizes import language_of_size
from openblip.objectives.blip2 import Blip2Stage1, Blip2Stage2
from openblip.objectives.configs import ObjectiveConfig, Stage1Config
from openblip.objectives.pretraining import BlipPretraining
from openblip.tasks.captioning import LanguagePairBatch, Stage2Step
from openblip.tasks.pairs import BlipStep, Stage1Step
from openblip.tasks.step import PairBatch, TrainingStep
from openblip.training.config import TrainConfig
from openblip.training.meters import FiniteGuard, Meters
from openblip.training.optim import make_optimizer
from openblip.training.step import HasCounts
from openblip.training.update import update

__all__ = ["DEC", "WORKS", "Train", "Work", "blip_sizes", "qformer_sizes", "small_opt", "tower_sizes"]

ENC, DEC = 30523, 30522
TOKENS = {"blip": 12, "stage1": 32, "stage2": 32}
"""of a caption: BLIP's benchmark has the mean of CC3M's, BLIP-2's the longest that its recipes train on"""


def blip_sizes(small: bool, size: str = "base", image_size: int = 224) -> BlipConfig:
    """The published sizes, or two layers on 64 px."""
    config = blip_config(size, image_size=64 if small else image_size)
    if not small:
        return config
    vision = replace(config.vision, depth=2, width=96, num_heads=4)
    text = replace(config.text, depth=2, width=96, num_heads=4, inner_width=192, memory_width=96)
    return replace(config, vision=vision, text=text)


def tower_sizes(small: bool) -> TowerConfig:
    """The paper's ViT-g/14 without its last block, in bfloat16; or a tiny tower of timm's."""
    if small:
        return TowerConfig(source="timm:vit_tiny_patch16_224", drop_layers=11, image_size=64, dtype="float32")
    return TowerConfig(dtype="bfloat16")


def qformer_sizes(small: bool) -> QFormerConfig:
    """The paper's, or two narrow layers over the tiny tower."""
    if small:
        return QFormerConfig(num_queries=8, width=96, depth=2, num_heads=4, inner_width=192, memory_width=192)
    return QFormerConfig()


@dataclass(frozen=True)
class Work:
    """A training step of one objective in one size."""

    name: str
    make: Callable[[torch.device | str], TrainingStep[Any]]
    """the step, drawn on a device"""
    batch: Callable[[int], PairBatch]
    """a batch of so many images on the CPU, as the loader and `prepare` give it"""


def _blip(small: bool) -> Work:
    config = blip_sizes(small)

    def make(device: torch.device | str) -> BlipStep:
        with torch.device(device):
            objectives = ObjectiveConfig(queue_size=960 if small else 57600)
            return BlipStep(BlipPretraining(Blip(config), objectives, enc_id=ENC, dec_id=DEC))

    def batch(rows: int) -> PairBatch:
        text = TokenBatch(*_texts(rows, TOKENS["blip"], 30000))
        return PairBatch(_pixels(rows, config.vision.pixels), text, torch.arange(rows))

    return Work("blip", make, batch)


def _blip2(small: bool, language: bool) -> Work:
    tower = tower_sizes(small)
    qformer = qformer_sizes(small)
    if language:
        qformer = replace(qformer, vocab_size=None)
    settings = LanguageConfig(dtype="float32" if small else "bfloat16") if language else None
    config = Blip2Config(vision=tower, qformer=qformer, matches=not language, language=settings)

    def make(device: torch.device | str) -> TrainingStep[Any]:
        with torch.device(device):
            llm = None
            if settings is not None:
                made = small_opt() if small else language_of_size("facebook/opt-2.7b")
                llm = FrozenLanguage(made, settings)
        model = drawn_model(config, whole=True, language=llm, device=device)
        if language:
            return Stage2Step(Blip2Stage2(model, eos_id=2))
        return Stage1Step(Blip2Stage1(model, Stage1Config(), dec_id=DEC))

    def batch(rows: int) -> PairBatch:
        side = 64 if small else 224
        pixels, rest = _pixels(rows, (side, side)), torch.arange(rows)
        if not language:
            return PairBatch(pixels, TokenBatch(*_texts(rows, TOKENS["stage1"], 30000)), rest)
        ids, mask = _texts(rows, TOKENS["stage2"], 500 if small else 50000)
        return LanguagePairBatch(pixels, LanguageBatch(ids, mask, mask, mask, torch.arange(ids.numel())), rest)

    return Work("stage2" if language else "stage1", make, batch)


def small_opt() -> Any:
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 600, "word_embed_proj_dim": 64, "attn_implementation": "sdpa"}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**sizes))


def _pixels(rows: int, sides: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (rows, 3, *sides), dtype=torch.uint8)


def _texts(rows: int, tokens: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [rows, tokens]; half of the texts are a third shorter, since real ones differ in length."""
    ids = torch.randint(200, vocabulary, (rows, tokens))
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[1::2, tokens - tokens // 3 :] = False
    return ids.masked_fill(~mask, 0), mask


WORKS: dict[str, Callable[[bool], Work]] = {
    "blip": _blip,
    "stage1": lambda small: _blip2(small, False),
    "stage2": lambda small: _blip2(small, True),
}
"""objective -> its work; True is the tiny size that runs on a CPU"""


class Train:
    """A step with its optimizer and one batch in pinned memory; a run is what the training loop does in a step."""

    holds = True
    """whether the optimizer takes a flag of values that are not finite; torch's that is not fused does not"""

    def __init__(
        self,
        step: TrainingStep[Any],
        batch: PairBatch,
        device: torch.device | str,
        config: TrainConfig,
    ) -> None:
        self.step, self.device, self.config = step.train(), torch.device(device), config
        self.optimizer = make_optimizer(step, config)
        self.parameters = [parameter for parameter in step.parameters() if parameter.requires_grad]
        self.guard, self.meters, self.count = FiniteGuard(self.device), Meters(self.device), 0
        self.batch = batch
        if self.device.type == "cuda":
            self.batch = replace(batch, images=batch.images.pin_memory())
        half = config.precision == "bfloat16"
        self.autocast: Any = contextlib.nullcontext()
        if half:
            self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16)

    def run(self) -> dict[str, Tensor]:
        """One step; losses by name."""
        if isinstance(self.step, HasCounts):
            self.step.count_step([self.batch])
        batch = send_to_device(self.batch, self.device, non_blocking=True)
        self.step.set_progress(0.5, True)
        with self.autocast:
            losses: dict[str, Tensor] = self.step(batch)
        losses["loss"].backward()
        self.meters.add(losses)
        self.count += 1
        update(
            self.optimizer, self.parameters, losses, step=self.count, guard=self.guard, meters=self.meters,
            clip_norm=self.config.clip_norm, holds=self.holds,
        )  # fmt: skip
        return losses
