"""What a BLIP-2 run depends on: which stage, which frozen parts, the data, the numbers of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openblip.core.config import from_dict, read_table
from openblip.core.errors import UserError
from openblip.data.sources.base import SourceConfig
from openblip.data.transforms import ImageTransformConfig
from openblip.generation.types import DecodeConfig
from openblip.models.language import LanguageConfig
from openblip.models.qformer import QFormerConfig
from openblip.models.tower import TowerConfig
from openblip.objectives.blip2 import Stage1Config
from openblip.training.config import TrainConfig

__all__ = ["MAY_CHANGE", "QFORMERS", "Blip2RunConfig", "load_blip2_config"]

QFORMERS: dict[str, QFormerConfig] = {
    "base": QFormerConfig(),
    "micro": QFormerConfig(num_queries=16, width=256, depth=4, num_heads=4, inner_width=1024, max_positions=128),
    "nano": QFormerConfig(num_queries=8, width=64, depth=2, num_heads=2, inner_width=128, max_positions=64),
}
"""the paper's Q-Former and two for few pictures and no GPU"""


@dataclass(frozen=True, kw_only=True)
class Blip2RunConfig:
    """Everything that a run depends on; a run leaves it in its folder."""

    stage: Literal["stage1", "stage2"] = "stage1"
    """"stage1" trains the Q-Former on ITC, ITM and ITG (for retrieval too), "stage2" in front of a language model
    (for captions and questions too)"""
    sources: tuple[SourceConfig, ...]
    """what is trained on; formats in docs/data.md"""
    validation: tuple[SourceConfig, ...] = ()
    """what is measured on during training; none measures nothing"""
    validation_samples: int = 1000
    """pictures of the validation sources that are used"""
    features: tuple[str, ...] = ()
    """folders of `openblip cache-features`; training then reads these in place of pictures, unaugmented"""

    model: str = ""
    """a BLIP-2 model to go on from; "" starts a fresh Q-Former"""
    vision: TowerConfig = field(default_factory=TowerConfig)
    """the frozen tower of a fresh model; one that is gone on from keeps its own"""
    unfreeze_vision: bool = False
    """train the tower of `model` with the rest, as in fine-tuning for captions and retrieval"""
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    """of a fresh model; `memory_width` and `vocab_size` are set from tower and tokenizer"""
    embed_dim: int = 256
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """the language model of stage 2; one of `model` is kept"""
    text_pretrained: str = ""
    """transformers BERT (folder or hub name) whose weights, and tokenizer, a fresh Q-Former starts from"""
    tokenizer: str = ""
    """of a fresh Q-Former: a folder or hub name, "train" to learn one from the captions; "" takes that of
    `text_pretrained`, or learns one without it"""
    vocab_size: int = 8000
    """of a tokenizer learned from the captions, at most"""
    save_whole: bool = False
    """write the frozen parts with the model, so that its folder needs nothing else"""

    task: Literal["captions", "questions"] = "captions"
    """"questions" learns answers to questions, which the Q-Former reads as well (stage 2)"""
    transform: ImageTransformConfig = field(
        default_factory=lambda: ImageTransformConfig(crop_scale=(0.5, 1.0), ops=())
    )
    """`image_size` in it is set from the tower"""
    batch_size: int = 32
    """on each process"""
    num_workers: int = 1
    max_length: int = 32
    """tokens of a caption in training"""
    max_words: int = 50
    clean: Literal["simplify", "spaces", "none"] = "simplify"
    """"simplify" lower-cases and drops punctuation as the papers do; "spaces" for other languages"""
    prompt: str = ""
    """stage 2: read before every text, not scored ("a photo of"; "Question: {} Answer:" with the question in {})"""

    objective: Stage1Config = field(default_factory=Stage1Config)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=lambda: DecodeConfig(num_beams=5, max_new_tokens=30))
    """how captions and answers are written when the model is measured"""
    rerank_k: int = 16
    """candidates that ITM reads for each query when retrieval is measured"""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("no data source is named: give a folder, a captions file, tars, hf:NAME or world:SPLIT")
        if self.batch_size < 1 or self.num_workers < 0 or self.max_length < 3:
            raise UserError("batch_size must be at least 1, num_workers not negative, max_length at least 3")
        if self.task == "questions" and self.stage == "stage1":
            raise UserError('questions are answered by a language model: task = "questions" needs stage = "stage2"')
        if self.task == "questions" and "{}" not in self.prompt:
            raise UserError('the prompt of questions says where the question goes: prompt = "Question: {} Answer:"')
        if self.features and self.unfreeze_vision:
            raise UserError("features on disk are those of the frozen tower; leave features or unfreeze_vision out")


MAY_CHANGE = ("run.validation*", "run.num_workers", "run.decode*", "run.rerank_k", "run.save_whole")
"""Settings of a run that a resumed one may have otherwise."""


def load_blip2_config(file: Path) -> Blip2RunConfig:
    """Read a configuration from TOML or JSON: a `Blip2RunConfig`, or the config.json that a run leaves.

    Raises:
        UserError: the file cannot be read, a setting is unknown or of the wrong type; names the file.
    """
    data = read_table(file)
    if isinstance(data.get("run"), dict):
        data = {**data["run"], "train": data.get("train", {})}
    try:
        return from_dict(Blip2RunConfig, data)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
