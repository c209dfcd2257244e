"""An index of images that is searched by text and by image: `ImageIndex` (see `image_index`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openblip.index.filters import Filters

if TYPE_CHECKING:
    from openblip.index.image_index import Hit, ImageIndex

__all__ = ["Filters", "Hit", "ImageIndex"]


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is asked for: the catalog is looked at without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from openblip.index import image_index

    return getattr(image_index, name)
