"""What a training run depends on, all in one configuration that every run leaves in its folder.

config = RunConfig(sources=as_sources(["captions.jsonl"]), model="base")
config = load_run_config(Path("runs/first/config.json"))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from openblip.core.config import from_dict, read_table
from openblip.core.errors import UserError
from openblip.core.places import check_run_settings
from openblip.data.clean import CleanText
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.transform_config import ImageTransformConfig
from openblip.generation.config import DecodeConfig
from openblip.metrics.answers import AccuracyRule
from openblip.metrics.java import JavaMetric
from openblip.models.configs import LanguageConfig, QFormerSettings, TowerConfig
from openblip.objectives.configs import ObjectiveConfig, SelfCriticalConfig, Stage1Config
from openblip.training.config import TrainConfig

__all__ = [
    "CAPTION_PROMPT",
    "DIALOG_TOKENS",
    "FROM_PARTS",
    "IN_MEMORY",
    "MAY_CHANGE",
    "QUESTION_PROMPTS",
    "QUESTION_TOKENS",
    "AnsweringConfig",
    "FamilyName",
    "RunConfig",
    "TaskName",
    "as_sources",
    "foreign_settings",
    "load_run_config",
]

CAPTION_PROMPT = "a photo of"
"""how captions of published BLIP-2 models begin"""
QUESTION_PROMPTS = {False: "Question: {} Answer:", True: "Question: {} Short answer:"}
"""how a decoder (False) and an encoder-decoder (True) is asked"""
FROM_PARTS = "from-parts"
"""in place of a size of BLIP: that of the pretrained vision tower and BERT"""
QUESTION_TOKENS = 35
"""of a question, the first and the last special token included; longer ones are cut, as in the paper"""
DIALOG_TOKENS = 256
"""of a dialog up to a question that are read; ten rounds of VisDial mostly have fewer"""
IN_MEMORY = 2 * 2**30
"""bytes of a collection's image features that are kept in memory unless set otherwise"""

FamilyName = Literal["blip", "blip2"]
TaskName = Literal[
    "pretraining", "captioning", "retrieval", "answering", "nlvr", "dialog", "classification", "composed"
]


