"""Commands of BLIP-2: `pretrain blip2-stage1` and `blip2-stage2`, `finetune blip2`, `cache-features`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from openblip.cli.arguments import Config, Data, Device, Folder, Model, Sets, Tokenizer, Validation, need
from openblip.cli.train import WHAT_DATA
from openblip.core.errors import UserError

if TYPE_CHECKING:
    from openblip.tasks.blip2.config import Blip2RunConfig

__all__ = ["cache_features", "finetune_blip2", "pretrain_blip2_stage1", "pretrain_blip2_stage2"]

Size = Literal["nano", "micro", "base"]
Tower = Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="")]
Start = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")]


def pretrain_blip2_stage1(
    data: Data = (),
    /,
    *,
    out: Folder,
    vision: Tower = None,
    size: Size = "micro",
    steps: int = 1000,
    model: Start = None,
    validation: Validation = (),
    config: Config = None,
    set: Sets = (),
    resume: bool = False,
) -> None:
    """Train BLIP-2's Q-Former over a frozen vision tower: ITC + ITM + ITG.

    Args:
        data: as for pretrain.
        out: folder of the run, a new one or with --resume; the model will be in FOLDER/model.
        vision: the frozen tower: timm:NAME, hf:NAME or openblip:FOLDER, with @1 read before its last block; left
            out, EVA-CLIP ViT-g/14 as in the paper.
        size: of the Q-Former; base is the paper's, nano and micro are for few pictures and no GPU.
        steps: of nano and micro; base trains for 250,000 (--set train.max_steps=...).
        model: a model of stage 1 to go on from.
        resume: go on from the newest checkpoint in the run's folder.
    """
    from openblip.tasks.blip2.recipes import VISION, blip2_stage1, small_blip2

    if config is not None:
        made = _from_file(config, data, validation)
    else:
        need(data, WHAT_DATA)
        tower, start = vision or VISION, model or ""
        if size == "base":
            made = blip2_stage1(data, vision=tower, validation=validation, model=start)
        else:
            made = small_blip2(data, size=size, vision=tower, model=start, validation=validation, steps=steps)
    _train(made, set, out, resume=resume, title="BLIP-2, stage 1")


def pretrain_blip2_stage2(
    data: Data = (),
    /,
    *,
    out: Folder,
    model: Model,
    tokenizer: Tokenizer = None,
    language: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None,
    size: Size = "micro",
    steps: int = 1000,
    validation: Validation = (),
    config: Config = None,
    set: Sets = (),
    resume: bool = False,
) -> None:
    """Train a Q-Former of stage 1 before a frozen language model, which goes on from what it sees.

    Args:
        data: as for pretrain.
        out: folder of the run, a new one or with --resume; the model will be in FOLDER/model.
        language: the frozen language model, a folder or hub name of transformers: a decoder (OPT, Llama, Qwen, ...)
            or an encoder-decoder (T5, ...); left out, facebook/opt-2.7b.
        size: whose settings of training; the Q-Former is that of --model.
        steps: of nano and micro; base trains for 80,000 (--set train.max_steps=...).
        resume: go on from the newest checkpoint in the run's folder.
    """
    from openblip.tasks.blip2.recipes import LANGUAGE, blip2_stage2, small_blip2

    if config is not None:
        made = _from_file(config, data, validation)
    else:
        need(data, WHAT_DATA)
        llm = language or LANGUAGE
        if size == "base":
            made = blip2_stage2(data, model=model, language=llm, validation=validation)
        else:
            made = small_blip2(
                data, stage="stage2", size=size, model=model, language=llm, validation=validation, steps=steps
            )
    _train(_with_tokenizer(made, tokenizer), set, out, resume=resume, title="BLIP-2, stage 2")


def finetune_blip2(
    task: Annotated[Positional[Literal["caption", "vqa", "retrieval"]], arg(help_behavior_hint="")],
    data: Data = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    out: Folder,
    validation: Validation = (),
    config: Config = None,
    set: Sets = (),
    resume: bool = False,
) -> None:
    """Fine-tune a BLIP-2 model for captions, questions (which the Q-Former reads too) or retrieval.

    Args:
        task: what for; caption needs a model of stage 2, retrieval one of stage 1, vqa either (one of stage 1 with
            --set language.source=MODEL).
        data: as for pretrain; for vqa with questions and answers.
        out: folder of the run, a new one or with --resume.
        resume: go on from the newest checkpoint in the run's folder.
    """
    from dataclasses import replace

    from openblip.tasks.blip2.recipes import blip2_finetune

    if config is not None:
        made = replace(_from_file(config, data, validation), model=model)
    else:
        need(data, WHAT_DATA)
        made = blip2_finetune(task, data, model=model, validation=validation)
    title = f"fine-tuning BLIP-2 ({task})"
    _train(_with_tokenizer(made, tokenizer), set, out, resume=resume, title=title)


def _with_tokenizer(made: Blip2RunConfig, tokenizer: str | None) -> Blip2RunConfig:
    from dataclasses import replace

    return made if tokenizer is None else replace(made, tokenizer=tokenizer)


def cache_features(
    data: Data = (),
    /,
    *,
    out: Folder,
    vision: Tower = None,
    model: Start = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    batch_size: int = 32,
    num_workers: int = 1,
    device: Device = "auto",
) -> None:
    """Compute the features of a frozen vision tower once, for training with --set features=["FOLDER"].

    Args:
        data: as for pretrain.
        out: folder of the features; what is there already is not computed again.
        vision: the frozen tower, as for pretrain blip2-stage1.
        model: a BLIP-2 model whose tower to take instead.
        dtype: that the tower computes in, as it must in training; auto is bfloat16 where that is native.
        batch_size: pictures at a time.
        num_workers: processes that decode pictures; 0 decodes in a thread.
    """
    import sys
    from dataclasses import replace

    from openblip.checkpoints.blip2_parts import as_tower, open_tower
    from openblip.checkpoints.store import open_model
    from openblip.core.runtime import choose_device
    from openblip.data.sources.open import open_source
    from openblip.models.blip2 import Blip2
    from openblip.tasks.blip2 import features

    need(data, WHAT_DATA)
    if (vision is None) == (model is None):
        raise UserError("name the tower with --vision, or a BLIP-2 model that has it with --model")
    if model is not None:
        found = open_model(model).model
        if not isinstance(found, Blip2):
            raise UserError(f"{model} is no BLIP-2 model; name its folder with --vision openblip:{model}")
        tower = found.vision
    else:
        assert vision is not None
        tower = open_tower(replace(as_tower(vision), dtype=dtype))
    sources = [open_source(spec) for spec in data]
    progress = features.cache_features(
        sources, tower, out, batch_size=batch_size, num_workers=num_workers, device=choose_device(device)
    )
    for done, total in progress:
        print(f"openblip: {done} of {total} pictures", file=sys.stderr)
    if left_out := sum(map(len, sources)) - features.count_features(out):
        why = f"{out / 'skipped.jsonl'} says why"
        print(f"openblip: {left_out} of them cannot be used and have no features; {why}", file=sys.stderr)
    print(f"The features are in {out}; train with --set 'features=[\"{out}\"]'")


def _from_file(file: Path, data: tuple[str, ...], validation: tuple[str, ...]) -> Blip2RunConfig:
    """The configuration in `file`; data named on the command line stand in place of its own."""
    from dataclasses import replace

    from openblip.tasks.blip2.config import load_blip2_config
    from openblip.tasks.run import as_sources

    config = load_blip2_config(file)
    if data:
        config = replace(config, sources=as_sources(data))
    return replace(config, validation=as_sources(validation)) if validation else config


def _train(config: Blip2RunConfig, settings: tuple[str, ...], out: Path, *, resume: bool, title: str) -> None:
    from openblip.core.config import override
    from openblip.tasks.blip2.run import run_blip2

    result = run_blip2(override(config, settings), out, resume=resume, title=title)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    print(f"The model is in {out / 'model'}; its curves: openblip report {out}")
    if result.best:
        print(f"The best one ({result.best['name']} {result.best['value']:.4g}) is in {out / 'best'}")
