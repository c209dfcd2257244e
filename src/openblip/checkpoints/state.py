"""Models' files read: a folder's description, and tensors unwrapped, under the names of the model itself.

A file is of the kind that its first bytes say. Nothing is unpickled but plain tensors: what torch wrote is read
with its `weights_only`.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from openblip.checkpoints.hub import locate
from openblip.core.errors import UserError, about, first_line
from openblip.core.kinds import instead_of_model, is_safetensors, read_head
from openblip.core.places import description_file
from openblip.core.text import read_json

__all__ = [
    "FORMAT",
    "NOTES",
    "WEIGHTS",
    "Checkpoint",
    "Found",
    "find",
    "read_checkpoint",
    "read_folder",
    "read_state",
]

FORMAT = "openblip"
"""what "format" is in the config.json of our own folders"""
ONNX_FORMAT = "openblip-onnx"
"""the same of folders with ONNX graphs, which are written and not opened"""
WEIGHTS = "model.safetensors"
NOTES = "openblip"
"""entry beside "model" for what the tensors do not tell; the original's and LAVIS' loaders read "model" alone"""
_WRAPPED = ("model", "state_dict", "model_state_dict", "module", "net", "network")
"""entries under which training scripts put a state dict, the likeliest first"""
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""torch.compile's, FSDP's and activation checkpointing's parts of names, wherever they stand"""
_ANCHORS = (
    *("visual_encoder.patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight"),
    *("query_tokens", "vision.vit.patch_embed.proj.weight"),
)
"""names of tensors that the models have, by which what stands before all names is seen"""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    state: dict[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)
    """what we wrote beside the tensors: numbers of heads, image size"""


@dataclass(frozen=True)
class Found:
    """What lies where a model was looked for: a folder whose config.json has been read, or a file of tensors."""

    name: str
    """as it was named: a path, or a name on the hub"""
    path: Path
    description: dict[str, Any] = field(default_factory=dict)
    """config.json of a folder; empty for a file"""
    file: Checkpoint | None = None
    """what a file holds; None for a folder"""

    @property
    def own(self) -> bool:
        """Whether it is a folder that `store.save_model` wrote."""
        return self.description.get("format") == FORMAT


def find(source: Path | str) -> Found:
    """Locate a model, on the hub where it is not on this machine, and read what says which model it is.

    Raises:
        UserError: there is nothing at `source`, or its description or file is damaged.
    """
    path = locate(source)
    with about(source, path):
        if path.is_dir():
            return Found(str(source), path, description=_read_description(path))
        return Found(str(source), path, file=read_checkpoint(path))


def _read_description(folder: Path) -> dict[str, Any]:
    file = description_file(folder)
    description = read_json(file)
    if not isinstance(description, dict):
        raise UserError(f"{file} is no description of a model")
    for name in ("info", "frozen"):
        if not isinstance(description.get(name, {}), dict):
            raise UserError(f'{file} is damaged: its "{name}" is {description[name]!r:.80}, not a table')
    if not isinstance(description.get("itc_temperature", 1.0), int | float):
        raise UserError(f'{file} is damaged: its "itc_temperature" is no number')
    return description


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder, ours or transformers', from one file or several.

    Raises:
        UserError: there are none, or a file is missing or damaged.
    """
    for name in (WEIGHTS, "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_state(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = read_json(index)
            names = names.get("weight_map") if isinstance(names, dict) else None
            if not isinstance(names, dict) or not all(isinstance(part, str) for part in names.values()):
                raise UserError(f'{index} is damaged: it has no "weight_map" of tensors and files')
            parts = sorted(set(names.values()))
            # By their names, since the files of the hub's cache are links that lead out of it.
            if outside := [part for part in parts if PurePath(part).is_absolute() or ".." in PurePath(part).parts]:
                raise UserError(f'{index} is damaged: "{outside[0]}" lies outside its folder')
            missing = [part for part in parts if not (folder / part).is_file()]
            if missing:
                raise UserError(f"{folder} has no {missing[0]}, which its {index.name} names; fetch it again")
            return {key: value for part in parts for key, value in read_state(folder / part).items()}
    raise UserError(f"{folder} has neither {WEIGHTS} nor pytorch_model.bin; the model was not saved whole")


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file, as `read_checkpoint`."""
    return read_checkpoint(path).state


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read the tensors of a .safetensors, .pth, .pt or .bin file without executing anything in it.

    A state dict may stand in an entry of its own ("model", "state_dict", ...), and its names may begin with what
    DataParallel, torch.compile, FSDP or Lightning put before them.

    Raises:
        UserError: the file is cut short, holds more than tensors, or is of another kind; says which.
    """
    path = Path(path)
    head = read_head(path)
    if is_safetensors(head):
        try:
            return Checkpoint(_unprefixed(load_file(path), path))
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or cut short: {first_line(error)}") from error
    if found := instead_of_model(head):
        raise UserError(f"{path} is no checkpoint: it {found}")
    if path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")):
        raise UserError(f"{path} is damaged: it does not begin as a safetensors file does; fetch it again")
    loaded = _unpickle(path)
    notes = loaded.get(NOTES) if isinstance(loaded, dict) else None
    return Checkpoint(_unprefixed(_unwrapped(loaded, path), path), notes if isinstance(notes, dict) else {})


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles by others: they are refused below, or fine
            if path.suffix == ".safetensors":  # torch goes by the name, and this is none
                with open(path, "rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            # Files of torch before 1.6 are no zip archives and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a cut or changed pickle raises almost anything
        unsafe = isinstance(error, pickle.UnpicklingError) and re.search(r"[Uu]nsupported|GLOBAL", str(error))
        if unsafe:
            raise UserError(f"{path} holds more than tensors and was not opened; it could run code") from error
        message = "it ends too early" if isinstance(error, EOFError) else first_line(error)
        raise UserError(f"{path} is damaged, cut short, or no checkpoint: {message}") from error


def _unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what training scripts put around it."""
    for _ in range(4):
        inner = next((loaded[n] for n in _WRAPPED if isinstance(loaded, dict) and _holds(loaded.get(n))), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        held = f"; it holds {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, dict) and loaded else ""
        raise UserError(f"{path} holds no state dict of tensors{held}")
    return dict(loaded)


def _holds(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _unprefixed(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict under the model's own names."""
    plain = {_WRAPPERS.sub("", name): value for name, value in state.items()}
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): value for name, value in plain.items()}
    begin = _before_all(plain)
    plain = {name.removeprefix(begin): value for name, value in plain.items()}
    if len(plain) != len(state):
        raise UserError(f"{path} holds some tensors twice, with and without a wrapper's name; save its model alone")
    return plain


def _before_all(state: Mapping[str, Tensor]) -> str:
    """What stands before all names, such as Lightning's "model."."""
    for name in state:
        for anchor in _ANCHORS:
            if name.endswith(f".{anchor}"):
                begin = name.removesuffix(anchor)
                if all(other.startswith(begin) for other in state):
                    return begin
    return ""
