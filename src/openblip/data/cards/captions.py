"""Cards of images with captions: COCO, Flickr30k, NoCaps, TextCaps, Visual Genome, web images as tars."""

from __future__ import annotations

from typing import Any

from openblip.data.cards.card import Archive, Card, Form, Target
from openblip.data.cards.shared import (
    BLIP_BASE,
    VISUAL_GENOME,
    blip_form,
    derived_visual_genome,
    visual_genome_form,
)

__all__ = ["CAPTIONS"]

_COCO = "http://images.cocodataset.org"
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_DENOTATIONS = "https://shannon.cs.illinois.edu/DenotationGraph/"
_TOOL = "https://github.com/rom1504/img2dataset"
_NO_TEXTS = {"need_texts": False}


def _karpathy(split: str, folders: tuple[str, ...]) -> tuple[Form, ...]:
    """BLIP's file of a split, and Karpathy's with all of them."""
    own = blip_form(f"coco_karpathy_{split}.json", *folders, by="BLIP, LAVIS")
    return own, Form("dataset_coco.json", _KARPATHY, by="Karpathy", images=folders, settings={"split": split})


def _coco(split: str) -> tuple[Form, ...]:
    if split == "test2014":  # without captions, which the server keeps
        url, settings = f"{_COCO}/annotations/image_info_test2014.zip", _NO_TEXTS
        return (Form(f"image_info_{split}.json", url, images=(split,), image_root=split, settings=settings),)
    url = f"{_COCO}/annotations/annotations_trainval{split[-4:]}.zip"
    return (Form(f"captions_{split}.json", url, images=(split,), image_root=split),)


def _flickr30k(split: str) -> tuple[Form, ...]:
    folder, original = "flickr30k-images", "results_20130124.token"
    if split == "all":
        return (Form(original, _DENOTATIONS, images=(folder,), image_root=folder),)
    own = blip_form(f"flickr30k_{split}.json", folder, by="BLIP, LAVIS")
    karpathy = Form(
        "dataset_flickr30k.json",
        _KARPATHY,
        by="Karpathy",
        images=(folder,),
        unsplit=original,
        image_root=folder,
        settings={"split": split},
    )
    return own, karpathy


def _textcaps(split: str, folder: str) -> tuple[Form, ...]:
    name = f"TextCaps_0.1_{split}.json"
    texts: dict[str, Any] = _NO_TEXTS if split == "test" else {"text_column": "caption_str"}
    settings = {"image_name": "{image_id}.jpg", **texts}
    url = f"https://dl.fbaipublicfiles.com/textvqa/data/textcaps/{name}"
    return (Form(name, url, images=(folder,), image_root=folder, settings=settings),)


def _web(name: str, title: str, home: str, licence: str, count: str) -> Card:
    """Web images that are downloaded by a tool, as tars."""
    form = Form("*.tar", _TOOL, by="img2dataset")
    return Card(
        name=name,
        title=title,
        task="pretraining",
        home=home,
        licence=licence,
        splits={"train": (form,)},
        note=f"{count}; download them with img2dataset as tars of output_format=webdataset",
    )


_BLIP7, _BLIP5, _BLIP6 = (f"BLIP (arXiv 2201.12086), table {number}" for number in (7, 5, 6))
_BLIP2_3, _BLIP2_5 = (f"BLIP-2 (arXiv 2301.12597), table {number}" for number in (3, 5))

