"""What can be wrong with a command's arguments and is seen without importing torch, before the command runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openblip.cli.classify import read_classes
from openblip.cli.results import check_counts, read_lines
from openblip.cli.resumed import can_continue
from openblip.cli.train import check_train, own_data
from openblip.core.errors import UserError, require
from openblip.core.places import (
    NAMED,
    QUERY,
    check_config_file,
    check_data,
    check_device,
    check_folder,
    check_image,
    check_model,
    check_new_file,
)

__all__ = ["check_arguments"]

_STDIN = "-"


def _images(place: str) -> None:
    if NAMED.fullmatch(place) and not Path(place).exists():
        _data(place)
    elif place != _STDIN:
        check_image(place)


def _data(spec: str) -> None:
    if re.fullmatch(r"[\w-]+", spec) and not Path(spec).exists():
        from openblip.data.cards import named_split

        named_split(spec)
    check_data(spec)
    if QUERY.match(spec) or NAMED.fullmatch(spec):
        from openblip.data.cards import find_split
        from openblip.data.source_config import parse_spec

        find_split(parse_spec(spec))  # its settings, and whether a published dataset is there


def _lines(path: Path) -> None:
    read_lines(path, "a text on each line")


def _index(index: Path | str) -> None:
    from openblip.index.address import check_address, is_address
    from openblip.index.sqlite import check_folder

    if is_address(str(index)):
        check_address(str(index))
    else:
        check_folder(Path(index))


def _engine(name: str) -> None:
    if name == "ray":
        require("ray", "ray")


def _tower(source: str) -> None:
    from openblip.models.configs import as_tower

    tower = as_tower(source)
    if tower.kind == "openblip":
        check_model(tower.name)


def _port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise UserError(f"--port is a number from 0 to 65535, not {port}")


def _start(model: str) -> None:
    if not re.fullmatch(r"[\w-]+", model):  # else a size, which the recipe knows
        check_model(model)


def _captions_file(out: Path) -> None:
    if can_continue(out) and out.stat().st_size:
        raise UserError(f"{out} exists already; continue it with --resume, or choose a new file")
    check_new_file(out)


def _texts_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, and with --write txt the captions go into a folder; name one with --out")


_LEAST = {
    **dict.fromkeys(("batch_size", "beams", "crops", "gpus", "image_size"), 1),
    **dict.fromkeys(("samples", "seeds", "steps", "vocab_size"), 1),
    **dict.fromkeys(("num_workers", "seed"), 0),
}
"""of numbers that are first looked at where torch is imported, by the name of a parameter"""
_UNBOUNDED = {("capfilt", "beams"), ("caption", "seed")}  # without beams CapFilt samples; torch takes any seed
_CHECKS: dict[str, Callable[[Any], None]] = {
    **dict.fromkeys(("model", "models", "captioner", "filter"), check_model),
    **dict.fromkeys(("data", "validation", "web", "human", "test"), _data),
    "images": _images,
    "answers": _lines,
    "device": check_device,
    "index": _index,
    "vision": _tower,
}
"""by the name of a parameter, whatever the command"""
_OF_COMMANDS: dict[tuple[str, str], Callable[[Any], object]] = {
    ("train", "model"): _start,
    ("info", "source"): check_model,
    ("convert", "source"): check_model,
    ("capfilt", "source"): _data,
    ("capfilt", "engine"): _engine,
    ("serve", "engine"): _engine,
    ("serve", "port"): _port,
    **{(command, "out"): check_folder for command in ("cache-features", "demo", "evaluate", "tokenizer")},
    ("experiments", "data"): lambda folder: None,  # holds data sets, each looked for by its name
    ("explain", "image"): check_image,
    ("explain", "out"): check_new_file,
    ("evaluate", "submission"): check_new_file,
    ("retrieve", "texts"): _lines,
    ("retrieve", "image"): check_image,
    ("score", "pairs"): _data,
    ("classify", "classes"): read_classes,
    ("index-search", "image"): check_image,
    ("index-search", "sheet"): check_new_file,
    ("index-search", "explain"): check_new_file,
    ("index-export", "out"): check_new_file,
    ("judge", "first"): check_image,
    ("judge", "second"): check_image,
    ("caption", "out"): _captions_file,
    **{(command, "out"): check_new_file for command in ("match", "ask", "embed", "classify", "score")},
}


def check_arguments(command: str, function: Callable[..., None], args: tuple[Any, ...], options: Any) -> None:
    """Look at the arguments that `function`, called `command`, is about to be called with.

    Raises:
        UserError: a model, images or data are not where they are named, or a result would be written over.
    """
    signature = inspect.signature(function)
    bound = signature.bind(*args, **options).arguments
    # What was left out is the command's own to tell.
    given = {name: value for name, value in bound.items() if value != signature.parameters[name].default}
    check_config_file(given.get("config"))
    if command == "train":
        check_train(bound["recipe"], given)
        for spec in own_data(bound["recipe"], given):
            _data(spec)
    # A configuration file may take the place of arguments; a bootstrap that continues reads only what is not done.
    if given.get("config") is not None or (command == "bootstrap" and bound["out"].exists()):
        return
    if command == "train" and "dry_run" in given:
        return  # reads neither data nor weights
    for name, value in given.items():
        if name == "out" and given.get("resume") and value.exists():
            continue  # the command looks whether it can be continued
        if name in _LEAST and value is not None and (command, name) not in _UNBOUNDED:
            check_counts(_LEAST[name], **{name: value})
        check = _OF_COMMANDS.get((command, name)) or _CHECKS.get(name)
        if (command, name) == ("caption", "out") and given.get("write") == "txt":
            check = _texts_folder
        if check is not None and value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                check(one)
