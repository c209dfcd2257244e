"""A whole training run from one configuration: data, model, objectives, loop, evaluation, the model at the end.

    run_training(RunConfig(sources=("captions.jsonl",), model="base"), "runs/first")

Pre-training, fine-tuning a captioner and fine-tuning for retrieval are the same run with other settings;
`recipes` holds those of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from openblip.checkpoints.bert import load_bert
from openblip.checkpoints.store import open_model, save_model
from openblip.core.config import from_dict, read_table, to_dict
from openblip.core.errors import UserError
from openblip.core.runtime import rank, seed_everything, world_size
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch, BrokenSample, Sample
from openblip.data.sources.base import Source, SourceConfig
from openblip.data.sources.open import open_source, parse_spec
from openblip.data.stream import Loader
from openblip.data.transforms import ImageTransform, ImageTransformConfig, clean_caption, evaluation_transform
from openblip.generation.types import DecodeConfig
from openblip.models.blip import SIZES, Blip, blip_config
from openblip.objectives.pretraining import BlipPretraining, ObjectiveConfig
from openblip.tasks.caption import evaluate_captions
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.step import BlipStep, make_prepare
from openblip.training.config import TrainConfig
from openblip.training.launch import start
from openblip.training.loop import TrainResult, train

__all__ = ["Evaluator", "RunConfig", "evaluate_model", "evaluation_batches", "run_training"]

Evaluator = Callable[[Blip, TextTokenizer], dict[str, float]]
"""Further numbers of a model during training, e.g. the truth of captions in the synthetic world."""
_TOKENIZER_TEXTS = 200_000


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a training run depends on."""

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
    """tokens of a caption in training"""
    max_words: int = 30
    clean: Literal["simplify", "spaces", "none"] = "simplify"
    """"simplify" lower-cases and drops punctuation as the papers do; "spaces" for other languages"""
    prompt: str = ""
    """how every caption begins ("a picture of "); carries no loss"""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(
        default_factory=lambda: DecodeConfig(num_beams=3, max_new_tokens=20, min_new_tokens=2)
    )
    """how captions are written when the model is measured"""
    rerank_k: int = 16
    """candidates that ITM reads for each query when retrieval is measured"""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("no data source is named: give a folder, a captions file, tars, hf:NAME or world:SPLIT")
        if self.batch_size < 1 or self.num_workers < 0 or self.max_length < 3:
            raise UserError("batch_size must be at least 1, num_workers not negative, max_length at least 3")


MAY_CHANGE = ("run.validation*", "run.num_workers", "run.decode*", "run.rerank_k")
"""Settings of a run that a resumed one may have otherwise."""


