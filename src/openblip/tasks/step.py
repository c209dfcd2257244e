"""From prepared batches to named losses: what every task's training step shares.

`prepare` runs in the loop's process (tokenising takes microseconds for each text), the step on the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from openblip.core.language_tokenizer import LanguageBatch
from openblip.core.runtime import average
from openblip.core.tokenizer import TokenBatch
from openblip.data.batches import TextMode
from openblip.data.clean import CleanText
from openblip.data.sample import Batch
from openblip.models.layers import CrossAttention
from openblip.models.tower_parts import block_list
from openblip.tasks.feature_cache import FeatureCache
from openblip.training.step import Prepare

__all__ = ["PairBatch", "PreparedBatch", "Training", "TrainingStep", "depth_of_layers", "images_of", "unless_even"]


@dataclass(frozen=True)
class PreparedBatch(ABC):
    """Tensors of B samples for one forward pass, and how much of what the loss is a mean over it holds."""

    images: Tensor
    """uint8 [B, 3, H, W], of several images [B, K, 3, H, W], normalised on the device; or features [B, N, D] of a
    frozen tower"""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Any:
        """Move all tensors."""
        moved = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if hasattr(value := getattr(self, field.name), "to")
        }
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.images)

    @property
    @abstractmethod
    def num_scored(self) -> int:
        """What the loss is divided by: tokens of language modelling, questions, or statements."""


@dataclass(frozen=True)
class PairBatch(PreparedBatch):
    """B images with a text each."""

    text: TokenBatch | LanguageBatch
    """of the text transformer or Q-Former, or what a language model generates"""
    image_ids: Tensor
    """int64 [B]"""
    prompt_length: int = 0
    """tokens at the start that carry no loss"""
    num_written: int | None = None
    """the first texts, which language modelling reads; None is all"""

    @property
    def num_scored(self) -> int:
        """Tokens that language modelling scores."""
        return int(self.text.attention_mask[: self.num_written, max(1, self.prompt_length) :].sum())


_Batch = TypeVar("_Batch", bound=PreparedBatch)


class TrainingStep(nn.Module, ABC, Generic[_Batch]):
    """An objective over prepared batches, as the training loop takes it.

    Args:
        objective: a module with its `model`; subclasses say in `forward` what it is given.
    """

    num_scored: Tensor

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = objective
        self.register_buffer("num_scored", torch.zeros(()), persistent=False)
        self._counted = False

    @property
    def model(self) -> Any:
        """What is trained."""
        return self.objective.model

    def set_progress(self, epoch: float, new_step: bool) -> None:
        """Tell the objective how far training is, where it wants to know."""
        if hasattr(self.objective, "set_progress"):
            self.objective.set_progress(epoch, new_step)

    def count_step(self, batches: Sequence[_Batch]) -> None:
        """Take note of how much a step scores: on average in a micro-batch of a process.

        Without this each batch's loss is the mean over its own tokens, and a token of a batch of short texts
        would weigh more than one of a batch of long texts.
        """
        self.num_scored.fill_(sum(batch.num_scored for batch in batches) / len(batches))
        self.num_scored.copy_(average(self.num_scored))
        self._counted = True

    @property
    def divisor(self) -> Tensor | None:
        """What the loss's sum is divided by; None is what the batch itself holds."""
        return self.num_scored if self._counted else None

    def gradient_checkpointing_enable(self, share: float = 1.0) -> None:
        """Recompute the activations of a share of the blocks in the backward pass."""
        self.model.gradient_checkpointing_enable(share)

    def frozen_parameter_names(self) -> set[str]:
        """Names of the parameters that no checkpoint holds."""
        frozen = getattr(self.model, "frozen_parameter_names", None)
        return {f"objective.model.{name}" for name in frozen()} if frozen is not None else set()

    def whole_layers(self) -> set[str]:
        """Classes of modules with cross-attention, which projects an image once for all that reads it.

        It does so before the blocks around it are run.
        """
        around = [part for part in self.modules() if any(isinstance(one, CrossAttention) for one in part.modules())]
        return {type(part).__name__ for part in around}

    def layer_ids(self) -> dict[str, int]:
        """Depth of each parameter for layer-wise decay, see `depth_of_layers`."""
        return depth_of_layers(self, *self.model.depths)

    @abstractmethod
    def forward(self, batch: _Batch) -> dict[str, Tensor]:
        """Losses of a batch by name, scalars; "loss" is minimised."""


@dataclass(frozen=True)
class Training:
    """What a task trains on a run's data."""

    step: TrainingStep[Any]
    prepare: Prepare
    clean: CleanText = "none"
    max_words: int | None = None
    text_mode: TextMode = "random"
    answers: Sequence[str] = ()
    """to choose from when answers are ranked"""
    find_unused_parameters: bool = False
    """some trained parameters take no part in the losses"""
    begin: Callable[[Iterable[Batch]], object] | None = None
    """starts weights from the first batches of a run, which are the same on all ranks"""


def images_of(cache: FeatureCache | None) -> Callable[[Batch], Tensor]:
    """What a step is given of a batch's images: their pixels, or the features that `cache` holds."""
    return (lambda batch: batch.images) if cache is None else (lambda batch: cache.read(batch.meta, batch.images))


def unless_even(owner: Tensor, count: int) -> Tensor | None:
    """None where each of `count` owners has equally many rows, which then need not be gathered."""
    each = torch.bincount(owner, minlength=count)
    return None if bool((each == each[0]).all()) else owner


def depth_of_layers(module: nn.Module, vision_depth: int, text_depth: int | None) -> dict[str, int]:
    """Depth of each parameter for layer-wise decay: stem 0, block i at i + 1, all else above the last.

    The vision tower and the text transformers each count from their own bottom, ending at the same top.

    Args:
        text_depth: None where the rate of the tower alone falls by layer: all else stands at the top.
    """
    top = max(vision_depth, text_depth or 0) + 1
    ids: dict[str, int] = {}
    towers = _blocks_of_towers(module)
    for name, _ in module.named_parameters():
        depth = vision_depth if ".vision." in name else text_depth
        block = _block_of(name, towers)
        if depth is None:
            ids[name] = top
        elif block is not None:
            ids[name] = top - depth + block
        elif any(part in name for part in ("patch_embed", "pos_embed", "cls_token", "embeddings")):
            ids[name] = top - depth - 1
        else:
            ids[name] = top
    return ids


def _blocks_of_towers(module: nn.Module) -> dict[str, str]:
    """For each vision tower, by its name with a dot, the name of its blocks; "" where there is no one list."""
    found: dict[str, str] = {}
    for name, part in module.named_modules():
        if name.rpartition(".")[2] == "vision":
            blocks = block_list(part)
            found[f"{name}."] = "" if blocks is None else f"{name}.{blocks[0]}."
    return found


def _block_of(name: str, towers: Mapping[str, str]) -> int | None:
    """Number of the block that a parameter is in; towers of others call their blocks `layers` or `layer`."""
    blocks = next((blocks for tower, blocks in towers.items() if name.startswith(tower)), ".blocks.")
    _, found, rest = name.partition(blocks) if blocks else ("", "", "")
    return int(rest.partition(".")[0]) if found else None
