"""A model written in another's format: our folder, a transformers folder, ONNX graphs, or a file of the original
repository."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from openblip.checkpoints.card import model_card
from openblip.checkpoints.store import family, save_model
from openblip.checkpoints.stored import Part, StoredModel
from openblip.core.errors import UserError
from openblip.core.files import atomic_path, write_folder, write_text, write_torch

__all__ = ["Format", "convert_model"]

Format = Literal["openblip", "transformers", "blip", "onnx"]


def convert_model(stored: StoredModel, target: Path | str, *, to: Format, part: Part | None = None) -> Path:
    """Write `stored` at `target` in the format `to`; returns the path.

    Args:
        to: "blip" is the format of the original repository, which for BLIP-2 is LAVIS.
        part: of a pre-training model, which holds both: the captioner or the matching model.

    Raises:
        UserError: the format has no place for such a model, or the disk is full.
    """
    target, of_family = Path(target), family(stored)
    if part is not None:
        stored = of_family.take_part(stored, part)
    if to == "blip":
        if target.suffix not in (".pth", ".pt"):
            raise UserError(f"the original format is one file: name it {target}.pth")
        entries = of_family.original_entries(stored)
        with atomic_path(target) as temporary:
            write_torch(temporary, entries)
    elif to == "transformers":
        with write_folder(target) as folder:
            of_family.write_transformers(folder, stored, part)
            write_text(folder / "README.md", model_card(stored.model.config, stored.info, library="transformers"))
    elif to == "onnx":
        from openblip.checkpoints.onnx_files import write_onnx  # the exporter takes seconds to import

        with write_folder(target) as folder:
            write_onnx(folder, stored)
    else:
        save_model(target, stored, whole=True)
    return target
