"""The papers' runs against literal tables of what their sources say.

Sources: BLIP (arXiv 2201.12086), section 4.1 and table 14; BLIP-2 (arXiv 2301.12597), section 3.4, tables 2 to 9;
salesforce/BLIP at 056a169 (configs/*.yaml, train_*.py, models/*.py); salesforce/LAVIS at 506965b
(lavis/projects/blip2/train/*.yaml, lavis/models/blip2_models/*.py, lavis/tasks/*.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from openblip.checkpoints.blip import published_drop_path
from openblip.checkpoints.blip_hf import config_from_transformers
from openblip.models.blip import blip_config
from openblip.recipes.catalogue import recipe_named
from openblip.recipes.papers import RUNS
from openblip.tasks.config import RunConfig
from openblip.tasks.families.blip import nlvr_sizes, vqa_sizes

BLIP_PRETRAIN = {
    "gpus x batch_size": 2880,  # section 4.1; 90 on each of 32 GPUs: salesforce/BLIP#42
    "train.epochs": 20,
    "train.learning_rate": 3e-4,
    "train.schedule": "epoch-decay",
    "train.decay_rate": 0.85,  # section 4.1; configs/pretrain.yaml has 0.9
    "train.weight_decay": 0.05,
    "train.betas": (0.9, 0.999),  # the default of torch.optim.AdamW, pretrain.py
    "train.weight_decay_on": "all",  # pretrain.py: one group of parameters
    "train.min_learning_rate": 1e-6,  # configs/pretrain.yaml, and the three below
    "train.warmup_learning_rate": 1e-6,
    "train.warmup_steps": 3000,
    "objective.queue_size": 57600,
    "objective.alpha": 0.4,
    "objective.alpha_ramp_epochs": 2.0,  # pretrain.py: "ramp up alpha in the first 2 epochs"
    "objective.momentum": 0.995,  # models/blip_pretrain.py, and the three below
    "objective.objectives": ("itc", "itm", "lm"),
    "objective.negatives": "rank",
    "objective.negative_floor": 1e-4,  # models/blip_pretrain.py
    "max_length": 30,
    "max_words": 30,  # data/pretrain_dataset.py
    "vision_pretrained": "timm:deit_base_patch16_224.fb_in1k",  # models/blip_pretrain.py: deit_base_patch16_224
    "text_pretrained": "bert-base-uncased",
    "transform.crop_scale": (0.2, 1.0),  # pretrain.py: min_scale=0.2; data/__init__.py, and the two below
    "transform.num_ops": 2,
    "transform.op_probability": 0.5,  # transform/randaugment.py: get_random_ops
    "transform.magnitude": 5.0,
}
BLIP_TUNE = {
    "gpus x batch_size": 256,  # table 14, for ViT-L too
    "image_size": 384,  # section 4.1
    "train.schedule": "cosine-epoch",  # train_*.py: cosine_lr_schedule before each epoch
    "train.min_learning_rate": 0.0,  # configs/*.yaml
    "train.warmup_steps": 0,
    "train.weight_decay": 0.05,
    "train.betas": (0.9, 0.999),
    "train.weight_decay_on": "all",
    "train.layer_decay": 1.0,
    "transform.crop_scale": (0.5, 1.0),  # data/__init__.py: min_scale=0.5
    "transform.num_ops": 2,
    "transform.op_probability": 0.5,  # transform/randaugment.py: get_random_ops
    "transform.magnitude": 5.0,
}
BLIP_CAPTION = BLIP_TUNE | {
    "train.epochs": 5,  # table 14
    "train.learning_rate": 1e-5,
    "train.monitor": "CIDEr+BLEU-4",  # train_caption.py
    "prompt": "a picture of ",  # configs/caption_coco.yaml
    "max_length": 40,  # models/blip.py
    "max_words": 30,  # data/coco_karpathy_dataset.py
    "decode.num_beams": 3,
    "decode.min_new_tokens": 5 - 4,  # min_length 5 and max_length 20 count [DEC] and "a picture of"
    "decode.max_new_tokens": 20 - 4,
    "objective.label_smoothing": 0.1,  # models/med.py
    "validation": ("coco:val",),
}
BLIP_RETRIEVAL = BLIP_TUNE | {
    "train.epochs": 6,  # table 14
    "train.learning_rate": 1e-5,
    "train.monitor": "mean_recall_itm",  # train_retrieval.py: r_mean
    "objective.queue_size": 57600,  # configs/retrieval_*.yaml
    "objective.alpha": 0.4,
    "objective.alpha_ramp_epochs": 1.0,  # train_retrieval.py
    "objective.momentum": 0.995,  # models/blip_retrieval.py
    "objective.use_image_ids": True,
    "objective.negatives": "all",  # negative_all_rank: True for COCO
    "objective.negative_floor": 0.0,  # models/blip_retrieval.py
    "rerank_k": 256,  # k_test for COCO
    "max_length": 35,
    "max_words": 30,
    "validation": ("coco:val",),
}
BLIP_VQA = BLIP_TUNE | {
    "image_size": 480,  # configs/vqa.yaml
    "train.epochs": 10,  # table 14
    "train.learning_rate": 2e-5,
    "train.monitor": None,  # trained on the validation split too: the last epoch is used
    "max_length": 35,  # models/blip_vqa.py
    "decode.num_beams": 3,
    "decode.max_new_tokens": 10 - 1,  # max_length 10 counts [DEC]
    "answering.keep": 128,  # k_test
    "sources": ("vqav2:train", "vqav2:val", "vgqa:train"),
}
STAGE1 = {
    "gpus x batch_size": 1680,  # section 3.4, and all up to transform.ops
    "train.max_steps": 250_000,
    "train.learning_rate": 1e-4,
    "train.schedule": "cosine",
    "train.warmup_steps": 2000,
    "train.betas": (0.9, 0.98),
    "train.weight_decay": 0.05,
    "vision.source": "timm:eva_giant_patch14_clip_224",
    "text_pretrained": "bert-base-uncased",
    "transform.ops": (),  # random crops and flips alone
    "train.min_learning_rate": 1e-5,  # pretrain_stage1.yaml, salesforce/LAVIS#243
    "train.warmup_learning_rate": 1e-6,
    "train.weight_decay_on": "matrices",  # base_model.py
    "transform.crop_scale": (0.5, 1.0),  # blip_processors.py
    "max_length": 32,  # max_txt_len
    "max_words": 50,
    "embed_dim": 256,
    "stage1.negatives": "all",  # blip2_qformer.py: image_embeds_world
    "stage1.negative_floor": 1e-4,  # blip2_qformer.py at cd4db98, BLIP-2's release
}
STAGE2 = {
    "gpus x batch_size": 1920,  # section 3.4, and those below
    "train.max_steps": 80_000,
    "train.learning_rate": 1e-4,
    "train.min_learning_rate": 5e-5,
    "train.schedule": "cosine",
    "train.warmup_steps": 2000,
    "train.betas": (0.9, 0.98),
    "train.weight_decay": 0.05,
    "train.warmup_learning_rate": 1e-6,  # pretrain_stage2.yaml, and those below
    "max_length": 32,
    "max_words": 50,
    "transform.crop_scale": (0.5, 1.0),
    "transform.ops": (),
    "language.end": "\n",  # blip2_opt.py
}
STAGE2_T5 = STAGE2 | {"gpus x batch_size": 1520, "language.end": ""}
BLIP2_TUNE = {
    "train.epochs": 5,  # tables 7 to 9, and the five below
    "train.warmup_steps": 1000,
    "train.learning_rate": 1e-5,
    "train.betas": (0.9, 0.999),
    "train.weight_decay": 0.05,
    "unfreeze_vision": True,
    "train.schedule": "cosine-epoch",  # caption_coco_ft.yaml: linear_warmup_cosine_lr, lavis/common/optims.py
    "train.min_learning_rate": 0.0,
    "train.warmup_learning_rate": 1e-8,
    "train.weight_decay_on": "matrices",
    "transform.crop_scale": (0.5, 1.0),
    "transform.ops": (),
    "max_words": 50,
}
BLIP2_CAPTION = BLIP2_TUNE | {
    "gpus x batch_size": 256,  # table 7, and the four below
    "vision.image_size": 364,
    "prompt": "a photo of",
    "decode.num_beams": 5,
    "train.layer_decay": 1.0,
    "decode.min_new_tokens": 8 - 4,  # caption_coco_ft.yaml; at cd4db98 a decoder's prompt counts, "</s>a photo of"
    "decode.max_new_tokens": 30,
    "max_length": 32,
    "train.monitor": "CIDEr+BLEU-4",  # lavis/tasks/captioning.py
    "validation": ("coco:val",),
}
BLIP2_VQA = BLIP2_TUNE | {
    "gpus x batch_size": 128,  # table 8, and the four below
    "vision.image_size": 490,
    "prompt": "Question: {} Answer:",
    "decode.num_beams": 5,
    "train.layer_decay": 0.95,
    "decode.length_penalty": 0.0,  # blip2_opt.py; blip2_t5.py has -1
    "decode.max_new_tokens": 10,
    "sources": ("vqav2:train", "vqav2:val", "vgqa:train"),  # section 4.3
}
BLIP2_RETRIEVAL = BLIP2_TUNE | {
    "gpus x batch_size": 224,  # table 9, and the two below
    "vision.image_size": 364,
    "train.layer_decay": 0.95,
    "stage1.objectives": ("itc", "itm", "itg"),  # section 4.4
    "rerank_k": 128,
    "stage1.use_image_ids": True,
    "stage1.negatives": "all",
    "stage1.negative_floor": 0.0,  # blip2_qformer.py at 93e0179
    "max_length": 32,
    "train.monitor": "i2t_mean_recall_itm",  # lavis/tasks/retrieval.py
    "validation": ("coco:val",),
}
LARGE = {"train.learning_rate": 2e-4, "gpus x batch_size": 2400}
LARGE |= {"vision_pretrained": "timm:vit_large_patch16_224.augreg_in21k"}
VIT_L_TUNE = {"train.learning_rate": 5e-6, "train.betas": (0.9, 0.98)}  # table 9
CLIP = "timm:vit_large_patch14_clip_quickgelu_224.openai"  # its activation is QuickGELU: lavis/models/clip_vit.py

FACTS: dict[str, dict[str, Any]] = {
    "blip-pretrain-14m": BLIP_PRETRAIN,
    "blip-pretrain-129m": BLIP_PRETRAIN,
    "blip-pretrain-129m-large": BLIP_PRETRAIN | LARGE,
    "blip-pretrain-129m-capfilt-l": BLIP_PRETRAIN,
    "blip-capfilt-captioner": BLIP_CAPTION | {"train.learning_rate": 2e-6},
    "blip-capfilt-filter": BLIP_RETRIEVAL | {"train.learning_rate": 5e-6, "rerank_k": 128},
    "blip-retrieval-coco": BLIP_RETRIEVAL,
    "blip-retrieval-coco-large": BLIP_RETRIEVAL | {"train.learning_rate": 5e-6},
    "blip-retrieval-flickr30k": BLIP_RETRIEVAL
    | {"rerank_k": 128, "objective.negatives": "rank", "validation": ("flickr30k:val",)},  # retrieval_flickr.yaml
    "blip-caption-coco": BLIP_CAPTION,
    "blip-caption-coco-large": BLIP_CAPTION | {"train.learning_rate": 2e-6},
    "blip-vqa-vqav2": BLIP_VQA,
    "blip-nlvr2": BLIP_TUNE | {"train.epochs": 15, "train.learning_rate": 3e-5, "train.monitor": "accuracy"},
    "blip-dialog-visdial": BLIP_TUNE | {"gpus x batch_size": 240, "train.epochs": 20, "train.learning_rate": 2e-5},
    "blip2-stage1-vit-g": STAGE1,
    "blip2-stage1-vit-l": STAGE1 | {"gpus x batch_size": 2320, "vision.source": CLIP},
    "blip2-stage2-opt-2.7b": STAGE2 | {"language.source": "facebook/opt-2.7b"},
    "blip2-stage2-opt-6.7b": STAGE2 | {"language.source": "facebook/opt-6.7b"},
    "blip2-stage2-flan-t5-xl": STAGE2_T5 | {"language.source": "google/flan-t5-xl"},
    "blip2-stage2-flan-t5-xxl": STAGE2_T5 | {"language.source": "google/flan-t5-xxl"},
    "blip2-stage2-vit-l-opt-2.7b": STAGE2 | {"language.source": "facebook/opt-2.7b"},
    "blip2-stage2-vit-l-flan-t5-xl": STAGE2_T5 | {"language.source": "google/flan-t5-xl"},
    "blip2-caption-opt-2.7b": BLIP2_CAPTION,
    "blip2-caption-opt-6.7b": BLIP2_CAPTION | {"train.layer_decay": 0.95},
    "blip2-caption-flan-t5-xl": BLIP2_CAPTION | {"decode.min_new_tokens": 8 - 1},  # T5's first token counts
    "blip2-vqa-opt-2.7b": BLIP2_VQA,
    "blip2-vqa-opt-6.7b": BLIP2_VQA | {"train.layer_decay": 0.9},
    "blip2-vqa-flan-t5-xl": BLIP2_VQA | {"decode.length_penalty": -1.0},
    "blip2-retrieval-coco-vit-g": BLIP2_RETRIEVAL,
    "blip2-retrieval-coco-vit-l": BLIP2_RETRIEVAL | VIT_L_TUNE,
}
FIGURES = {
    "blip-pretrain-14m": [
        "80.6 / 63.1",
        "94.8 / 84.9",
        "38.6 / 129.7",
        "105.1 / 14.4",
        "77.54 / 77.62",
        "82.67 / 82.30",
    ],
    "blip-pretrain-129m": [
        "81.9 / 64.3",
        "96.0 / 85.0",
        "39.4 / 131.4",
        "106.3 / 14.3",
        "78.24 / 78.17",
        "82.48 / 83.08",
    ],
    "blip-pretrain-129m-large": ["82.4 / 65.1", "96.7 / 86.7", "40.4 / 136.7", "113.2 / 14.8"],
    "blip-pretrain-129m-capfilt-l": [
        "81.2 / 64.1",
        "96.0 / 85.5",
        "39.7 / 133.3",
        "109.6 / 14.7",
        "78.25 / 78.32",
        "82.15 / 82.24",
    ],
    "blip2-stage1-vit-l": ["83.5 / 66.3", "96.9 / 88.6"],  # table 5
    "blip2-stage2-vit-l-opt-2.7b": ["49.7", "30.2", "33.9"],  # table 2
    "blip2-stage2-opt-2.7b": ["52.3", "31.7", "34.6"],
    "blip2-stage2-opt-6.7b": ["52.6", "36.4", "36.4"],
    "blip2-stage2-vit-l-flan-t5-xl": ["62.3", "39.4", "44.4"],
    "blip2-stage2-flan-t5-xl": ["63.0", "40.7", "44.2"],
    "blip2-stage2-flan-t5-xxl": ["65.0", "45.9", "44.7"],
    "blip2-caption-opt-2.7b": ["145.8", "119.7"],  # table 3
    "blip2-caption-opt-6.7b": ["145.2", "121.0"],
    "blip2-caption-flan-t5-xl": ["144.5", "121.6"],
    "blip2-vqa-opt-2.7b": ["81.59 / 81.74"],  # table 4
    "blip2-vqa-opt-6.7b": ["82.19 / 82.30"],
    "blip2-vqa-flan-t5-xl": ["81.55 / 81.66"],
    "blip2-retrieval-coco-vit-g": ["85.4 / 68.3", "97.6 / 89.7"],  # table 5
    "blip2-retrieval-coco-vit-l": ["83.5 / 66.3", "96.9 / 88.6"],
}


def _config(name: str) -> RunConfig:
    recipe = recipe_named(name)
    return recipe.config(**dict.fromkeys(recipe.needs, "m"))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_settings_of_its_sources(name: str) -> None:
    config, paper = _config(name), RUNS[name].paper
    assert paper is not None
    found: dict[str, Any] = {}
    for fact in FACTS[name]:
        value: Any = paper.gpus * config.batch_size if fact.startswith("gpus") else config
        for part in () if fact.startswith("gpus") else fact.split("."):
            value = getattr(value, part)
        found[fact] = tuple(source.path for source in value) if fact in ("sources", "validation") else value
    assert found == FACTS[name]


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_expects_the_figures_of_its_paper(name: str) -> None:
    paper = RUNS[name].paper
    assert paper is not None
    assert [figure.value for figure in paper.figures] == FIGURES[name]


def test_towers_have_the_references_stochastic_depth() -> None:
    """models/blip.py, create_vit: 0.1 for ViT-L; models/blip_vqa.py and blip_nlvr.py: 0.1 for ViT-B too."""
    base, large, small = (blip_config(size) for size in ("base", "large", "micro"))
    assert (base.vision.drop_path, large.vision.drop_path) == (0.0, 0.1)
    for sizes in (vqa_sizes, nlvr_sizes):
        assert [sizes(blip).vision.drop_path for blip in (base, large, small)] == [0.1, 0.1, 0.0]
    # Files do not say it: a model that is opened is trained on with that of its kind.
    for tuned, wanted in ((False, [0.0, 0.1, 0.0]), (True, [0.1, 0.1, 0.0])):
        towers = (replace(blip.vision, drop_path=0.0) for blip in (base, large, small))
        assert [published_drop_path(tower, tuned=tuned) for tower in towers] == wanted


@pytest.mark.parametrize(
    ("depth", "parts", "wanted"),
    [
        (24, ("text_decoder.",), 0.1),
        (12, ("text_decoder.",), 0.0),
        (12, ("text_encoder.", "text_decoder."), 0.1),
        (2, ("text_encoder.", "text_decoder."), 0.0),
    ],
)
def test_models_of_the_hub_are_trained_on_with_it(depth: int, parts: tuple[str, ...], wanted: float) -> None:
    """Captioners and VQA models; like="transformers" is as there, without."""
    described = {"vision_config": {"num_hidden_layers": depth}, "text_config": {}}
    state = {f"{part}x": torch.zeros(1) for part in parts}
    for like, expected in (("reference", wanted), ("transformers", 0.0)):
        config = config_from_transformers(described, state, like)  # type: ignore[arg-type]
        assert config.vision.drop_path == expected


def test_what_a_row_is() -> None:
    """An annotation of the papers is one text: data/pretrain_dataset.py, data/nlvr_dataset.py; of LAION a fifth."""
    shares = {"laion:train": 0.2}
    for name, apart, rows in (
        ("blip-pretrain-14m", {"coco:train", "vg:train"}, 15.196e6),
        ("blip-pretrain-129m", {"coco:train", "vg:train"}, 15.196e6 + 115e6 / 5),
        ("blip2-stage1-vit-g", {"coco:train", "vg:train"}, None),
        ("blip-nlvr2", {"nlvr2:train"}, 86_373),
    ):
        sources, paper = _config(name).sources, RUNS[name].paper
        assert {source.path for source in sources if source.pairs} == apart
        for source in sources:
            wanted = shares.get(source.path, 1.0) if name.startswith("blip-") else 1.0
            assert source.epoch_share == wanted, name
        if rows is not None:
            assert paper is not None
            assert paper.samples == pytest.approx(rows, rel=0.01)
