"""Open a model from anywhere as a `Predictor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from openblip.checkpoints.store import open_model
from openblip.core.compute import choose_dtype
from openblip.core.errors import UserError, nearest
from openblip.core.runtime import choose_device
from openblip.models.configs import Quantize
from openblip.tasks.predictor import Predictor
from openblip.tasks.registry import adapt

__all__ = ["load"]


def load(
    source: Path | str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 32,
    image_size: int | tuple[int, int] | None = None,
    tokenizer: str | None = None,
    like: Any = "reference",
    vision: str | None = None,
    language: str | None = None,
    quantize: Quantize = "none",
    cuda_graphs: bool = False,
) -> Predictor:
    """Open a model; see `checkpoints.store.open_model` for `source` and from `image_size` to `quantize`.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 where the device computes it fast.
        batch_size: images at a time.
        cuda_graphs: as `Predictor`'s.

    Raises:
        UserError: an option that there is not, or does not fit the model or the device.
    """
    if quantize not in get_args(Quantize):
        raise UserError(f'quantize cannot be "{quantize}"{nearest(str(quantize), get_args(Quantize))}')
    chosen = choose_device(device)
    if cuda_graphs and chosen.type != "cuda":
        raise UserError(f"CUDA graphs need a GPU of NVIDIA or AMD, and this computes on {chosen}; leave them out")
    numeric = choose_dtype(dtype, chosen)
    stored = open_model(
        source,
        tokenizer=tokenizer,
        image_size=image_size,
        like=like,
        vision=vision,
        language=language,
        language_dtype=str(numeric).removeprefix("torch."),
        quantize=quantize,
    )
    if quantize != "none" and getattr(stored.model, "language", None) is None:
        raise UserError(f"{source} has no language model to quantize; leave quantize out")
    return Predictor(adapt(stored), device=chosen, dtype=numeric, batch_size=batch_size, cuda_graphs=cuda_graphs)
