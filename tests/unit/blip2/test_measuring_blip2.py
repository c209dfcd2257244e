"""BLIP-2's evaluations over data some of which cannot be used: nothing is put in its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_blip2 import PIXELS, write_language

from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.tokenizer import TextTokenizer
from openblip.data.measured import Measured
from openblip.generation.config import DecodeConfig
from openblip.models.blip import Blip, blip_config
from openblip.models.configs import TowerConfig
from openblip.recipes.blip2 import blip2_vqa
from openblip.recipes.small import small_stage1, small_stage2
from openblip.tasks.config import as_sources
from openblip.tasks.registry import adapt
from openblip.tasks.training import evaluate_model, run_training
from openblip.training.config import TrainConfig

TRAIN = TrainConfig(
    max_steps=1, warmup_steps=0, schedule="constant", evaluate_every_epochs=0, checkpoint_every=0, device="cpu",
    precision="float32", trackers=(),
)  # fmt: skip


def write(folder: Path) -> tuple[Path, Path, Path, Path]:
    """Tables of captions and of questions over four images, two of them broken; all of them, and the good two."""
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (60 * number, 30, 200 - 40 * number)).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"")
    (folder / "2.png").unlink()
    found = []
    for kind in ("captions", "questions"):
        for name, kept in (("all", range(4)), ("good", (0, 3))):
            text = {"caption": "a dog"} if kind == "captions" else {"question": "what is it?", "answer": "dog"}
            rows = (json.dumps({"image": f"{n}.png", **text}) + "\n" for n in kept)
            found.append(folder / f"{kind}-{name}.jsonl")
            found[-1].write_text("".join(rows))
    return found[0], found[1], found[2], found[3]


def test_all_of_its_measures(tmp_path: Path) -> None:
    captions, good_captions, questions, good_questions = write(tmp_path / "data")
    tokenizer = TextTokenizer.train(["a dog what is it"], vocab_size=60)
    torch.manual_seed(0)
    save_model(
        tmp_path / "blip",
        StoredModel(Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=PIXELS)), tokenizer),
    )
    tower, llm = f"openblip:{tmp_path / 'blip'}", write_language(tmp_path / "llm", "opt")
    shared: dict[str, Any] = {
        "batch_size": 2,
        "num_workers": 0,
        "train": TRAIN,
        "decode": DecodeConfig(max_new_tokens=4),
    }
    one = small_stage1((str(good_captions),), model="nano", vision=tower)
    one = replace(one, vocab_size=60, rerank_k=2, **shared)
    run_training(one, tmp_path / "one", show=False)
    two = small_stage2((str(good_captions),), model=str(tmp_path / "one" / "model"), language=str(llm))
    run_training(two := replace(two, **shared), tmp_path / "two", show=False)
    asks = blip2_vqa((str(good_questions),), model=str(tmp_path / "one" / "model"), language=str(llm))
    asks = replace(asks, vision=TowerConfig(), **shared)
    run_training(asks, tmp_path / "asks", show=False)
    cases = (("one", one, captions, good_captions), ("two", two, captions, good_captions))
    for name, config, every, good in (*cases, ("asks", asks, questions, good_questions)):
        adapter, measured = adapt(open_model(tmp_path / name / "model")), Measured()
        found, records = evaluate_model(
            replace(config, validation=as_sources((str(every),))), adapter, measured=measured
        )
        wanted, _ = evaluate_model(replace(config, validation=as_sources((str(good),))), adapter)
        assert found.pop("num_left_out") == 2
        assert found == pytest.approx(wanted, nan_ok=True)
        assert [record["key"] for record in records] == ([] if name == "one" else ["0.png", "3.png"])
        assert measured.num_images == 2
        assert {(o["key"], o["cause"]) for o in measured.left_out} == {("1.png", "empty"), ("2.png", "missing")}