def run_training(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    evaluator: Evaluator | None = None,
    title: str = "training",
    show: bool = True,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train as `config` says; everything goes to the folder `out`, the usable model to `out/model`.

    Args:
        resume: go on from the newest checkpoint in `out`.
        evaluator: further numbers for each evaluation.

    Raises:
        UserError: a mistake in the configuration or the data.
        Interrupted: a signal came; everything is saved.
    """
    device = start(config.train.device)
    out = Path(out)
    sources = [open_source(source) for source in config.sources]
    seed_everything(config.train.seed)
    model, tokenizer = _build(config, sources, out)
    objective = BlipPretraining(model, config.objective, enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id)
    prompt_length = tokenizer.encode([config.prompt], end=False).input_ids.shape[1] if config.prompt else 0
    step = BlipStep(objective, prompt_length=prompt_length)
    loader = Loader(
        sources,
        ImageTransform(replace(config.transform, image_size=model.config.vision.image_size)),
        config.batch_size,
        seed=config.train.seed,
        rank=rank(),
        world_size=world_size(),
        num_workers=config.num_workers,
        weights=[source.weight for source in config.sources],
        clean=config.clean,
        max_words=config.max_words,
        skip_log=out / "skipped.jsonl",
        pin_memory=device.type == "cuda",
    )
    info = {"objectives": list(config.objective.objectives), "prompt": config.prompt, "clean": config.clean}

    def evaluate(_module: nn.Module, _step: int) -> dict[str, float]:
        numbers = evaluate_model(config, model, tokenizer)[0] if config.validation else {}
        return numbers | (evaluator(model, tokenizer) if evaluator is not None else {})

    try:
        return train(
            config.train,
            step,
            loader,
            out,
            prepare=make_prepare(tokenizer, max_length=config.max_length, prompt=config.prompt),
            evaluate=evaluate if config.validation or evaluator is not None else None,
            export=lambda folder: _export(folder, model, tokenizer, info),
            resume=resume,
            sections={"run": _section(config), "model": to_dict(model.config)},
            may_change=MAY_CHANGE,
            title=title,
            show=show,
            on_record=on_record,
        )
    finally:
        loader.close()


def _section(config: RunConfig) -> dict[str, Any]:
    section = to_dict(config)
    del section["train"]  # the loop saves and compares it itself
    return section


def _export(folder: Path, model: Blip, tokenizer: TextTokenizer, info: dict[str, Any]) -> None:
    save_model(folder, model, tokenizer, info)


def _build(config: RunConfig, sources: list[Source], out: Path) -> tuple[Blip, TextTokenizer]:
    """The model to train and its tokenizer."""
    if config.model not in SIZES:
        stored = open_model(config.model, tokenizer=config.tokenizer or None, image_size=config.image_size)
        model = stored.blip
        if config.parts != "both":
            model = model.part(encoder=config.parts == "matcher", decoder=config.parts == "captioner")
        return model, stored.tokenizer
    tokenizer = _fresh_tokenizer(config, sources, out)
    sizes = blip_config(config.model, vocab_size=tokenizer.vocab_size, image_size=config.image_size)
    wanted = config.objective.objectives
    sizes = replace(sizes, encoder="itc" in wanted, decoder="lm" in wanted)
    if config.vision_pretrained:
        sizes = replace(sizes, vision=replace(sizes.vision, pretrained=config.vision_pretrained))
    model = Blip(sizes)
    if config.vision_pretrained:
        model.vision.load_pretrained()
    if config.text_pretrained:
        load_bert(model, config.text_pretrained)
    return model, tokenizer


def _fresh_tokenizer(config: RunConfig, sources: list[Source], out: Path) -> TextTokenizer:
    small = config.model in ("nano", "micro")
    name = config.tokenizer or config.text_pretrained or ("train" if small else "bert-base-uncased")
    if name == "train" and config.text_pretrained:
        raise UserError(f'"{config.text_pretrained}" knows its own tokens only: leave tokenizer = "train" out')
    if name != "train":
        return TextTokenizer.load(name)
    folder = out / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        return TextTokenizer.load(folder)
    tokenizer = TextTokenizer.train(
        training_texts(sources, clean=config.clean, limit=_TOKENIZER_TEXTS), vocab_size=config.vocab_size
    )
    if rank() == 0:
        tokenizer.save(folder)
    return tokenizer


def training_texts(sources: list[Source], *, clean: str, limit: int) -> Iterator[str]:
    """Texts of the sources as training sees them, at most `limit`, spread evenly over each source."""
    each = max(1, limit // len(sources))
    for source in sources:
        stride = max(1, len(source) // each)
        for index in range(0, len(source), stride):
            with suppress(BrokenSample):  # counted when the loader meets it
                yield from (_cleaned(text, clean) for text in source[index].texts)


def _cleaned(text: str, clean: str) -> str:
    return text if clean == "none" else clean_caption(text, None, simplify=clean == "simplify")


def evaluation_batches(
    sources: tuple[SourceConfig, ...] | list[Source],
    image_size: int | tuple[int, int],
    *,
    samples: int,
    batch_size: int = 64,
    clean: Any,
) -> Iterator[Batch]:
    """The first `samples` pictures in order, each with all its texts, resized whole."""
    opened: list[Source] = []
    left = samples
    for source in (s if isinstance(s, Source) else open_source(s) for s in sources):
        if left > 0:
            opened.append(FirstSamples(source, left))
        left -= len(source)
    loader = Loader(
        opened,
        evaluation_transform(image_size),
        batch_size,
        shuffle=False,
        drop_last=False,
        text_mode="all",
        clean=clean,
        max_words=None,
    )
    yield from loader


class FirstSamples(Source):
    """The first samples of a source."""

    def __init__(self, source: Source, count: int) -> None:
        super().__init__()
        self.name = source.name
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self._source[index]


@torch.no_grad()
def evaluate_model(
    config: RunConfig, model: Blip, tokenizer: TextTokenizer
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Measure a model on the validation sources: what it can write, what it can match.

    Returns:
        numbers by name, and one record for each picture when captions were written.
    """
    was_training = model.training
    model.eval()

    def batches() -> Iterator[Batch]:
        return evaluation_batches(
            config.validation,
            model.config.vision.image_size,
            samples=config.validation_samples,
            clean=config.clean,
        )

    numbers: dict[str, float] = {}
    records: list[dict[str, object]] = []
    if model.config.encoder:
        numbers |= evaluate_retrieval(
            model, tokenizer, batches(), rerank_k=config.rerank_k, max_length=config.max_length
        )
    if model.config.decoder:
        scores, records = evaluate_captions(model, tokenizer, batches(), config.decode, prompt=config.prompt)
        numbers |= scores
    model.train(was_training)
    return numbers, records


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
