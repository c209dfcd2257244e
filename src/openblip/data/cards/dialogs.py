"""Cards of dialogs about images: VisDial."""

from __future__ import annotations

from openblip.data.cards.card import Archive, Card, Form, Target

__all__ = ["DIALOGS"]

_HOME = "https://visualdialog.org/data"
_BLIP9 = "BLIP (arXiv 2201.12086), table 9"


def _own(split: str) -> Form:
    return Form(f"visdial_1.0_{split}.json", _HOME, images=(f"VisualDialog_{split}2018",))


DIALOGS: tuple[Card, ...] = (
    Card(
        name="visdial",
        title="VisDial v1.0, dialogs of ten rounds with 100 candidate answers each",
        task="dialog",
        home=_HOME,
        licence="annotations CC BY 4.0; images as of COCO",
        splits={
            "train": (Form("visdial_1.0_train.json", _HOME, images=("train2014", "val2014"), images_of="coco"),),
            "val": (_own("val"),),
            "test": (_own("test"),),
        },
        archives=(
            Archive("VisualDialog_val2018", _HOME, 2_064),
            Archive("VisualDialog_test2018", _HOME, 8_000),
        ),
        submission="visdial",
        targets=(
            Target("MRR / recall@1 / @5 / @10, val, fine-tuned", "BLIP", "69.41 / 56.44 / 85.90 / 93.30", _BLIP9),
            Target("mean rank, val, fine-tuned", "BLIP", "3.20", _BLIP9),
        ),
        note="NDCG is measured where visdial_1.0_val_dense_annotations.json lies beside the split; the images of "
        "train are those of COCO",
    ),
)
