"""What the cards of several datasets share: BLIP's files, those of Visual Genome, a model of published figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openblip.data.cards.card import Form

__all__ = [
    "BLIP_BASE",
    "LAVIS_FILES",
    "VISUAL_GENOME",
    "blip_form",
    "derived_visual_genome",
    "visual_genome_form",
]

BLIP_BASE = "BLIP ViT-B, 129M, CapFilt-L"
LAVIS_FILES = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/datasets"
VISUAL_GENOME = "https://homes.cs.washington.edu/~ranjay/visualgenome/"
_BLIP = "https://storage.googleapis.com/sfr-vision-language-research/datasets"


def blip_form(name: str, *folders: str, by: str = "BLIP", settings: Mapping[str, Any] | None = None) -> Form:
    """A file that BLIP derived, which names images in `folders`."""
    return Form(name, f"{_BLIP}/{name}", by=by, images=folders, settings=settings or {})


def visual_genome_form(name: str, **settings: Any) -> Form:
    """A file of Visual Genome, in which each row has all texts of an image."""
    folders = ("VG_100K", "VG_100K_2")
    return Form(
        name,
        f"{VISUAL_GENOME}data/dataset/{name}.zip",
        images=folders,
        image_root="+".join(folders),
        settings={"image_name": "{id}.jpg", **settings},
    )


def derived_visual_genome(name: str, *, also_in: str = "", **settings: Any) -> tuple[Form, ...]:
    """A file that BLIP derived from Visual Genome, with one text in a row.

    It names images as image/1.jpg, a folder of all of them; the images are published in two.
    """
    each = {"image_name": "{image:name}", **settings}
    return tuple(
        Form(
            name,
            f"{_BLIP}/{name}",
            by="BLIP, LAVIS",
            also_in=also_in,
            images=folders,
            image_root="+".join(folders),
            settings=each,
        )
        for folders in (("VG_100K", "VG_100K_2"), ("image",))
    )
