"""Cards of dialogs about images and of videos: VisDial, MSR-VTT, MSVD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openblip.data.cards.card import Archive, Card, Form, Target
from openblip.data.cards.shared import LAVIS_FILES, blip_form

__all__ = ["DIALOGS"]

_HOME = "https://visualdialog.org/data"
_MSRVTT = "https://www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip"
_MSRVTT_FIRST = "https://github.com/ArrowLuo/CLIP4Clip/releases/download/v0.0/msrvtt_data.zip"
_QA = "https://github.com/xudejing/video-question-answering"
_BLIP = "BLIP (arXiv 2201.12086)"


def _own(split: str) -> Form:
    return Form(f"visdial_1.0_{split}.json", _HOME, images=(f"VisualDialog_{split}2018",))


def _msrvtt(split: str) -> tuple[Form, ...]:
    """Captions of videos, as BLIP (the 1,000 of 1k-A) and LAVIS publish them, and the first files."""
    lavis = _video_form(f"retrieval_{split}.json", f"msrvtt/retrieval_{split}.json", "videos", frames=8)
    settings: dict[str, Any] = {"image_name": "{video_id}.mp4", "frames": 8}
    if split != "test":
        settings["split"] = {"train": "train", "val": "validate"}[split]
        first = Form("MSRVTT_data.json", _MSRVTT_FIRST, images=("videos",), image_root="videos", settings=settings)
        return lavis, first
    own = blip_form("msrvtt_test.jsonl", "videos", settings={"image_name": "{clip_name}.mp4", "frames": 8})
    # MSRVTT_data.json has 2,990 videos of test; which 1,000 of them are 1k-A, and one caption of each, is here.
    name = "MSRVTT_JSFUSION_test.csv"
    first = Form(name, _MSRVTT_FIRST, images=("videos",), image_root="videos", settings=settings)
    return replace(own, image_root="videos"), lavis, first


def _video_form(name: str, url: str, folder: str, **settings: Any) -> Form:
    return Form(name, f"{LAVIS_FILES}/{url}", by="LAVIS", images=(folder,), image_root=folder, settings=settings)


def _video_questions(dataset: str, folder: str, mapping: str = "") -> dict[str, tuple[Form, ...]]:
    """Questions about videos, as LAVIS publishes them, and as they were published first.

    Args:
        mapping: a file beside the first ones that names the videos.
    """
    splits: dict[str, tuple[Form, ...]] = {}
    for split in ("train", "val", "test"):
        forms: tuple[Form, ...] = (
            _video_form(f"qa_{split}.json", f"{dataset}/qa_{split}.json", folder, frames=16),
        )
        settings: dict[str, Any] = {"frames": 16}
        if not mapping:
            settings["image_name"] = "video{video_id}.mp4"
        name = f"{split}_qa.json"
        first = Form(name, _QA, beside=mapping, images=(folder,), image_root=folder, settings=settings)
        splits[split] = (*forms, first)
    return splits


DIALOGS: tuple[Card, ...] = (
    Card(
        name="visdial",
        title="VisDial v1.0, dialogs of ten rounds with 100 candidate answers each",
        task="dialog",
        home=_HOME,
        licence="unknown; images of train as of COCO",
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
            Target(
                "MRR / recall@1 / @5 / @10, val, fine-tuned",
                "BLIP",
                "69.41 / 56.44 / 85.90 / 93.30",
                f"{_BLIP}, table 9",
            ),
            Target("mean rank, val, fine-tuned", "BLIP", "3.20", f"{_BLIP}, table 9"),
        ),
        note="NDCG is measured where visdial_1.0_val_dense_annotations.json lies beside the split; the images of "
        "train are those of COCO",
    ),
    Card(
        name="msrvtt",
        title="MSR-VTT, videos with captions; test is 1k-A",
        task="retrieval",
        home=_MSRVTT,
        licence="unknown",
        splits={split: _msrvtt(split) for split in ("train", "val", "test")},
        archives=(Archive("videos", _MSRVTT, 10_000),),
        targets=(
            Target("recall@1 / @5 / @10, test, zero-shot", "BLIP", "43.3 / 65.6 / 74.7", f"{_BLIP}, table 10"),
        ),
        note='"zero-shot" is the model that was fine-tuned for retrieval on COCO, with 8 frames of each video; put '
        "the videos into msrvtt/videos",
    ),
    Card(
        name="msrvttqa",
        title="MSRVTT-QA, questions about videos",
        task="answering",
        home=_QA,
        licence="unknown; videos as of MSR-VTT",
        splits=_video_questions("msrvtt", "videos"),
        images_of="msrvtt",
        rule="exact",
        targets=(Target("accuracy, test, zero-shot", "BLIP", "19.2", f"{_BLIP}, table 11"),),
        note='"zero-shot" is the model that was fine-tuned on VQAv2, with 16 frames of each video',
    ),
    Card(
        name="msvdqa",
        title="MSVD-QA, questions about videos",
        task="answering",
        home=_QA,
        licence="unknown",
        splits=_video_questions("msvd", "YouTubeClips", mapping="youtube_mapping.txt"),
        archives=(Archive("YouTubeClips", "http://www.cs.utexas.edu/users/ml/clamp/videoDescription", 1_970),),
        rule="exact",
        targets=(Target("accuracy, test, zero-shot", "BLIP", "35.2", f"{_BLIP}, table 11"),),
        note='"zero-shot" is the model that was fine-tuned on VQAv2, with 16 frames of each video',
    ),
)