CAPTIONS: tuple[Card, ...] = (
    Card(
        name="coco",
        title="COCO captions, 2014 images; Karpathy's splits are train, val and test",
        task="captioning",
        home="https://cocodataset.org",
        licence="annotations CC BY 4.0; images under Flickr's terms",
        splits={
            "train": _karpathy("train", ("train2014", "val2014")),
            "val": _karpathy("val", ("val2014",)),
            "test": _karpathy("test", ("val2014",)),
            **{split: _coco(split) for split in ("train2014", "val2014", "test2014", "train2017", "val2017")},
        },
        archives=(
            Archive("train2014", f"{_COCO}/zips/train2014.zip", 82_783),
            Archive("val2014", f"{_COCO}/zips/val2014.zip", 40_504),
            Archive("test2014", f"{_COCO}/zips/test2014.zip", 40_775),
            Archive("test2015", f"{_COCO}/zips/test2015.zip", 81_434),
            Archive("train2017", f"{_COCO}/zips/train2017.zip", 118_287),
            Archive("val2017", f"{_COCO}/zips/val2017.zip", 5_000),
            Archive("test2017", f"{_COCO}/zips/test2017.zip", 40_670),
        ),
        submission="coco",
        targets=(
            Target("BLEU-4 / CIDEr, test, fine-tuned", BLIP_BASE, "39.7 / 133.3", _BLIP7),
            Target("BLEU-4 / CIDEr, test, fine-tuned", "BLIP ViT-L, 129M", "40.4 / 136.7", _BLIP7),
            Target("CIDEr, test, fine-tuned", "BLIP-2 ViT-g, OPT-2.7B", "145.8", _BLIP2_3),
            Target("text / image recall@1, test, fine-tuned", BLIP_BASE, "81.2 / 64.1", _BLIP5),
            Target("text / image recall@1, test, fine-tuned", "BLIP ViT-L, 129M", "82.4 / 65.1", _BLIP5),
            Target("text / image recall@1, test, fine-tuned", "BLIP-2 ViT-g", "85.4 / 68.3", _BLIP2_5),
        ),
        note="Karpathy's train images lie in train2014 and in val2014; some images have more than five captions",
    ),
    Card(
        name="flickr30k",
        title="Flickr30k, Karpathy's splits; all is without splits",
        task="retrieval",
        home=_DENOTATIONS,
        licence="non-commercial research and education; images under Flickr's terms",
        splits={split: _flickr30k(split) for split in ("train", "val", "test", "all")},
        archives=(Archive("flickr30k-images", _DENOTATIONS, 31_783),),
        targets=(
            Target("text / image recall@1, test, zero-shot", BLIP_BASE, "96.0 / 85.5", _BLIP6),
            Target("text / image recall@1, test, zero-shot", "BLIP ViT-L, 129M", "96.7 / 86.7", _BLIP6),
            Target("text / image recall@1, test, zero-shot", "BLIP-2 ViT-g", "97.6 / 89.7", _BLIP2_5),
        ),
        note='"zero-shot" is the model that was fine-tuned for retrieval on COCO; the original captions file tells '
        "no splits, and is read as flickr30k:all",
    ),
    Card(
        name="nocaps",
        title="NoCaps, captions of objects that COCO does not have",
        task="captioning",
        home="https://nocaps.org",
        licence="CC BY 2.0",
        splits={
            "val": (
                Form(
                    "nocaps_val_4500_captions.json",
                    "https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json",
                    images=("val",),
                    image_root="val",
                    settings={"meta_columns": ("domain",)},
                ),
                blip_form("nocaps_val.json", "val", settings=_NO_TEXTS),
            ),
            "test": (
                Form(
                    "nocaps_test_image_info.json",
                    "https://s3.amazonaws.com/nocaps/nocaps_test_image_info.json",
                    images=("test",),
                    image_root="test",
                    settings=_NO_TEXTS,
                ),
                blip_form("nocaps_test.json", "test", settings=_NO_TEXTS),
            ),
        },
        archives=(
            Archive("val", "https://nocaps.org/download", 4_500),
            Archive("test", "https://nocaps.org/download", 10_600),
        ),
        submission="nocaps",
        targets=(
            Target("CIDEr / SPICE, val", BLIP_BASE, "109.6 / 14.7", _BLIP7),
            Target("CIDEr / SPICE, val", "BLIP ViT-L, 129M", "113.2 / 14.8", _BLIP7),
            Target("CIDEr, val, zero-shot", "BLIP-2 ViT-g, FlanT5-XL", "121.6", _BLIP2_3),
        ),
        note="4,500 images with ten captions each in val",
    ),
    Card(
        name="textcaps",
        title="TextCaps, captions of images with text in them",
        task="captioning",
        home="https://textvqa.org/textcaps/",
        licence="CC BY 4.0; images from Open Images, CC BY 2.0",
        splits={
            "train": _textcaps("train", "train_images"),
            "val": _textcaps("val", "train_images"),
            "test": _textcaps("test", "test_images"),
        },
        archives=(
            Archive("train_images", "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip", 25_119),
            Archive("test_images", "https://dl.fbaipublicfiles.com/textvqa/images/test_images.zip", 3_289),
        ),
        note="one caption in a row, five rows to an image",
    ),
    Card(
        name="vg",
        title="Visual Genome, region descriptions as captions",
        task="pretraining",
        home=VISUAL_GENOME,
        licence="CC BY 4.0",
        splits={
            "train": (
                visual_genome_form("region_descriptions.json", text_column="regions"),
                *derived_visual_genome("vg_caption.json"),
            )
        },
        archives=(
            Archive("VG_100K", "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip"),
            Archive("VG_100K_2", "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip"),
        ),
    ),
    _web(
        "cc3m",
        "Conceptual Captions 3M",
        "https://ai.google.com/research/ConceptualCaptions/",
        "free for any purpose, without warranty; images under their own terms",
        "3.3 million addresses",
    ),
    _web(
        "cc12m",
        "Conceptual 12M",
        "https://github.com/google-research-datasets/conceptual-12m",
        "free for any purpose, without warranty; images under their own terms",
        "12.4 million addresses",
    ),
    _web(
        "sbu",
        "SBU captions",
        "https://www.cs.rice.edu/~vo9/sbucaptions/",
        "unknown; images under Flickr's terms",
        "1 million addresses",
    ),
    _web(
        "laion",
        "LAION-400M",
        "https://laion.ai/blog/laion-400-open-dataset/",
        "addresses and texts CC BY 4.0; images under their own terms",
        "400 million addresses, of which BLIP used 115 million",
    ),
)
