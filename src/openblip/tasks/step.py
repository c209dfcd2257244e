"""From a batch of pictures and texts to BLIP's losses: tokens on the way in, the objectives inside.

`prepare` runs in the loop's process (tokenising takes microseconds for each caption), `BlipStep` on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openblip.core.runtime import average
from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.data.sample import Batch
from openblip.data.transforms import normalize
from openblip.objectives.pretraining import BlipPretraining

__all__ = ["BlipStep", "TrainBatch", "depth_of_layers", "make_prepare"]


@dataclass(frozen=True)
class TrainBatch:
    """What BLIP trains on: B pictures, their texts as ids."""

    images: Tensor
    """uint8 [B, 3, S, S]; made floats on the device"""
    text: TokenBatch
    image_ids: Tensor
    """int64 [B]"""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TrainBatch:
        """Move all tensors."""
        return TrainBatch(
            self.images.to(device, non_blocking=non_blocking),
            self.text.to(device, non_blocking=non_blocking),
            self.image_ids.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return len(self.images)


def make_prepare(tokenizer: TextTokenizer, *, max_length: int, prompt: str = "") -> Callable[[Batch], TrainBatch]:
    """A function from the loader's batches to `TrainBatch`es.

    Args:
        max_length: tokens of a text, first and last included; longer ones are cut.
        prompt: put before every text, as in fine-tuning a captioner.
    """

    def prepare(batch: Batch) -> TrainBatch:
        texts = [prompt + text for text in batch.texts] if prompt else batch.texts
        return TrainBatch(batch.images, tokenizer.encode(texts, max_length=max_length), batch.image_ids)

    return prepare


class BlipStep(nn.Module):
    """`BlipPretraining` over `TrainBatch`es: the training loop's step.

    Args:
        prompt_length: tokens at the start that LM does not score, see `BlipPretraining.forward`.
    """

    num_tokens: Tensor

    def __init__(self, objective: BlipPretraining, *, prompt_length: int = 0) -> None:
        super().__init__()
        self.objective = objective
        self.prompt_length = prompt_length
        self.register_buffer("num_tokens", torch.zeros(()), persistent=False)
        self._counted = False

    def set_progress(self, epoch: float, new_step: bool) -> None:
        """As `BlipPretraining.set_progress`."""
        self.objective.set_progress(epoch, new_step)

    def count_step(self, batches: Sequence[TrainBatch]) -> None:
        """Take note of how many tokens LM scores in a step: on average in a micro-batch of a process.

        Without this each batch's loss is the mean over its own tokens, and a token of a batch of short texts
        would weigh more than one of a batch of long texts.
        """
        first = max(1, self.prompt_length)
        scored = sum(int(batch.text.attention_mask[:, first:].sum()) for batch in batches)
        self.num_tokens.fill_(scored / len(batches))
        self.num_tokens.copy_(average(self.num_tokens))
        self._counted = True

    def gradient_checkpointing_enable(self) -> None:
        """As `Blip.gradient_checkpointing_enable`."""
        self.objective.gradient_checkpointing_enable()

    def layer_ids(self) -> dict[str, int]:
        """Depth of each parameter for layer-wise decay, see `depth_of_layers`."""
        config = self.objective.model.config
        return depth_of_layers(self, config.vision.depth, config.text.depth)

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        return self.objective(
            normalize(batch.images),
            batch.text,
            batch.image_ids,
            prompt_length=self.prompt_length,
            num_tokens=self.num_tokens if self._counted else None,
        )


def depth_of_layers(module: nn.Module, vision_depth: int, text_depth: int) -> dict[str, int]:
    """Depth of each parameter for layer-wise decay: stem 0, block i at i + 1, all else above the last.

    The vision tower and the text transformers each count from their own bottom, ending at the same top.
    """
    top = max(vision_depth, text_depth) + 1
    ids: dict[str, int] = {}
    for name, _ in module.named_parameters():
        parts = name.split(".")
        depth = vision_depth if ".vision." in name else text_depth
        if "blocks" in parts:
            ids[name] = top - depth + int(parts[parts.index("blocks") + 1])
        elif any(part in name for part in ("patch_embed", "pos_embed", "cls_token", "embeddings")):
            ids[name] = top - depth - 1
        else:
            ids[name] = top
    return ids
