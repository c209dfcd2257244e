"""Tensors out of files: of whatever kind by their first bytes, unwrapped, under the names of the model itself.

Nothing is unpickled but plain tensors: what torch wrote is read with its `weights_only`.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from openblip.core.errors import UserError, first_line
from openblip.core.kinds import instead_of_model, is_safetensors, read_head

__all__ = ["NOTES", "Checkpoint", "read_checkpoint", "read_state"]

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
        told = "it ends too early" if isinstance(error, EOFError) else first_line(error)
        raise UserError(f"{path} is damaged, cut short, or no checkpoint: {told}") from error


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
