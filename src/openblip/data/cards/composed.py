"""Cards of composed retrieval: CIRR and FashionIQ."""

from __future__ import annotations

from openblip.data.cards.card import Archive, Card, Form

__all__ = ["COMPOSED"]

_CIRR = "https://github.com/Cuberick-Orion/CIRR/tree/cirr_dataset"
_FASHION = "https://github.com/XiaoxiaoGuo/fashion-iq"
_FASHION_IMAGES = "https://github.com/hongwang600/fashion-iq-metadata"
_NO_TEXTS = {"need_texts": False}  # an image of the gallery from which nothing is asked


def _fashion(split: str) -> tuple[Form, ...]:
    name = f"captions/cap.{split}.json"
    return (Form(name, _FASHION, images=("images",), image_root="images", settings=_NO_TEXTS),)


COMPOSED: tuple[Card, ...] = (
    Card(
        name="cirr",
        title="CIRR, composed retrieval of images of NLVR2",
        task="composed",
        home="https://github.com/Cuberick-Orion/CIRR",
        licence="annotations MIT; images as of NLVR2",
        splits={
            split: (Form(f"captions/cap.rc2.{split}.json", _CIRR, images=(folder,), settings=_NO_TEXTS),)
            for split, folder in (("train", "train"), ("val", "dev"))
        },
        images_of="nlvr2",
        note="captions/ and image_splits/ as published; the targets of test1 are not public",
    ),
    Card(
        name="fashioniq",
        title="FashionIQ, composed retrieval of products",
        task="composed",
        home=_FASHION,
        licence="annotations CDLA; images unknown",
        splits={
            f"{kind}.{split}": _fashion(f"{kind}.{split}")
            for kind in ("dress", "shirt", "toptee")
            for split in ("train", "val")
        },
        archives=(Archive("images", _FASHION_IMAGES),),
        note="captions/ and image_splits/ as published; a gallery is the split's own list",
    ),
)
