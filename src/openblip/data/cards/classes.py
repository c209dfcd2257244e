"""Cards of images in folders of classes: ImageNet."""

from __future__ import annotations

from openblip.data.cards.card import Card, Form

__all__ = ["CLASSES"]

_IMAGENET = "https://image-net.org/download.php"
_NAMES = "classes.txt"


def _sorted(split: str) -> tuple[Form, ...]:
    """A folder with a folder for each class, and the file of names beside it."""
    return (Form(split, _IMAGENET, beside=_NAMES, settings={"classes": f"../{_NAMES}"}),)


CLASSES: tuple[Card, ...] = (
    Card(
        name="imagenet",
        title="ImageNet-1k, images sorted into folders of their synsets",
        task="classification",
        home=_IMAGENET,
        licence="non-commercial research and education",
        splits={"train": _sorted("train"), "val": _sorted("val")},
        note=f"{_NAMES} is yours: a line for each synset, n01440764 and tench, every class with a name of its own",
    ),
)
