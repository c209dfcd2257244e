"""The runs of the two papers: a recipe each, with its data, its hardware and the figures to expect.

Settings and figures are the papers', or, where these say nothing, those of their published configurations
(salesforce/BLIP and salesforce/LAVIS), and times those that the authors told (salesforce/BLIP#2 and #19; BLIP-2,
section 3.4). Global batches are the papers' (BLIP#42: 90 on each of 32 GPUs). The memory of BLIP's A100 is not
published: 40 GB is assumed; of BLIP's ViT-L and BLIP-2's fine-tunings the number of GPUs is not either: 16 are.
Samples are those of an epoch: texts with their image, about 567K of COCO, 769K of Visual Genome, 860K of SBU, 3M of
CC3M and 10M of CC12M (not counted here), and a fifth of LAION's 115M. A figure of a pre-training is that of the
model after fine-tuning, or zero-shot where it says so. TR is the retrieval of texts for an image, IR that of images
for a text.
"""

from __future__ import annotations

from typing import Any

from openblip.data.cards.card import Target
from openblip.recipes.recipe import BLIP, BLIP2, PaperRun, Recipe

__all__ = ["RUNS"]

_BLIP_TABLES, _BLIP2_TABLES = "BLIP (arXiv 2201.12086)", "BLIP-2 (arXiv 2301.12597)"
# Each caption of an image is a row of the papers' annotations; of LAION BLIP reads a fifth in each epoch.
_HUMAN = ("coco:train?pairs=true", "vg:train?pairs=true")
_WEB = (*_HUMAN, "cc3m:train", "cc12m:train", "sbu:train")
_BLIP_WEB = (*_WEB, "laion:train?epoch_share=0.2")
_BLIP2_WEB = (*_WEB, "laion:train")
_VQA = ("vqav2:train?pairs=true", "vqav2:val?pairs=true", "vgqa:train?pairs=true")
_COCO = {"data": ("coco:train",), "validation": ("coco:val",)}
_FLICKR = {"data": ("flickr30k:train",), "validation": ("flickr30k:val",)}
_COCO_TEXTS, _FLICKR_TEXTS = 566_747, 145_000
_LARGE: dict[str, Any] = {"start": ("model=large",)}
_START = ("model",)
_BOOTSTRAPPED = (
    "the figures are of the second pre-training, on data that openblip capfilt has cleaned: name its folder, with "
    "?pairs=true, in place of the web data"
)
_FEW_HOURS = "a few hours on 16 A100 (BLIP#2)"


def _targets(table: str, model: str, **figures: str) -> tuple[Target, ...]:
    return tuple(Target(_MEASURES[name], model, value, table) for name, value in figures.items())


_MEASURES = {
    "coco_retrieval": "COCO TR / IR@1",
    "flickr_retrieval": "Flickr30k TR / IR@1, zero-shot",
    "flickr_tuned": "Flickr30k TR / IR@1",
    "coco_captions": "COCO BLEU-4 / CIDEr",
    "coco_cider": "COCO CIDEr",
    "nocaps": "NoCaps CIDEr / SPICE",
    "nocaps_cider": "NoCaps CIDEr, zero-shot",
    "vqa": "VQAv2 test-dev / std",
    "vqa_zero_shot": "VQAv2 test-dev, zero-shot",
    "okvqa_zero_shot": "OK-VQA, zero-shot",
    "gqa_zero_shot": "GQA, zero-shot",
    "nlvr": "NLVR2 dev / test-P",
    "visdial": "VisDial val MRR / recall@1",
}
_B_14M = _targets(
    f"{_BLIP_TABLES}, tables 5 to 8",
    "BLIP ViT-B, 14M",
    coco_retrieval="80.6 / 63.1", flickr_retrieval="94.8 / 84.9", coco_captions="38.6 / 129.7",
    nocaps="105.1 / 14.4", vqa="77.54 / 77.62", nlvr="82.67 / 82.30",
)  # fmt: skip
_B_129M = _targets(
    f"{_BLIP_TABLES}, tables 5 to 8",
    "BLIP ViT-B, 129M",
    coco_retrieval="81.9 / 64.3", flickr_retrieval="96.0 / 85.0", coco_captions="39.4 / 131.4",
    nocaps="106.3 / 14.3", vqa="78.24 / 78.17", nlvr="82.48 / 83.08",
)  # fmt: skip
_B_CAPFILT = _targets(
    f"{_BLIP_TABLES}, tables 5 to 8",
    "BLIP ViT-B, 129M, CapFilt-L",
    coco_retrieval="81.2 / 64.1", flickr_retrieval="96.0 / 85.5", coco_captions="39.7 / 133.3",
    nocaps="109.6 / 14.7", vqa="78.25 / 78.32", nlvr="82.15 / 82.24",
)  # fmt: skip
_L_129M = _targets(
    f"{_BLIP_TABLES}, tables 5 to 7",
    "BLIP ViT-L, 129M",
    coco_retrieval="82.4 / 65.1", flickr_retrieval="96.7 / 86.7", coco_captions="40.4 / 136.7",
    nocaps="113.2 / 14.8",
)  # fmt: skip


