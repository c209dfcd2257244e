"""The command that runs the BLIP paper's loop: `bootstrap`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from openblip.cli.arguments import Folder, Sets, Validation, need, person

if TYPE_CHECKING:
    from openblip.bootstrap.loop import BootstrapConfig

__all__ = ["bootstrap"]

Specs = UseAppendAction[tuple[str, ...]]


def bootstrap(
    *,
    out: Folder,
    web: Annotated[Specs, arg(metavar="DATA", help_behavior_hint="(repeat it for more)")] = (),
    human: Annotated[Specs, arg(metavar="DATA", help_behavior_hint="(repeat it for more)")] = (),
    validation: Validation = (),
    size: Literal["nano", "micro", "base", "large"] = "micro",
    steps: int = 1000,
    tune_steps: int = 500,
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    set: Sets = (),
) -> None:
    """Run the paper's loop: pre-train, tune captioner and filter, CapFilt, pre-train anew, compare the two models.

    Args:
        out: folder of the loop; the same command resumes in it.
        web: noisy pairs, to be cleaned.
        human: pairs that people have written.
        size: of the model; base and large train as in the paper (--set pretrain.train.epochs=...).
        steps: of pre-training, for nano and micro.
        tune_steps: of the captioner and the filter, for nano and micro.
        config: a TOML or JSON file of settings in place of the recipe; every loop writes one (bootstrap.json).
    """
    from openblip.bootstrap.loop import BootstrapConfig, run_bootstrap
    from openblip.core.config import from_dict, override, read_table

    if config is not None:
        made = from_dict(BootstrapConfig, read_table(config))
    else:
        made = _recipe(web, human, validation, size, steps, tune_steps)
    found = run_bootstrap(override(made, set), out, on_stage=_say)
    if person():
        _show(found, out)
    else:
        print(json.dumps(found))


def _recipe(
    web: tuple[str, ...],
    human: tuple[str, ...],
    validation: tuple[str, ...],
    size: str,
    steps: int,
    tune_steps: int,
) -> BootstrapConfig:
    from openblip.bootstrap.loop import BootstrapConfig
    from openblip.recipes.blip import blip_pretrain, caption_finetune, retrieval_finetune
    from openblip.recipes.small import small_caption, small_pretrain, small_retrieval
    from openblip.tasks.config import as_sources

    need(web, 'the noisy pairs: --web "cc3m/{00000..00331}.tar"')
    need(human, "the pairs that people have written: --human coco/train.jsonl")
    data = (*web, *human)
    sources: dict[str, Any] = {"web": as_sources(web), "human": as_sources(human)}
    if size in ("base", "large"):
        return BootstrapConfig(
            **sources,
            pretrain=blip_pretrain(data, model=size, validation=validation),
            captioner=caption_finetune(human, model=size, validation=validation),
            filter=retrieval_finetune(human, model=size, validation=validation),
        )
    return BootstrapConfig(
        **sources,
        pretrain=small_pretrain(data, model=size, validation=validation, steps=steps),
        captioner=small_caption(human, model=size, validation=validation, steps=tune_steps),
        filter=small_retrieval(human, model=size, validation=validation, steps=tune_steps),
    )


def _say(stage: str) -> None:
    if person():
        print(f"[{stage}]", flush=True)


def _show(found: dict[str, Any], out: Path) -> None:
    from openblip.report import Column, Table, print_table

    clean = found["clean"]
    print_table(
        Table(
            title=f"{clean['texts']} texts of {clean['images']} images kept, of {clean['samples']} noisy ones",
            columns=[
                Column(name="measure"),
                *(Column(name=name, align="right") for name in ("noisy pairs", "CapFilt")),
            ],
            rows=[[k, f"{v:.4f}", f"{found['second'][k]:.4f}"] for k, v in found["first"].items()],
        )
    )
    print(
        f"The new model is in {out / 'second' / 'model'}; openblip report {out / 'clean' / '0'} shows what was kept"
    )
