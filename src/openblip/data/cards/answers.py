"""Cards of questions and statements about images: VQAv2, OK-VQA, A-OKVQA, GQA, Visual Genome's, NLVR2."""

from __future__ import annotations

from typing import Any

from openblip.data.cards.card import Archive, Card, Form, Target
from openblip.data.cards.shared import (
    BLIP_BASE,
    LAVIS_FILES,
    VISUAL_GENOME,
    blip_form,
    derived_visual_genome,
    visual_genome_form,
)

__all__ = ["ANSWERS", "ANSWER_LIST"]

_VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
_OKVQA = "https://okvqa.allenai.org/download.html"
_AOKVQA = "https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz"
_GQA = "https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip"
_NLVR = "https://github.com/lil-lab/nlvr/tree/master/nlvr2/data"
_NO_ANSWERS = {"need_answers": False}
ANSWER_LIST = "https://storage.googleapis.com/sfr-vision-language-research/datasets/answer_list.json"
"""the answers that BLIP ranks on VQAv2"""


def _vqav2(split: str) -> tuple[Form, ...]:
    """The original pair of files, and BLIP's."""
    questions = f"v2_OpenEnded_mscoco_{split}2014_questions.json"
    annotations = f"v2_mscoco_{split}2014_annotations.json"
    url = " and ".join(f"{_VQA}/v2_{part}_{split.capitalize()}_mscoco.zip" for part in ("Questions", "Annotations"))
    forms = (
        Form(questions, url, beside=annotations, images=(f"{split}2014",)),
        blip_form(f"vqa_{split}.json", f"{split}2014", by="BLIP, LAVIS"),
    )
    if split == "train":
        return forms
    name = "vqa_val_eval.json"  # in which LAVIS needs no answers: it compares with the original annotations
    lavis = Form(name, f"{LAVIS_FILES}/vqav2/{name}", by="LAVIS", images=("val2014",), settings=_NO_ANSWERS)
    return (*forms, lavis)


def _vqav2_test(split: str) -> tuple[Form, ...]:
    name = f"v2_OpenEnded_mscoco_{split}2015_questions.json"
    url = f"{_VQA}/v2_Questions_Test_mscoco.zip"
    own = Form(name, url, images=("test2015",), settings=_NO_ANSWERS)
    return (own, blip_form("vqa_test.json", "test2015", settings=_NO_ANSWERS)) if split == "test" else (own,)


def _okvqa(split: str) -> tuple[Form, ...]:
    folder, derived = f"{split}2014", {"train": "vqa_train.json", "val": "vqa_val_eval.json"}[split]
    return (
        Form(
            f"OpenEnded_mscoco_{folder}_questions.json",
            _OKVQA,
            beside=f"mscoco_{folder}_annotations.json",
            images=(folder,),
        ),
        # LAVIS saves okvqa_val_eval.json as vqa_val_eval.json.
        Form(f"*{derived}", f"{LAVIS_FILES}/okvqa/ok{derived}", by="LAVIS", images=(folder,)),
    )


def _aokvqa(split: str) -> tuple[Form, ...]:
    answers: dict[str, Any] = _NO_ANSWERS if split == "test" else {"answer_column": "direct_answers"}
    settings = {"image_name": f"{split}2017/{{image_id:012}}.jpg", **answers}
    name = f"aokvqa_v1p0_{split}.json"
    return (Form(name, _AOKVQA, images=(f"{split}2017",), settings=settings),)


def _gqa(split: str) -> tuple[Form, ...]:
    if split == "train_all":
        name = "train_all_questions/train_all_questions_*.json"
        named = {"image_name": "{imageId}.jpg"}
        return (Form(name, _GQA, parts=10, images=("images",), image_root="images", settings=named),)
    answered = split in ("train", "val", "testdev")
    settings: dict[str, Any] = {"image_name": "{imageId}.jpg", **({} if answered else _NO_ANSWERS)}
    return (
        Form(
            f"{split}_balanced_questions.json",
            _GQA,
            by="original, LAVIS",
            images=("images",),
            image_root="images",
            settings=settings,
        ),
    )


def _nlvr(split: str, derived: str = "", lavis: str = "") -> tuple[Form, ...]:
    settings = _NO_ANSWERS if split.startswith("test") else {}
    forms = [Form(f"{split}.json", _NLVR, images=(split,), settings=settings)]
    forms += [blip_form(derived, split, settings=settings)] if derived else []
    if lavis:
        url = f"{LAVIS_FILES}/nlvr/{derived} (save it as {lavis})"
        forms.append(Form(lavis, url, by="LAVIS", images=(split,), settings=settings))
    return tuple(forms)