def _only(targets: tuple[Target, ...], *names: str) -> tuple[Target, ...]:
    wanted = {_MEASURES[name] for name in names}
    return tuple(target for target in targets if target.measure in wanted)


def _blip_pretrain(name: str, size: str, data: tuple[str, ...], summary: str, **paper: Any) -> Recipe:
    batch = 75 if size == "large" else 90
    return Recipe(
        name,
        "blip:blip_pretrain",
        summary,
        BLIP,
        takes=("vision", "text"),
        data=data,
        options_set={"model": size},
        settings=(f"batch_size={batch}",),
        paper=PaperRun(gpus=32, card="a100-40", **paper),
    )


def _blip_tune(name: str, function: str, summary: str, *settings: str, paper: PaperRun, **more: Any) -> Recipe:
    return Recipe(name, f"blip:{function}_finetune", summary, BLIP, _START, settings=settings, paper=paper, **more)


_BLIP_RUNS = (
    _blip_pretrain(
        "blip-pretrain-14m", "base", _WEB, "ViT-B on 14M images: COCO, VG, CC3M, CC12M, SBU",
        samples=15_200_000, took="3 to 4 days on 32 A100 (BLIP#2)", figures=_B_14M, note=_BOOTSTRAPPED,
    ),
    _blip_pretrain(
        "blip-pretrain-129m", "base", _BLIP_WEB, "ViT-B on 129M images: those, and 115M of LAION",
        samples=38_200_000, figures=_B_129M, note=_BOOTSTRAPPED,
    ),
    _blip_pretrain(
        "blip-pretrain-129m-large", "large", _BLIP_WEB, "ViT-L on 129M images",
        samples=38_200_000, took="8 to 9 days on 32 A100 (BLIP#2)", figures=_L_129M,
        note=_BOOTSTRAPPED,
    ),
    _blip_pretrain(
        "blip-pretrain-129m-capfilt-l", "base", _BLIP_WEB, "ViT-B on what CapFilt with ViT-L has cleaned",
        samples=38_200_000, figures=_B_CAPFILT, note=_BOOTSTRAPPED,
    ),
    _blip_tune(
        "blip-capfilt-captioner", "caption", "CapFilt: the captioner, from a pre-trained ViT-L",
        "train.learning_rate=2e-6", "batch_size=16",
        **_COCO, **_LARGE,
        paper=PaperRun(
            gpus=16, card="a100-40", samples=_COCO_TEXTS,
            note="then openblip capfilt DATA FOLDER --captioner MODEL --filter MODEL; the paper names no "
            "settings of this fine-tuning, these are those of captioning",
        ),
    ),
    _blip_tune(
        "blip-capfilt-filter", "retrieval", "CapFilt: the filter, from a pre-trained ViT-L",
        "train.learning_rate=5e-6", "batch_size=16", "train.gradient_checkpointing=0.5",
        **_COCO, **_LARGE,
        paper=PaperRun(
            gpus=16, card="a100-40", samples=_COCO_TEXTS,
            note="the paper names no settings of this fine-tuning, these are those of retrieval",
        ),
    ),
    _blip_tune(
        "blip-retrieval-coco", "retrieval", "retrieval on COCO, ViT-B",
        "rerank_k=256", "train.gradient_checkpointing=0.33",
        **_COCO,
        paper=PaperRun(
            gpus=8, card="a100-40", samples=_COCO_TEXTS,
            figures=_only(_B_129M, "coco_retrieval", "flickr_retrieval"),
            note='"zero-shot" on Flickr30k is this model',
        ),
    ),
    _blip_tune(
        "blip-retrieval-coco-large", "retrieval", "retrieval on COCO, ViT-L",
        "rerank_k=256", "train.learning_rate=5e-6", "batch_size=16", "train.gradient_checkpointing=0.5",
        **_COCO, **_LARGE,
        paper=PaperRun(
            gpus=16, card="a100-40", samples=_COCO_TEXTS,
            figures=_only(_L_129M, "coco_retrieval", "flickr_retrieval"),
        ),
    ),
    _blip_tune(
        "blip-retrieval-flickr30k", "retrieval", "retrieval on Flickr30k, ViT-B",
        "objective.negatives=rank", "train.gradient_checkpointing=0.33",
        **_FLICKR,
        paper=PaperRun(
            gpus=8, card="a100-40", samples=_FLICKR_TEXTS,
            figures=_targets("LAVIS, docs/benchmark.rst", "BLIP ViT-B", flickr_tuned="96.9 / 87.5"),
        ),
    ),
    _blip_tune(
        "blip-caption-coco", "caption", "captions of COCO, ViT-B",
        **_COCO,
        paper=PaperRun(
            gpus=8, card="a100-40", samples=_COCO_TEXTS, figures=_only(_B_CAPFILT, "coco_captions", "nocaps"),
        ),
    ),
    _blip_tune(
        "blip-caption-coco-large", "caption", "captions of COCO, ViT-L",
        "train.learning_rate=2e-6", "batch_size=16", "train.gradient_checkpointing=0.2",
        **_COCO, **_LARGE,
        paper=PaperRun(
            gpus=16, card="a100-40", samples=_COCO_TEXTS, took=_FEW_HOURS,
            figures=_only(_L_129M, "coco_captions", "nocaps"),
        ),
    ),
    _blip_tune(
        "blip-vqa-vqav2", "vqa", "questions of VQAv2 and Visual Genome, ViT-B",
        data=_VQA,
        paper=PaperRun(
            gpus=16, card="a100-40", samples=658_111, figures=_only(_B_CAPFILT, "vqa"),
            note="train and val of VQAv2, whose 658,111 questions are counted, and Visual Genome's, which are not; "
            "test-dev and test-std are of the evaluation server: openblip evaluate --submission",
        ),
    ),
    _blip_tune(
        "blip-nlvr2", "nlvr", "statements about two images of NLVR2, ViT-B",
        data=("nlvr2:train?pairs=true",), validation=("nlvr2:dev",),
        paper=PaperRun(gpus=16, card="a100-40", samples=86_373, figures=_only(_B_129M, "nlvr")),
    ),
    _blip_tune(
        "blip-dialog-visdial", "dialog", "dialogs of VisDial v1.0, ViT-B",
        "batch_size=15",
        data=("visdial:train",), validation=("visdial:val",),
        paper=PaperRun(
            gpus=16, card="a100-40", samples=123_287,
            figures=_targets(f"{_BLIP_TABLES}, table 9", "BLIP", visdial="69.41 / 56.44"),
            note="the paper's batch of 240 is taken for one of dialogs, with all their rounds; what else it leaves "
            "open is in docs/dialog.md",
        ),
    ),
)  # fmt: skip

