"""What models are trained on: objectives with their weights and shares, read without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openblip.core.errors import UserError, nearest

__all__ = [
    "BLIP_OBJECTIVES",
    "STAGE1_OBJECTIVES",
    "DrawnFrom",
    "ObjectiveConfig",
    "SelfCriticalConfig",
    "Stage1Config",
]


DrawnFrom = Literal["rank", "all"]
"""negatives come from the pairs of the own rank, or from those of all ranks"""

BLIP_OBJECTIVES = ("itc", "itm", "lm")
NEGATIVE_FLOOR = 1e-4
"""what pre-training adds to each weight by which negatives are drawn"""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What a BLIP model is trained on; the defaults are the paper's pre-training."""

    objectives: tuple[str, ...] = BLIP_OBJECTIVES
    """Any of "itc", "itm", "lm"; "itm" draws its negatives from ITC's similarities and needs it."""
    queue_size: int = 57600
    """Momentum features kept of each modality."""
    momentum: float = 0.995
    """Momentum of the copies whose features ITC compares with. 0 compares with the model's own features, without
    copies and without their forward pass, which short runs without a queue do not need."""
    alpha: float = 0.4
    """Weight of the momentum model's similarities in ITC's targets."""
    alpha_ramp_epochs: float = 1.0
    """Epochs over which alpha grows linearly from 0: 1 as in BLIP's fine-tuning for retrieval; its pre-training
    takes 2."""
    temperature_min: float = 0.001
    temperature_max: float = 0.5
    label_smoothing: float = 0.1
    """Label smoothing of LM."""
    use_image_ids: bool = False
    """Whether captions of one image are positives of each other and never negatives (fine-tuning for retrieval)."""
    hard_share: float = 1.0
    """Fraction of ITM's negatives drawn by similarity; the papers draw all. Below 1 the rest is drawn uniformly,
    which moves ITM's threshold to where texts of any other image are distinguished (a filter), not only the most
    similar."""
    negatives: DrawnFrom = "rank"
    """Whose pairs ITM draws its negatives from: "rank" as in pre-training, or "all" ranks' as the reference does in
    fine-tuning for retrieval on COCO, at the cost of gathering the image features and projecting B images more."""
    negative_floor: float = NEGATIVE_FLOOR
    """Added to the softmax by which negatives are drawn; 0 as in the reference's fine-tuning for retrieval. Where
    the softmax of the own pair is near 1, it makes draws nearly uniform."""
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of ITC, ITM and LM in the sum."""

    def __post_init__(self) -> None:
        for name in self.objectives:
            if name not in BLIP_OBJECTIVES:
                raise UserError(f'unknown objective "{name}"{nearest(name, BLIP_OBJECTIVES)}')
        if "itm" in self.objectives and "itc" not in self.objectives:
            raise UserError('the objective "itm" draws its negatives from "itc": name both')
        if not self.objectives:
            raise UserError('no objective is named: choose from "itc", "itm", "lm"')
        if not 0 <= self.hard_share <= 1:
            raise UserError(f"hard_share is a share between 0 and 1, not {self.hard_share}")
        if not 0 <= self.negative_floor < 1:
            raise UserError(f"negative_floor lies between 0 and 1, not at {self.negative_floor}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum lies between 0 and 1, not at {self.momentum}")
        if self.momentum == 0 and (self.queue_size or self.alpha):
            raise UserError(
                "momentum = 0 keeps no copies for a queue or for soft targets: set queue_size = 0 and alpha = 0"
            )
        if self.queue_size < 0:
            raise UserError(f"queue_size cannot be {self.queue_size}: it counts features")


STAGE1_OBJECTIVES = ("itc", "itm", "itg")


@dataclass(frozen=True, kw_only=True)
class Stage1Config:
    """What stage 1 trains on; the defaults are the paper's."""

    objectives: tuple[str, ...] = STAGE1_OBJECTIVES
    """Any of "itc", "itm", "itg"; "itm" draws its negatives from ITC's similarities and needs it."""
    label_smoothing: float = 0.1
    """Label smoothing of ITC and ITG."""
    use_image_ids: bool = False
    """Whether captions of one image are positives of each other and never negatives (fine-tuning for retrieval)."""
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of ITC, ITM and ITG in the sum."""
    hard_share: float = 1.0
    """Fraction of ITM's negatives drawn by similarity; the paper draws all. The rest is drawn uniformly."""
    itm_share: float = 1.0
    """Fraction of a batch's pairs that ITM reads, with negatives from the whole batch; the paper reads all.
    ITM reads three rows of queries and text for a pair, ITC and ITG read one each."""
    itg_share: float = 1.0
    """Fraction of a batch's pairs that ITG reads; the paper reads all. With small shares of ITM and ITG a larger
    batch of ITC takes the same time."""
    negatives: DrawnFrom = "rank"
    """Whose pairs ITM draws its negatives from: the own "rank"'s, or "all" ranks' as LAVIS does, which gathers the
    tower's features (257 tokens of 1,408 numbers for each image of ViT-g) and projects B images more."""
    negative_floor: float = NEGATIVE_FLOOR
    """Added to the softmax by which negatives are drawn; 0 as in LAVIS' fine-tuning for retrieval."""

    def __post_init__(self) -> None:
        for name in self.objectives:
            if name not in STAGE1_OBJECTIVES:
                raise UserError(f'unknown objective "{name}"{nearest(name, STAGE1_OBJECTIVES)}')
        if "itm" in self.objectives and "itc" not in self.objectives:
            raise UserError('the objective "itm" draws its negatives from "itc": name both')
        if not self.objectives:
            raise UserError('no objective is named: choose from "itc", "itm", "itg"')
        if not 0 <= self.hard_share <= 1:
            raise UserError(f"hard_share is a share between 0 and 1, not {self.hard_share}")
        if not 0 <= self.negative_floor < 1:
            raise UserError(f"negative_floor lies between 0 and 1, not at {self.negative_floor}")
        for name in ("itm_share", "itg_share"):
            if not 0 < (share := getattr(self, name)) <= 1:
                raise UserError(f"{name} is a share above 0 and at most 1, not {share}")


@dataclass(frozen=True, kw_only=True)
class SelfCriticalConfig:
    """Training a captioner with CIDEr-D as reward."""

    samples: int = 0
    """Captions sampled for each image; 0 trains by likelihood (LM). 5 is usual."""
    baseline: Literal["samples", "greedy"] = "samples"
    """What an image's reward is compared with: the mean of its other samples, or the greedy caption."""
    max_new_tokens: int = 20
    """Most tokens of a sampled caption, the end token included."""

    def __post_init__(self) -> None:
        if self.samples < 0 or self.max_new_tokens < 1:
            raise UserError("scst.samples cannot be negative, and scst.max_new_tokens must be at least 1")
        if self.samples == 1 and self.baseline == "samples":
            raise UserError('scst.samples = 1 leaves no other sample to compare with; set scst.baseline = "greedy"')
