"""What an image processor of transformers does to the values of pixels, whatever it calls it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from openblip.core.errors import UserError
from openblip.models.pixels import Triple

__all__ = ["normalization", "pixel_statistics"]


def normalization(
    name: str, processor: Mapping[str, Any], usual: tuple[Sequence[float], Sequence[float]]
) -> tuple[Triple, Triple]:
    """`pixel_statistics` of the processor of the model `name`.

    Raises:
        UserError: what it says cannot be used.
    """
    try:
        return pixel_statistics(processor, usual)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f'the image processor of "{name}" cannot be followed: {error}') from error


def pixel_statistics(
    processor: Mapping[str, Any], usual: tuple[Sequence[float], Sequence[float]]
) -> tuple[Triple, Triple]:
    """Mean and standard deviation, of values from 0 to 1, that an image processor normalizes with.

    Args:
        usual: those of a processor that normalizes and does not say with what.

    Raises:
        TypeError, ValueError, ArithmeticError: its settings give no such numbers.
    """
    said = (processor.get("image_mean"), processor.get("image_std"))
    own = [_three(default if value is None else value) for value, default in zip(said, usual, strict=True)]
    # The processor that changes the order of colours (MobileViT's) normalizes only where that is said.
    normalizes = processor.get("do_normalize", "do_flip_channel_order" not in processor)
    mean, std = own if normalizes else (_three(0), _three(1))
    if processor.get("include_top"):  # EfficientNet's divides a second time
        std = [one * again for one, again in zip(std, own[1], strict=True)]
    told, factor = processor.get("rescale_factor"), 255.0
    if processor.get("do_rescale", True):  # pixels from 0 to 255 are multiplied, and may have 1 taken away
        factor = 1.0 if told is None else 255.0 * float(told)
        mean = [value + bool(processor.get("rescale_offset")) for value in mean]
    if not factor > 0:
        raise ValueError(f"it multiplies pixels by {told}; correct its rescale_factor")
    if not math.isclose(factor, 1.0, rel_tol=1e-6):  # 1 / 255 as it was written
        mean, std = ([value / factor for value in values] for values in (mean, std))
    if not (min(std) > 0 and all(map(math.isfinite, (*mean, *std)))):
        raise ValueError(f"it normalizes with a mean of {mean} and a standard deviation of {std}")
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _three(value: Any) -> list[float]:
    """A number for each channel; one alone is that of all, as transformers takes it."""
    values = [float(one) for one in value] if isinstance(value, list | tuple) else [float(value)]
    if len(values) not in (1, 3):
        raise ValueError(f"{len(values)} numbers for the three channels")
    return values * (3 // len(values))