_ALL_NEGATIVES = "stage1.negatives=all"
"""as LAVIS' blip2_qformer.py draws them"""
_VIT_L = "timm:vit_large_patch14_clip_quickgelu_224.openai"
_ZERO_SHOT = ("vqa_zero_shot", "okvqa_zero_shot", "gqa_zero_shot")
_STAGE1_TIME = "less than 6 days on 16 A100 40 GB for ViT-g and FlanT5-XXL (section 3.4)"
_STAGE2_TIME = "less than 3 days on 16 A100 40 GB for ViT-g and FlanT5-XXL (section 3.4)"
_CLEANED = (
    "the paper's web images have captions by BLIP ViT-L, ranked by CLIP (docs/capfilt.md): name the folder of "
    "openblip capfilt in place of the web data"
)


def _stage1(name: str, vision: str, batch: int, tower: str, **figures: str) -> Recipe:
    return Recipe(
        name, "blip2:blip2_stage1", f"stage 1: {tower}", BLIP2, takes=("vision", "text"), data=_BLIP2_WEB,
        options_set={"vision": vision} if vision else {},
        settings=(f"batch_size={batch}", _ALL_NEGATIVES),
        paper=PaperRun(
            gpus=16, card="a100-40", took=_STAGE1_TIME if not vision else "", note=_CLEANED,
            figures=_targets(f"{_BLIP2_TABLES}, table 5", f"BLIP-2 {tower}", **figures),
        ),
    )  # fmt: skip


