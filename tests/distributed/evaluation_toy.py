"""Every measure on small models and data of which some cannot be used; also a command that measures them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "unit" / "tasks"), str(TESTS / "unit" / "blip2")]

import small  # noqa: E402
import small_blip2  # noqa: E402

from openblip.core.runtime import rank  # noqa: E402
from openblip.data.measured import Measured  # noqa: E402
from openblip.generation.config import DecodeConfig  # noqa: E402
from openblip.models.nlvr import BlipNlvr, NlvrConfig  # noqa: E402
from openblip.tasks.config import RunConfig, TaskName, as_sources  # noqa: E402
from openblip.tasks.families.blip import BlipAdapter, NlvrAdapter, VqaAdapter  # noqa: E402
from openblip.tasks.families.blip2 import Blip2Adapter  # noqa: E402
from openblip.tasks.protocols import Adapter  # noqa: E402
from openblip.tasks.training import evaluate_model  # noqa: E402
from openblip.training import start  # noqa: E402

IMAGES = 7
GONE = 4
"""the image that is not there"""


def write(folder: Path) -> Path:
    """Tables over seven images, the fifth of which is missing, with a row that cannot be read in each; and folders
    of classes, one image of which is broken; dialogs as `dialogs` has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[str]] = {"captions": [], "questions": [], "statements": [], "composed": []}
    for number in range(IMAGES):
        if number != GONE:
            small.make_image(number).save(folder / f"{number}.png")
        for said in range(1 + number % 3):
            # No text twice: equal ones tie, and a tie is broken by the last bit.
            text = f"{small.TEXTS[said]} and {small.TEXTS[number]}"
            tables["captions"].append(json.dumps({"image": f"{number}.png", "caption": text}))
            question = small.QUESTIONS[(number + said) % len(small.QUESTIONS)]
            row = {"image": f"{number}.png", "question": question, "answer": small.ANSWERS[number % 6]}
            tables["questions"].append(json.dumps(row))
        row = {"reference": f"{number}.png", "text": small.TEXTS[number], "target": f"{(number + 1) % IMAGES}.png"}
        tables["composed"].append(json.dumps(row))
        place = folder / "classes" / ("bus", "dogs", "cat")[number % 3] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        small.make_image(number).save(place)
        for said in range(2):
            row = {"images": [f"{number}.png", f"{(number + 1) % IMAGES}.png"], "sentence": small.TEXTS[said]}
            tables["statements"].append(json.dumps(row | {"label": bool((number + said) % 2)}))
    place.write_bytes(b"no image")
    for name, lines in tables.items():
        (folder / f"{name}.jsonl").write_text("\n".join([*lines[:3], "{", *lines[3:]]) + "\n")
    (folder / "dialogs.json").write_text(json.dumps({"data": dialogs()}))
    rated = [[0, 0.5, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0.5], [0] * 6]
    dense = [{"image_id": n, "round_id": 2, "gt_relevance": one} for n, one in zip((0, 1, 6), rated, strict=True)]
    (folder / "dialogs_dense_annotations.json").write_text(json.dumps(dense))
    return folder


def dialogs() -> dict[str, Any]:
    """Two rounds about each image, and a third without a right answer about some; one dialog has no rounds."""
    found: list[dict[str, Any]] = []
    for number in range(IMAGES):
        said = [{"question": place, "answer_options": list(range(6))} for place in range(2 + number % 2)]
        for place, one in enumerate(said[:2]):
            one["gt_index"] = (number + place) % 6
        found.append({"image_id": number, "image": f"{number}.png", "caption": small.TEXTS[number], "dialog": said})
    found.insert(3, {"image_id": 99, "dialog": []})
    return {"questions": small.QUESTIONS, "answers": small.ANSWERS, "dialogs": found}


def adapters() -> dict[str, tuple[TaskName, str, Adapter]]:
    """For each measure its task, its data and the adapter of a small model."""
    blip, blip2 = small.model(), Blip2Adapter(small_blip2.model(), small_blip2.tokenizer())
    nlvr = BlipNlvr(NlvrConfig(vision=blip.config.vision, text=blip.config.text, merge_from=1))
    nlvr.start_from(blip)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in nlvr.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return {
        "blip": ("pretraining", "captions.jsonl", BlipAdapter(blip, small.tokenizer())),
        "answers": ("answering", "questions.jsonl", VqaAdapter(small.vqa_model(), small.vqa_tokenizer())),
        "statements": ("nlvr", "statements.jsonl", NlvrAdapter(nlvr.eval(), small.tokenizer())),
        "blip2": ("retrieval", "captions.jsonl", blip2),
        "classes": ("classification", "classes?classes=folder", BlipAdapter(blip, small.tokenizer())),
        "composed": ("composed", "composed.jsonl", blip2),
        "dialogs": ("dialog", "dialogs.json", VqaAdapter(small.vqa_model(), small.vqa_tokenizer())),
    }


def main(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """evaluation_toy.py OUT DATA SAMPLES: OUT/KIND-RANK.json has metrics, records' keys and what was left out."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    start("cpu")
    out_dir, data, samples = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    chosen = {"answering": small.ANSWERS, "classification": ("bus", "dogs", "cat")}
    for kind, (task, place, adapter) in adapters().items():
        config = RunConfig(
            family=adapter.family,
            task=task,
            sources=as_sources([f"{data}/{place}"]),
            validation=as_sources([f"{data}/{place}"]),
            validation_samples=samples,
            max_length=24,
            decode=DecodeConfig(num_beams=2, max_new_tokens=5),
            rerank_k=3,
        )
        measured = Measured()
        metrics, records = evaluate_model(
            config,
            adapter,
            answers=chosen.get(task, ()),
            measured=measured,
        )
        told = {"metrics": metrics, "keys": [record["key"] for record in records], "images": measured.num_images}
        told["left_out"] = [(one["key"], one["cause"]) for one in measured.left_out]
        (out_dir / f"{kind}-{rank()}.json").write_text(json.dumps(told))
