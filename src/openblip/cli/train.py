"""Commands that train: `pretrain` and `finetune`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from openblip.cli.arguments import Config, Data, Folder, Model, Sets, Tokenizer, Validation, need

if TYPE_CHECKING:
    from openblip.tasks.run import RunConfig

__all__ = ["finetune", "pretrain"]

WHAT_DATA = (
    "the data: a folder of pictures with .txt files, a captions file, tars, hf:NAME, or world:train to try it out"
)


def pretrain(
    data: Data = (),
    /,
    *,
    out: Folder,
    size: Literal["nano", "micro", "base", "large"] = "micro",
    steps: int = 1000,
    validation: Validation = (),
    config: Config = None,
    set: Sets = (),
    resume: bool = False,
) -> None:
    """Train a BLIP model from images with captions: ITC + ITM + LM.

    Args:
        data: folders, captions files, tars, hf:NAME or world:SPLIT; settings follow a question mark, as in
            "a.jsonl?text_column=alt".
        out: folder of the run, a new one or with --resume; the model will be in FOLDER/model.
        size: base and large are the paper's, nano and micro are for few pictures and no GPU.
        steps: of nano and micro; base and large train for 20 epochs (--set train.epochs=...).
        resume: go on from the newest checkpoint in the run's folder.
    """
    from openblip.recipes import blip_pretrain, small_pretrain

    if config is not None:
        _train(_from_file(config, data, validation), set, out, resume=resume, title="pre-training")
        return
    need(data, WHAT_DATA)
    if size in ("base", "large"):
        recipe = blip_pretrain(data, size=size, validation=validation)
    else:
        recipe = small_pretrain(data, size=size, validation=validation, steps=steps)
    _train(recipe, set, out, resume=resume, title="pre-training")


def finetune(
    task: Annotated[Positional[Literal["caption", "retrieval", "vqa"]], arg(help_behavior_hint="")],
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
    """Fine-tune a model to caption (LM), for retrieval (ITC + ITM with image ids), or to answer questions (vqa).

    Args:
        task: what for.
        data: as for pretrain; for vqa with columns "question" and "answer", see docs/vqa.md.
        out: folder of the run, a new one or with --resume; the last model will be in FOLDER/model, with
            --validation the best one in FOLDER/best.
        resume: go on from the newest checkpoint in the run's folder.
    """
    from dataclasses import replace

    from openblip.recipes import caption_finetune, retrieval_finetune, vqa_finetune

    title = f"fine-tuning ({task})"
    if config is not None:
        made = replace(_from_file(config, data, validation), model=model)
    else:
        need(data, WHAT_DATA)
        recipes = {"caption": caption_finetune, "retrieval": retrieval_finetune, "vqa": vqa_finetune}
        made = recipes[task](data, model=model, validation=validation)
    if tokenizer is not None:
        made = replace(made, tokenizer=tokenizer)
    _train(made, set, out, resume=resume, title=title)


def _from_file(file: Path, data: tuple[str, ...], validation: tuple[str, ...]) -> RunConfig:
    """The configuration in `file`; data named on the command line stand in place of its own."""
    from dataclasses import replace

    from openblip.tasks.run import as_sources, load_run_config

    config = load_run_config(file)
    if data:
        config = replace(config, sources=as_sources(data))
    return replace(config, validation=as_sources(validation)) if validation else config


def _train(config: RunConfig, settings: tuple[str, ...], out: Path, *, resume: bool, title: str) -> None:
    from openblip.core.config import override
    from openblip.tasks.run import run_training

    result = run_training(override(config, settings), out, resume=resume, title=title)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    print(f"The model is in {out / 'model'}; its curves: openblip report {out}")
    if result.best:
        print(f"The best one ({result.best['name']} {result.best['value']:.4g}) is in {out / 'best'}")