def _stage2(name: str, language: str, title: str, figures: tuple[str, str, str], vision: str = "") -> Recipe:
    t5 = "t5" in language
    tower = "ViT-L" if vision else "ViT-g"
    return Recipe(
        name, "blip2:blip2_stage2", f"stage 2: {tower} and {title}", BLIP2, _START, ("language",), data=_BLIP2_WEB,
        options_set={"language": language},
        settings=(f"batch_size={95 if t5 else 120}",),
        start=(f"vision.source={vision}",) if vision else (),
        paper=PaperRun(
            gpus=16, card="a100-40", note=_CLEANED, took=_STAGE2_TIME if language.endswith("xxl") else "",
            figures=_targets(
                f"{_BLIP2_TABLES}, table 2", f"BLIP-2 {tower}, {title}",
                **dict(zip(_ZERO_SHOT, figures, strict=True)),
            ),
        ),
    )  # fmt: skip


def _blip2_tune(
    name: str, function: str, summary: str, *settings: str, start: tuple[str, ...], paper: PaperRun, **more: Any
) -> Recipe:
    return Recipe(
        name, f"blip2:blip2_{function}", summary, BLIP2, _START, settings=settings, start=start, paper=paper, **more
    )


def _blip2_captions(name: str, language: str, title: str, coco: str, nocaps: str, *settings: str) -> Recipe:
    return _blip2_tune(
        name, "caption", f"captions of COCO, ViT-g and {title}", *settings,
        **_COCO,
        start=(f"language.source={language}",),
        paper=PaperRun(
            gpus=16, card="a100-40", samples=_COCO_TEXTS,
            figures=_targets(
                f"{_BLIP2_TABLES}, table 3", f"BLIP-2 ViT-g, {title}", coco_cider=coco, nocaps_cider=nocaps,
            ),
        ),
    )  # fmt: skip


def _blip2_questions(name: str, language: str, title: str, figure: str, *settings: str) -> Recipe:
    return _blip2_tune(
        name, "vqa", f"questions of VQAv2 and Visual Genome, ViT-g and {title}", "batch_size=8", *settings,
        data=_VQA, takes=("language",),
        start=(f"language.source={language}",),
        paper=PaperRun(
            gpus=16, card="a100-40", samples=658_111,
            figures=_targets(f"{_BLIP2_TABLES}, table 4", f"BLIP-2 ViT-g, {title}", vqa=figure),
            note="VQAv2's 658,111 questions are counted, Visual Genome's are not; from a model of stage 2 add "
            "--set text_pretrained=STAGE1, so that the Q-Former reads the questions as in the paper",
        ),
    )  # fmt: skip


