"""What a training run depends on, all in one configuration that every run leaves in its folder.

config = RunConfig(sources=as_sources(["captions.jsonl"]), model="base")
config = load_run_config(Path("runs/first/config.json"))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openblip.core.config import from_dict, read_table
from openblip.core.errors import UserError
from openblip.data.sources.base import SourceConfig
from openblip.data.sources.open import parse_spec
from openblip.data.transforms import ImageTransformConfig
from openblip.generation.types import DecodeConfig
from openblip.metrics.answers import AccuracyRule
from openblip.objectives.pretraining import ObjectiveConfig
from openblip.training.config import TrainConfig

__all__ = ["MAY_CHANGE", "AnsweringConfig", "RunConfig", "as_sources", "load_run_config"]


@dataclass(frozen=True, kw_only=True)
class AnsweringConfig:
    """How answering questions is learned and measured."""

    label_smoothing: float = 0.1
    """of the answers' tokens"""
    answers: str = ""
    """file of the answers to choose from when ranking, one a line; "" takes those of the training data"""
    max_answers: int = 3128
    """of the training data, the most frequent ones (the paper: those given more than 8 times)"""
    keep: int = 128
    """answers that are read whole for each question, chosen by their first token"""
    rule: AccuracyRule = "official"
    """of accuracy: "official" compares unanimous answers as they were given, as the VQA program does; "normalised"
    without regard to case, articles and marks, like all others"""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"answering.label_smoothing is {self.label_smoothing}; it must be in 0 to 1")
        if self.max_answers < 0 or self.keep < 1:
            raise UserError("answering.max_answers cannot be negative, and answering.keep must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a training run depends on."""

    task: Literal["pretrain", "vqa"] = "pretrain"
    """"pretrain" learns pictures with captions by `objective` (fine-tuning a captioner and for retrieval as well),
    "vqa" questions with answers by `answering`"""
    sources: tuple[SourceConfig, ...]
    """what is trained on; formats in docs/data.md"""
    validation: tuple[SourceConfig, ...] = ()
    """what is measured on during training; none measures nothing"""
    validation_samples: int = 1000
    """pictures of the validation sources that are used"""

    model: str = "base"
    """a size to start afresh ("base", "large", "micro", "nano"), or a model folder or checkpoint file"""
    tokenizer: str = ""
    """a folder or hub name; "" takes the starting model's own, "train" learns one from the captions, which a fresh
    small model does by default; a fresh "base" or "large" takes bert-base-uncased"""
    vocab_size: int = 8000
    """of a tokenizer learned from the captions, at most"""
    image_size: int | None = None
    """pixels; None keeps the model's own"""
    vision_pretrained: str = ""
    """timm model whose weights a fresh vision tower starts from"""
    text_pretrained: str = ""
    """transformers BERT (folder or hub name) whose weights, and tokenizer, a fresh text transformer starts from"""
    parts: Literal["both", "captioner", "matcher"] = "both"
    """what of a starting model is kept: all, the decoder to write captions, the encoder to match"""

    transform: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    """`image_size` in it is set from the model"""
    batch_size: int = 32
    """on each process"""
    num_workers: int = 1
    """processes that decode pictures beside training; 0 decodes in a thread"""
    max_length: int = 30
    """tokens of a caption (or of a question, and of an answer) in training"""
    max_words: int = 30
    clean: Literal["simplify", "spaces", "none"] = "simplify"
    """"simplify" lower-cases and drops punctuation as the papers do; "spaces" for other languages"""
    prompt: str = ""
    """how every caption begins ("a picture of "); carries no loss"""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    answering: AnsweringConfig = field(default_factory=AnsweringConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(
        default_factory=lambda: DecodeConfig(num_beams=3, max_new_tokens=20, min_new_tokens=2)
    )
    """how captions and answers are written when the model is measured"""
    rerank_k: int = 16
    """candidates that ITM reads for each query when retrieval is measured"""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("no data source is named: give a folder, a captions file, tars, hf:NAME or world:SPLIT")
        if self.batch_size < 1 or self.num_workers < 0 or self.max_length < 3:
            raise UserError("batch_size must be at least 1, num_workers not negative, max_length at least 3")


MAY_CHANGE = (
    "run.validation*",
    "run.num_workers",
    "run.decode*",
    "run.rerank_k",
    "run.answering.keep",
    "run.answering.rule",
)
"""Settings of a run that a resumed one may have otherwise."""


def load_run_config(file: Path) -> RunConfig:
    """Read a configuration from TOML or JSON: a `RunConfig`, or the config.json that a run leaves in its folder.

    Raises:
        UserError: the file cannot be read, a setting is unknown or of the wrong type; names the file.
    """
    data = read_table(file)
    if isinstance(data.get("run"), dict):
        # A run's own file keeps what the loop reads, and the model's sizes, beside it.
        data = {**data["run"], "train": data.get("train", {})}
    try:
        return from_dict(RunConfig, data)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def as_sources(specs: tuple[str, ...] | list[str]) -> tuple[SourceConfig, ...]:
    """Source configurations of specs as they are typed: "PATH?setting=value&..."."""
    return tuple(parse_spec(spec) for spec in specs)