_BLIP8 = "BLIP (arXiv 2201.12086), table 8"
_BLIP2_2 = "BLIP-2 (arXiv 2301.12597), table 2"
_LAVIS = "LAVIS, docs/benchmark.rst"
_OPT, _T5 = "BLIP-2 ViT-g, OPT-2.7B", "BLIP-2 ViT-g, FlanT5-XL"

ANSWERS: tuple[Card, ...] = (
    Card(
        name="vqav2",
        title="VQA v2.0",
        task="answering",
        home="https://visualqa.org/download.html",
        licence="annotations CC BY 4.0; images as of COCO",
        splits={
            "train": _vqav2("train"),
            "val": _vqav2("val"),
            "test": _vqav2_test("test"),
            "test-dev": _vqav2_test("test-dev"),
        },
        images_of="coco",
        rule="official",
        submission="vqa",
        targets=(
            Target("accuracy, test-dev / test-std, fine-tuned", BLIP_BASE, "78.25 / 78.32", _BLIP8),
            Target("accuracy, test-dev, zero-shot", _OPT, "52.3", _BLIP2_2),
            Target("accuracy, test-dev, zero-shot", _T5, "63.0", _BLIP2_2),
            Target(
                "accuracy, test-dev / test-std, fine-tuned",
                "BLIP-2 ViT-g, OPT-6.7B",
                "82.19 / 82.30",
                "BLIP-2 (arXiv 2301.12597), table 4",
            ),
        ),
        note=f"the figures of fine-tuned BLIP are by ranking the 3,128 answers of {ANSWER_LIST}; download it and "
        "pass it as --answers answer_list.json",
    ),
    Card(
        name="okvqa",
        title="OK-VQA; its test questions are those of val",
        task="answering",
        home="https://okvqa.allenai.org",
        licence="unknown; images as of COCO",
        splits={"train": _okvqa("train"), "val": _okvqa("val")},
        images_of="coco",
        rule="official",
        targets=(
            Target("accuracy, val, fine-tuned", BLIP_BASE, "55.4", _LAVIS),
            Target("accuracy, val, zero-shot", _OPT, "31.7", _BLIP2_2),
            Target("accuracy, val, zero-shot", _T5, "40.7", _BLIP2_2),
        ),
    ),
    Card(
        name="aokvqa",
        title="A-OKVQA, with direct answers and multiple choice; 2017 images",
        task="answering",
        home="https://github.com/allenai/aokvqa",
        licence="Apache 2.0; images as of COCO",
        splits={split: _aokvqa(split) for split in ("train", "val", "test")},
        images_of="coco",
        rule="direct",
        submission="aokvqa",
        targets=(Target("direct answers, val / test, fine-tuned", BLIP_BASE, "56.2 / 50.1", _LAVIS),),
        note="LAVIS counts the questions with difficult direct answers too, the official program does not",
    ),
    Card(
        name="gqa",
        title="GQA, balanced questions; train_all are all of train",
        task="answering",
        home="https://cs.stanford.edu/people/dorarad/gqa/download.html",
        licence="CC BY 4.0",
        splits={split: _gqa(split) for split in ("train", "train_all", "val", "testdev", "test", "challenge")},
        archives=(Archive("images", "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"),),
        rule="exact",
        submission="gqa",
        targets=(
            Target("accuracy, testdev, zero-shot", _OPT, "34.6", _BLIP2_2),
            Target("accuracy, testdev, zero-shot", _T5, "44.2", _BLIP2_2),
        ),
        note="the papers' figures normalise both sides, the official program does not",
    ),
    Card(
        name="vgqa",
        title="Visual Genome, questions",
        task="answering",
        home=VISUAL_GENOME,
        licence="CC BY 4.0",
        splits={
            "train": (
                visual_genome_form("question_answers.json", text_column="qas", answer_weight=0.2),
                *derived_visual_genome("vg_qa.json", also_in="vg", answer_weight=0.2),
            )
        },
        images_of="vg",
        note="BLIP trains on VQAv2 and on these with a weight of 0.2, LAVIS with answer_weight=1",
    ),
    Card(
        name="nlvr2",
        title="NLVR2, statements about two images",
        task="nlvr",
        home="https://lil.nlp.cornell.edu/nlvr/",
        licence="annotations CC BY 4.0; images under their own terms",
        splits={
            "train": _nlvr("train", "nlvr_train.json"),
            "dev": _nlvr("dev", "nlvr_dev.json"),
            "test1": _nlvr("test1", "nlvr_test.json", "test.json"),
            "test2": _nlvr("test2"),
        },
        archives=tuple(
            Archive(folder, "https://lil.nlp.cornell.edu/nlvr/ (on request)")
            for folder in ("train", "dev", "test1", "test2")
        ),
        submission="nlvr",
        targets=(Target("accuracy, dev / test-P", BLIP_BASE, "82.15 / 82.24", _BLIP8),),
        note="test1 is the papers' test-P",
    ),
)
