"""Arguments that several commands share, as types: how each is called in the help, and what it may be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from openblip.core.errors import UserError

if TYPE_CHECKING:
    from openblip.generation.config import DecodeConfig

__all__ = [
    "WHAT_IMAGES",
    "Card",
    "Config",
    "CudaGraphs",
    "Data",
    "Device",
    "Dtype",
    "Folder",
    "Heads",
    "ImagePaths",
    "Model",
    "OptionalData",
    "OptionalFile",
    "OptionalPath",
    "Out",
    "Pixels",
    "Prompt",
    "Quantize",
    "Sets",
    "Texts",
    "Tokenizer",
    "Validation",
    "decoding",
    "need",
    "person",
    "with_family_defaults",
]

WHAT_IMAGES = "the images: files, folders, globs, tars, or - for a list on standard input"
_BEAMS = 3
_REQUIRED, _REPEAT = "(required)", "(repeat it for more)"

Data = Annotated[tuple[str, ...], arg(metavar="DATA ...", help_behavior_hint="")]
"""Specs of sources."""
OptionalData = Annotated[tuple[str, ...], arg(metavar="[DATA ...]", help_behavior_hint="")]
ImagePaths = Annotated[tuple[str, ...], arg(metavar="IMAGE ...", help_behavior_hint="")]
Model = Annotated[
    str,
    arg(
        metavar="MODEL",
        help="a model's folder, a BLIP checkpoint (.pth), or a name on the Hugging Face hub",
        help_behavior_hint=_REQUIRED,
    ),
]
Tokenizer = Annotated[
    str | None,
    arg(
        metavar="PLACE",
        help="the tokenizer, where the model brings none: a folder, a tokenizer.json, a vocab.txt or a hub name",
        help_behavior_hint="",
    ),
]
Prompt = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
Pixels = Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")]
Card = Annotated[str | None, arg(metavar="CARD", help_behavior_hint="")]
Heads = Annotated[
    tuple[int, ...],
    arg(
        metavar="NUMBER ...",
        help="attention heads, for files of the original or LAVIS that do not tell: one number, or those of vision "
        "tower and text",
        help_behavior_hint="",
    ),
]
Folder = Annotated[Path, arg(metavar="FOLDER", help_behavior_hint=_REQUIRED)]
OptionalFile = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
Out = Annotated[
    Path | None,
    arg(metavar="FILE", help="a new file for the results, one JSON object a line", help_behavior_hint=""),
]
Config = Annotated[
    Path | None,
    arg(
        metavar="FILE",
        help="a TOML or JSON file of settings, in place of the recipe; every run writes one",
        help_behavior_hint="",
    ),
]
Sets = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(
        metavar="NAME=VALUE",
        help="one setting, for example train.learning_rate=1e-4",
        help_behavior_hint=_REPEAT,
    ),
]
Texts = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT", help_behavior_hint=_REPEAT)]
Validation = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(metavar="DATA", help="data to measure on while training", help_behavior_hint=_REPEAT),
]
Device = Annotated[str, arg(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    arg(help="dtype to compute in; auto is bfloat16 where it is fast"),
]

Quantize = Annotated[
    Literal["none", "8bit", "4bit"],
    arg(help='bits of BLIP-2\'s language model, by bitsandbytes (pip install "openblip[quantize]")'),
]
CudaGraphs = Annotated[
    bool, arg(help="record the steps of BLIP's captions and BLIP-2's decoders as CUDA graphs, for small batches")
]


def need(values: tuple[object, ...], what: str) -> None:
    """Refuse an empty list of things that a command cannot do without."""
    if not values:
        raise UserError(f"name {what}")


def person() -> bool:
    """Whether a person reads the output; a pipe or a file gets JSON lines."""
    return sys.stdout.isatty()


def decoding(beams: int | None, number: int, nucleus: float | None = None, **more: Any) -> DecodeConfig:
    """How texts are generated, by the options of a command.

    Raises:
        UserError: they exclude each other, or are out of range.
    """
    from openblip.generation.config import DecodeConfig

    if beams is not None and beams < 1:
        raise UserError(f"--beams must be at least 1, not {beams}")
    if beams is not None and nucleus is not None:
        raise UserError("--beams and --nucleus exclude each other; leave one out")
    beams = _BEAMS if beams is None else beams
    if nucleus is not None:
        return DecodeConfig(sample=True, top_p=nucleus, num_sequences=number, **more)
    return DecodeConfig(num_beams=max(beams, number), num_sequences=number, **more)


def with_family_defaults(
    config: DecodeConfig,
    usual: DecodeConfig,
    beams: int | None,
    nucleus: float | None,
    lengths: dict[str, int | None],
) -> DecodeConfig:
    """A decoding in which the beams and lengths that were not given are those of the model's family.

    Args:
        config: of `decoding`, by what was given.
        usual: how the family decodes.
        beams: as they were given, and likewise `nucleus`, which excludes them.
        lengths: "min_new_tokens" and "max_new_tokens" as they were given.
    """
    from dataclasses import replace

    changes = {name: getattr(usual, name) for name, value in lengths.items() if value is None}
    if beams is None and nucleus is None:
        changes["num_beams"] = max(usual.num_beams, config.num_sequences)
    if "min_new_tokens" in changes:
        most = changes.get("max_new_tokens", config.max_new_tokens)
        changes["min_new_tokens"] = min(changes["min_new_tokens"], most)
    return replace(config, **changes)