@dataclass(frozen=True, kw_only=True)
class AnsweringConfig:
    """How answering questions is learned and measured."""

    label_smoothing: float = 0.1
    """Of the answers' tokens; the language models of BLIP-2 are trained without."""
    answers: str = ""
    """File of the answers to choose from when ranking, one a line; "" takes those of the training data (BLIP), or
    leaves ranking out (BLIP-2)."""
    max_answers: int = 3128
    """Answers of the training data that are ranked, the most frequent ones (the paper: those given more than 8
    times)."""
    keep: int = 128
    """Answers that are read whole for each question, chosen by their first token."""
    rule: AccuracyRule = "official"
    """Of accuracy, where the data do not say theirs: "official" compares unanimous answers as they were given, as
    the VQA program does; "normalised" without regard to case, articles and marks, like all others; "direct" is that
    of A-OKVQA, "exact" that of GQA."""
    lemmas: bool = False
    """Measure generated answers in base forms too, as LAVIS does on OK-VQA; needs the extra "lemmas"."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"answering.label_smoothing is {self.label_smoothing}; it must be in 0 to 1")
        if self.max_answers < 0 or self.keep < 1:
            raise UserError("answering.max_answers cannot be negative, and answering.keep must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a training run depends on."""

    family: FamilyName = "blip"
    """Which kind of model is trained; settings of the other family are refused."""
    task: TaskName = "pretraining"
    """What is learned. BLIP: "pretraining" (ITC, ITM, LM), "captioning" (LM with the decoder alone), "retrieval"
    (ITC, ITM with the encoder alone), "answering", "nlvr" (statements about two images, true or false), "dialog"
    (rounds of questions and answers). BLIP-2:
    "pretraining" (stage 1: ITC, ITM, ITG), "captioning" (stage 2: a language model continues from the queries),
    "retrieval" (stage 1's objectives), "answering" (stage 2; the Q-Former reads the question too). "classification"
    (zero-shot) and "composed" (retrieval with an image and a text) are measured, not learned."""

    sources: tuple[SourceConfig, ...]
    """What is trained on; formats in docs/data.md."""
    validation: tuple[SourceConfig, ...] = ()
    """What is evaluated on during training; none leaves evaluation out."""
    validation_samples: int = 1000
    """Images of the validation sources that are used."""

    model: str = ""
    """A model's folder or checkpoint file to start from, or a size to train from scratch: of BLIP ("base", "large",
    "micro", "nano", or "from-parts" for the sizes of `vision_pretrained` and `text_pretrained`) or of a Q-Former
    ("base", "micro", "nano"); "" is "base"."""
    tokenizer: str = ""
    """A folder or hub name; "" takes the starting model's own or that of `text_pretrained`, "train" learns one from
    the captions, which small models trained from scratch and Q-Formers do by default; a "base" or "large" takes
    bert-base-uncased."""
    vocab_size: int = 8000
    """Largest vocabulary of a tokenizer learned from the captions."""
    text_pretrained: str = ""
    """transformers BERT (folder or hub name) whose weights, and tokenizer, a text transformer or Q-Former that is
    trained from scratch starts from. With questions for a model of stage 2: the BERT, or rather the model of stage
    1, whose text side its Q-Former gets to read them too."""

    transform: ImageTransformConfig = field(default_factory=ImageTransformConfig)
    """`image_size` in it is set from the model."""
    batch_size: int = 32
    """Samples on each process."""
    num_workers: int = 1
    """Processes that decode images beside training; 0 decodes in a thread."""
    max_length: int = 30
    """Tokens of a caption (or of a question, a dialog up to a question, and of an answer) in training."""
    max_words: int | None = 30
    """Words of a caption in training, and of a text where retrieval is evaluated; None reads it whole."""
    clean: CleanText = "simplify"
    """"simplify" lower-cases and drops punctuation as the papers do; "spaces" for other languages."""
    prompt: str = ""
    """What stands before every text and carries no loss ("a picture of "; BLIP-2: "a photo of"; BLIP-2's questions:
    "Question: {} Answer:" with the question in {})."""
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(
        default_factory=lambda: DecodeConfig(num_beams=3, max_new_tokens=20, min_new_tokens=2)
    )
    """How captions and answers are generated when the model is evaluated."""
    java_metrics: tuple[JavaMetric, ...] = ()
    """"METEOR" and "SPICE" of captions when the model is evaluated; they need Java and the extra "java-metrics"."""
    rerank_k: int = 16
    """Candidates that ITM reads for each query when retrieval is evaluated; 0 leaves ITM out."""
    rerank_memory: int = IN_MEMORY
    """Bytes of image features that the evaluation of retrieval keeps in memory; more go to a temporary file (in the
    folder that TMPDIR names)."""
    answering: AnsweringConfig = field(default_factory=AnsweringConfig)

    image_size: int | None = None
    """BLIP: pixels; None keeps the model's own."""
    vision_pretrained: str = ""
    """BLIP: Vision Transformer, timm:NAME or hf:NAME (hub name or folder of transformers), whose weights a vision
    tower that is trained from scratch starts from."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """BLIP: "captioning" and "retrieval" set its `objectives` themselves."""

    scst: SelfCriticalConfig = field(default_factory=SelfCriticalConfig)
    """BLIP: "captioning" by self-critical training, with CIDEr-D as reward, in place of LM."""

    vision: TowerConfig = field(default_factory=TowerConfig)
    """BLIP-2: the frozen tower of a model trained from scratch; a starting model keeps its own."""
    unfreeze_vision: bool = False
    """BLIP-2: train the tower of `model` with the rest, as in fine-tuning for captions and retrieval."""
    qformer: QFormerSettings = field(default_factory=QFormerSettings)
    """BLIP-2: of a model trained from scratch, where it is not as `text_pretrained` or the size in `model` says."""
    embed_dim: int = 256
    """BLIP-2: width of the shared image-text space of ITC."""
    stage1: Stage1Config = field(default_factory=Stage1Config)
    """BLIP-2: objectives of "pretraining" and "retrieval"."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """BLIP-2: the language model of "captioning" and "answering"; one of `model` is kept."""
    reads_prompts: bool = False
    """BLIP-2: "captioning" and "answering" behind a model of stage 1 let the Q-Former read the whole prompt, as
    InstructBLIP does; a model that does keeps doing so."""
    fit_soft_prompts: bool = False
    """BLIP-2: "captioning" starts a new projection as a least-squares fit to the token embeddings of the first
    images' captions, and not, as the papers do, at random."""
    features: tuple[str, ...] = ()
    """BLIP-2: folders of `openblip cache-features`; training reads these in place of images, of each
    image one of the crops that were cached. `transform` has no effect then."""
    save_whole: bool = False
    """BLIP-2: save the frozen parts with the model, so that its folder needs nothing else."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("no data source is named: give a folder, a captions file, tars, hf:NAME or world:SPLIT")
        if self.batch_size < 1 or self.num_workers < 0 or self.max_length < 3:
            raise UserError("batch_size must be at least 1, num_workers not negative, max_length at least 3")
        for name in ("validation_samples", "vocab_size", "max_words", "embed_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        for name in ("rerank_k", "rerank_memory"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} cannot be negative, and is {getattr(self, name)}")
        monitor = self.train.monitor or ""
        by_itm = re.search(r"_itm(@|$)|^itm_", monitor)
        if not self.rerank_k and self.task in ("retrieval", "pretraining") and by_itm:
            raise UserError(f'train.monitor "{monitor}" is measured by ITM, which rerank_k = 0 leaves out')
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size is the side of images in pixels and cannot be {self.image_size}")
        for name in foreign_settings(self.family):
            if getattr(self, name) != _default(name):
                raise UserError(f'the setting "{name}" is not read by family = "{self.family}"; leave it out')
        if self.family == "blip2" and self.task == "answering" and "{}" not in self.prompt:
            raise UserError('the prompt of questions says where the question goes: prompt = "Question: {} Answer:"')
        if self.scst.samples and self.task != "captioning":
            raise UserError(f'scst trains captioners; leave it out of task = "{self.task}"')
        if self.features and self.unfreeze_vision:
            raise UserError("features on disk are those of the frozen tower; leave features or unfreeze_vision out")
        if self.reads_prompts:
            self._check_reads_prompts()

    def _check_reads_prompts(self) -> None:
        if self.task not in ("captioning", "answering"):
            raise UserError(f'reads_prompts is for captions and questions; leave it out of task = "{self.task}"')
        if not self.prompt.strip():
            raise UserError('reads_prompts needs a prompt to read; name one: --set "prompt=Describe the image."')
        if self.fit_soft_prompts:
            raise UserError(
                "fit_soft_prompts fits what the queries read without a prompt; leave it or reads_prompts out"
            )


_ONLY: dict[str, tuple[str, ...]] = {
    "blip": ("image_size", "vision_pretrained", "objective", "scst"),
    "blip2": (
        *("vision", "unfreeze_vision", "qformer", "embed_dim", "stage1", "language", "reads_prompts"),
        "fit_soft_prompts",
        *("features", "save_whole"),
    ),
}
"""settings that one family alone reads"""


def foreign_settings(family: str) -> tuple[str, ...]:
    """Settings that `family` does not read."""
    return _ONLY["blip2" if family == "blip" else "blip"]


def _default(name: str) -> Any:
    own: Any = next(field for field in fields(RunConfig) if field.name == name)
    return own.default if own.default is not MISSING else own.default_factory()


MAY_CHANGE = (
    *("run.validation*", "run.num_workers", "run.decode*", "run.rerank_*", "run.java_metrics", "run.save_whole"),
    *("run.answering.keep", "run.answering.rule", "run.answering.lemmas"),
)
"""Settings that a resumed run may change."""


def load_run_config(file: Path, *, data: Sequence[str] = (), validation: Sequence[str] = ()) -> RunConfig:
    """Read a configuration from TOML or JSON: a `RunConfig`, or the config.json that a run leaves in its folder.

    Args:
        data: sources in place of those of the file; `validation` likewise.

    Raises:
        UserError: the file cannot be read, a setting is unknown or of the wrong type; names the file.
    """
    check_run_settings(file)
    table = read_table(file)
    if isinstance(table.get("run"), dict):
        # A run's own file keeps what the loop reads, and the model's sizes, beside it.
        table = {**table["run"], "train": table.get("train", {})}
    try:
        config = from_dict(RunConfig, table)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if data:
        config = replace(config, sources=as_sources(data))
    return replace(config, validation=as_sources(validation)) if validation else config


def as_sources(specs: Sequence[str]) -> tuple[SourceConfig, ...]:
    """Source configurations of specs as they are typed: "PATH?setting=value&..."."""
    return tuple(parse_spec(spec) for spec in specs)
