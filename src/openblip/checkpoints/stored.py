"""What a stored model is, what was found where one was looked for, and what each family of models gives to open,
write and describe its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from openblip.checkpoints.recognise import describe
from openblip.checkpoints.state import Found
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.tokenizer import TextTokenizer
from openblip.core.weights import stored_tensors
from openblip.models.blip import Blip
from openblip.models.configs import Quantize

__all__ = [
    "PUBLISHED_TOKENIZER",
    "Family",
    "Like",
    "Options",
    "Packed",
    "Part",
    "StoredModel",
    "count_parameters",
    "fill",
    "unique_state",
]

Like = Literal["reference", "transformers"]
"""whose way of computing to follow where the two differ"""
Part = Literal["caption", "match"]
"""of a model that does both"""
PUBLISHED_TOKENIZER = "bert-base-uncased"


@dataclass
class StoredModel:
    """A model as it was found on disk."""

    model: Any
    """a `Blip`, `BlipVqa`, `BlipNlvr`, `BlipDual` or `Blip2`, in evaluation mode, on the CPU"""
    tokenizer: Any
    """the `TextTokenizer` of the text transformer or Q-Former; None where a BLIP-2 model has no text side"""
    info: dict[str, Any] = field(default_factory=dict)
    """what the writer noted: task, prompt, how it was trained"""
    ignored: list[str] = field(default_factory=list)
    """keys of the file that were known and not needed"""
    language_tokenizer: LanguageTokenizer | None = None
    """of BLIP-2's language model; None where there is none"""

    @property
    def reads_prompts(self) -> bool:
        """Whether BLIP-2's Q-Former reads what the language model is prompted with, as InstructBLIP's does."""
        return self.info.get("reads_prompts") is True

    @property
    def blip(self) -> Blip:
        """The model, where it captions or matches; other kinds are refused in one sentence."""
        if not isinstance(self.model, Blip):
            raise UserError(f"this is {describe(self.model.config)}; a BLIP captioning or matching model is needed")
        return self.model


@dataclass(frozen=True)
class Options:
    """How to open a model: the arguments of `store.open_model`; a family takes those that concern it."""

    tokenizer: TextTokenizer | str | None = None
    image_size: int | tuple[int, int] | None = None
    like: Like = "reference"
    vision: str | None = None
    language: str | None = None
    heads: Sequence[int] = ()
    language_dtype: str | None = None
    quantize: Quantize = "none"


class Packed(NamedTuple):
    """What goes into a model's folder besides the tokenizer."""

    config: Any
    """as config.json will have it"""
    state: dict[str, Tensor]
    """the tensors to write"""
    described: dict[str, Any]
    """further entries of config.json"""


class Family(Protocol):
    """What the module of a family does; `store` chooses the module."""

    def open_found(self, found: Found, options: Options) -> StoredModel:
        """Open what was found, in whichever format it is."""

    def pack(self, stored: StoredModel, folder: Path, *, whole: bool) -> Packed:
        """What to write into `folder`; `whole`: frozen parts too, whose own folders are written into it."""

    def take_part(self, stored: StoredModel, part: Part) -> StoredModel:
        """A model that does `part` alone, where the formats need one; else `stored` itself."""

    def write_transformers(self, folder: Path, stored: StoredModel, part: Part | None) -> None:
        """Write a folder that transformers opens, as its class for `part`, after `take_part`."""

    def original_entries(self, stored: StoredModel) -> dict[str, Any]:
        """What a file of the original repository (BLIP-2's is LAVIS) holds."""

    def facts(self, stored: StoredModel) -> dict[str, Any]:
        """What `openblip info` reports about this family's models beyond what it does of all."""

    def sizes(self, config: Any) -> dict[str, str]:
        """The sizes of a model's parts, in a few words for each."""


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with every shared tensor once, under its first name."""
    return stored_tensors(module)


def count_parameters(*modules: nn.Module) -> int:
    """Number of parameters, each shared one once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def fill(model: nn.Module, state: dict[str, Tensor], weights: Path, *, as_stored: Collection[str] = ()) -> None:
    """Load the tensors of one of our own folders into `model`, and switch it to evaluation.

    Floating-point tensors become float32. They must be all that has no values yet, which is what lies on the device
    "meta".

    Args:
        weights: the file they are from, for messages.
        as_stored: names of tensors that keep the dtype of the file.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    expected = unique_state(model)
    left = sorted(set(state) - set(expected))
    missing = sorted(name for name, value in expected.items() if name not in state and value.is_meta)
    if missing or left:
        what = f'lacks "{missing[0]}"' if missing else f'has the unexpected "{left[0]}"'
        raise UserError(f"{weights} does not fit its config.json: it {what}")
    for name, value in state.items():
        if expected[name].shape != value.shape:
            shapes = f"{tuple(value.shape)}, not {tuple(expected[name].shape)}"
            raise UserError(f'{weights}: "{name}" has shape {shapes}')
    kept = {name for name, value in state.items() if name in as_stored or not value.is_floating_point()}
    values = {name: value if name in kept else value.float() for name, value in state.items()}
    model.load_state_dict(values, strict=False, assign=True)
    # Buffers that no file holds have their values from when the model is made; made on "meta" they would have none.
    unset = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not unset, f'no values for the buffer "{unset[0]}" of {type(model).__name__}'
    model.eval()