def _blip2_retrieval(name: str, vision: str, tower: str, *settings: str, **figures: str) -> Recipe:
    return _blip2_tune(
        name, "retrieval", f"retrieval on COCO, {tower}", "batch_size=14", _ALL_NEGATIVES, *settings,
        **_COCO,
        start=(f"vision.source={vision}",) if vision else (),
        paper=PaperRun(
            gpus=16, card="a100-40", samples=_COCO_TEXTS,
            figures=_targets(f"{_BLIP2_TABLES}, table 5", f"BLIP-2 {tower}", **figures),
        ),
    )  # fmt: skip


_OPT_27, _OPT_67 = ("facebook/opt-2.7b", "OPT-2.7B"), ("facebook/opt-6.7b", "OPT-6.7B")
_T5_XL, _T5_XXL = ("google/flan-t5-xl", "FlanT5-XL"), ("google/flan-t5-xxl", "FlanT5-XXL")
_RETRIEVAL_G = {"coco_retrieval": "85.4 / 68.3", "flickr_retrieval": "97.6 / 89.7"}
_RETRIEVAL_L = {"coco_retrieval": "83.5 / 66.3", "flickr_retrieval": "96.9 / 88.6"}
_BLIP2_RUNS = (
    _stage1("blip2-stage1-vit-g", "", 105, "ViT-g", **_RETRIEVAL_G),
    _stage1("blip2-stage1-vit-l", _VIT_L, 145, "ViT-L of CLIP", **_RETRIEVAL_L),
    _stage2("blip2-stage2-opt-2.7b", *_OPT_27, ("52.3", "31.7", "34.6")),
    _stage2("blip2-stage2-opt-6.7b", *_OPT_67, ("52.6", "36.4", "36.4")),
    _stage2("blip2-stage2-flan-t5-xl", *_T5_XL, ("63.0", "40.7", "44.2")),
    _stage2("blip2-stage2-flan-t5-xxl", *_T5_XXL, ("65.0", "45.9", "44.7")),
    _stage2("blip2-stage2-vit-l-opt-2.7b", *_OPT_27, ("49.7", "30.2", "33.9"), _VIT_L),
    _stage2("blip2-stage2-vit-l-flan-t5-xl", *_T5_XL, ("62.3", "39.4", "44.4"), _VIT_L),
    _blip2_captions("blip2-caption-opt-2.7b", *_OPT_27, "145.8", "119.7"),
    _blip2_captions("blip2-caption-opt-6.7b", *_OPT_67, "145.2", "121.0", "train.layer_decay=0.95"),
    _blip2_captions("blip2-caption-flan-t5-xl", *_T5_XL, "144.5", "121.6", "decode.min_new_tokens=7"),
    _blip2_questions("blip2-vqa-opt-2.7b", *_OPT_27, "81.59 / 81.74"),
    _blip2_questions("blip2-vqa-opt-6.7b", *_OPT_67, "82.19 / 82.30", "train.layer_decay=0.9"),
    _blip2_questions("blip2-vqa-flan-t5-xl", *_T5_XL, "81.55 / 81.66", "decode.length_penalty=-1"),
    _blip2_retrieval("blip2-retrieval-coco-vit-g", "", "ViT-g", **_RETRIEVAL_G),
    _blip2_retrieval(
        "blip2-retrieval-coco-vit-l", _VIT_L, "ViT-L of CLIP",
        "train.learning_rate=5e-6", "train.betas=[0.9, 0.98]", **_RETRIEVAL_L,
    ),
)  # fmt: skip

RUNS: dict[str, Recipe] = {recipe.name: recipe for recipe in (*_BLIP_RUNS, *_BLIP2_RUNS)}
"""by name, those of BLIP first"""
