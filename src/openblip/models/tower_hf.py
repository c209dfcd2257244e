"""Vision towers of transformers: the vision part of a model, as its image processor prepares images.

A model that reads texts too (CLIP, SigLIP) is loaded without its text side.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from openblip.core.errors import UserError, first_line
from openblip.core.files import write_json
from openblip.core.places import wrong_place
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, Triple
from openblip.models.tower_parts import Encoder, drop_last_blocks, settle_drop, tokens_of

__all__ = ["TransformersEncoder", "transformers_encoder", "write_description"]


class TransformersEncoder(nn.Module):
    """The last hidden state of a vision model of transformers as tokens, without registers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self._registers: int = getattr(self.model.config, "num_register_tokens", None) or 0
        # With it a model takes images of any size, and those of its own as it always does.
        named = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if named else {}

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> tokens [B, N, D]."""
        found = self.model(pixel_values=images, **self._options).last_hidden_state
        return tokens_of(found, registers=self._registers)


def transformers_encoder(
    name: str, *, image_size: int | None, drop_layers: int | None, pretrained: bool
) -> Encoder:
    """The vision model in the folder `name`, or of that name on the hub.

    Args:
        image_size: side of the images; None is that of its image processor, or else of its configuration.

    Raises:
        UserError: there is no such model, or it is no vision model.
    """
    model = _open(name, pretrained)
    processor = _processor(name)
    pixels = _pixels(processor, model.config, image_size)
    if pixels is None or not hasattr(model.config, "hidden_size"):
        raise UserError(f'"{name}" is no vision model of transformers: nothing says the size of its images')
    dropped = settle_drop(model, drop_layers)
    drop_last_blocks(model, dropped)
    mean, std = processor.get("image_mean") or IMAGE_MEAN, processor.get("image_std") or IMAGE_STD
    return Encoder(
        module=TransformersEncoder(model),
        width=model.config.hidden_size,
        pixels=pixels,
        mean=_triple(mean),
        std=_triple(std),
        drop_layers=dropped,
    )


def write_description(
    folder: Path, encoder: TransformersEncoder, *, pixels: tuple[int, int], mean: Triple, std: Triple
) -> None:
    """Write what `transformers_encoder` builds the encoder from where its weights are elsewhere."""
    encoder.model.config.save_pretrained(folder)
    size = {"height": pixels[0], "width": pixels[1]}
    write_json(folder / "preprocessor_config.json", {"size": size, "image_mean": mean, "image_std": std})


def _open(name: str, pretrained: bool) -> Any:
    """The vision model without what only pools its tokens."""
    from transformers import AutoConfig, AutoModel

    try:
        described: Any = AutoConfig.from_pretrained(name)
        vision = getattr(described, "vision_config", described)
        with _silent():
            model = _vision_alone(name, vision) if pretrained else AutoModel.from_config(vision)
    except (OSError, ValueError) as error:
        raise UserError(
            wrong_place(name)
            or f'"{name}" is neither a folder of transformers nor a model that the hub or its cache gives: '
            f"{first_line(error)}"
        ) from error
    model = getattr(model, "vision_model", model)
    _without_pooling(model)
    return model


def _vision_alone(name: str, vision: Any) -> Any:
    from transformers import AutoModel

    model, loaded = AutoModel.from_pretrained(name, config=vision, output_loading_info=True)
    missing = [key for key in loaded["missing_keys"] if "pooler" not in key]
    if missing:
        raise UserError(f'the weights of "{name}" lack "{min(missing)}" of its vision model')
    return model


def _without_pooling(model: Any) -> None:
    """Leave out the pooling, which nothing reads and whose weights a folder may lack."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    if getattr(model, "use_head", False):
        model.use_head = False
        del model.head


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' report of the weights that are not for the vision model."""
    from transformers.utils import logging

    spoken = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(spoken)


def _processor(name: str) -> dict[str, Any]:
    """The settings of its image processor; none where it brings none."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        found: dict[str, Any] = BaseImageProcessor.get_image_processor_dict(name)[0]
    except (OSError, ValueError):
        return {}
    return found


def _pixels(processor: dict[str, Any], config: Any, image_size: int | None) -> tuple[int, int] | None:
    """Height and width of the images."""
    if image_size is not None:
        return image_size, image_size
    cropped = processor.get("do_center_crop") and processor.get("crop_size")
    return _size(cropped or processor.get("size")) or _size(getattr(config, "image_size", None))


def _size(size: Any) -> tuple[int, int] | None:
    """Height and width from one of the forms in which transformers writes a size; None from any other."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        return _size(size.get("shortest_edge"))
    return None


def _triple(values: Any) -> Triple:
    one, two, three = (float(value) for value in values)
    return one, two, three
