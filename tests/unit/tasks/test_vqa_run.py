"""Fine-tuning to answer questions as a whole: what it learns, where it starts from, and continuing as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from PIL import Image

from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.models.blip import Blip, blip_config
from openblip.models.vqa import BlipVqa
from openblip.recipes.blip import vqa_finetune
from openblip.recipes.small import small_vqa
from openblip.tasks.answering import answer_list
from openblip.tasks.config import RunConfig, as_sources, load_run_config
from openblip.tasks.training import run_training

COLOURS = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}
ASKED = "what color is it?"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of one colour each, with two to four questions; some colours have a second, rarer answer."""
    folder = tmp_path_factory.mktemp("vqa")
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(48):
        name = list(COLOURS)[number % 3]
        pixels = np.clip(rng.normal(COLOURS[name], 12, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        said: Any = [name, name, name, "dark"] if number % 5 == 0 else name
        rows.append({"image": f"{number}.png", "question": ASKED, "answer": said})
        for other in list(COLOURS)[: number % 3 + 1]:
            answer = "yes" if other == name else "no"
            rows.append({"image": f"{number}.png", "question": f"is it {other}?", "answer": answer})
    (folder / "vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(data: Path, *settings: str, model: str = "nano", validate: bool = False) -> RunConfig:
    spec = str(data / "vqa.jsonl")
    made = small_vqa((spec,), model=model, validation=(spec,) if validate else (), steps=8)
    quiet = ("batch_size=8", "num_workers=0", "train.trackers=[]", "train.log_every=1", "decode.num_beams=1")
    return override(made, (*quiet, *settings))


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["split"] == "train"]


def test_it_learns_to_answer_both_ways_and_the_best_model_is_kept(data: Path, tmp_path: Path) -> None:
    settings = ("image_size=32", "train.max_steps=120", "train.learning_rate=3e-3", "train.warmup_steps=10")
    result = run_training(
        config(data, *settings, "train.evaluate_every_steps=60", validate=True), tmp_path / "run", show=False
    )
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["split"] == "eval"][-1]
    # Ten of 144 questions were answered otherwise by one of four people: by VQA's rule the usual answer counts 3/4.
    assert last["accuracy_most"] == pytest.approx(1 - 10 / 4 / 144)
    assert last["accuracy_generated"] > 0.97 * last["accuracy_most"]
    assert last["accuracy_ranked"] > 0.97 * last["accuracy_most"]
    assert result.best is not None
    assert result.best["name"] == "accuracy_generated"
    stored = open_model(tmp_path / "run" / "best")
    assert isinstance(stored.model, BlipVqa)
    assert stored.info["task"] == "answering"
    assert set(stored.info["answers"]) == {*COLOURS, "yes", "no", "dark"}
    assert stored.info["answers"] == (tmp_path / "run" / "answers.txt").read_text().splitlines()
    assert load_run_config(tmp_path / "run" / "config.json").task == "answering"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path, workers: int) -> None:
    settings = ("image_size=32", "train.schedule=constant", "train.gradient_accumulation=2", "batch_size=4")
    whole = config(data, *settings)
    run_training(whole, tmp_path / "whole", show=False)
    run_training(override(whole, ("train.max_steps=5",)), tmp_path / "parts", show=False)
    again = override(whole, (f"num_workers={workers}",))
    run_training(again, tmp_path / "parts", resume=True, show=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    first, second = ((tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "parts"))
    assert first == second
    assert len(losses(tmp_path / "whole")) == 8


def test_it_starts_from_a_pretrained_model_and_from_one_that_answers(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = small.vqa_tokenizer()
    blip = Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=32))
    save_model(tmp_path / "blip", StoredModel(blip, tokenizer))
    still = ("train.max_steps=1", "train.warmup_steps=0", "train.min_learning_rate=0", "train.learning_rate=1e-12")
    run_training(config(data, *still, model=str(tmp_path / "blip")), tmp_path / "first", show=False)
    stored = open_model(tmp_path / "first" / "model")
    assert stored.tokenizer.vocab_size == tokenizer.vocab_size
    torch.testing.assert_close(stored.model.vision.state_dict(), blip.vision.state_dict())
    torch.testing.assert_close(stored.model.text_encoder.state_dict(), blip.encoder.state_dict())
    torch.testing.assert_close(stored.model.text_decoder.state_dict(), blip.decoder.state_dict())
    run_training(config(data, *still, model=str(tmp_path / "first" / "model")), tmp_path / "second", show=False)
    torch.testing.assert_close(
        open_model(tmp_path / "second" / "model").model.state_dict(), stored.model.state_dict()
    )
    save_model(tmp_path / "captioner", StoredModel(blip.part(encoder=False, decoder=True), tokenizer))
    with pytest.raises(UserError, match="this model only writes captions"):
        run_training(config(data, model=str(tmp_path / "captioner")), tmp_path / "third", show=False)


def test_the_answers_to_rank_can_be_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("red\n\nred\nno\n")
    named = config(
        data, "image_size=32", "train.max_steps=1", f"answering.answers={tmp_path / 'few.txt'}", validate=True
    )
    run_training(named, tmp_path / "run", show=False)
    assert open_model(tmp_path / "run" / "model").info["answers"] == ["red", "no"]
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < record["accuracy_most"] < 1
    (tmp_path / "few.txt").write_text("\n")
    with pytest.raises(UserError, match=r"few\.txt holds no answers; write one on each line"):
        run_training(named, tmp_path / "again", show=False)
    without = override(named, ("answering.answers=", "answering.max_answers=0"))
    run_training(without, tmp_path / "free", show=False)
    record = json.loads((tmp_path / "free" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "accuracy_generated" in record
    assert "accuracy_ranked" not in record


def test_captions_are_no_questions(data: Path, tmp_path: Path) -> None:
    (data / "captions.jsonl").write_text(json.dumps({"image": "0.png", "caption": "a red image"}) + "\n")
    made = replace(config(data), sources=as_sources([str(data / "captions.jsonl")]))
    with pytest.raises(UserError, match=r"holds captions .* and no questions"):
        run_training(made, tmp_path / "run", show=False)


def test_the_recipe_is_the_papers_for_its_sizes_and_gentle_for_small_models(tmp_path: Path) -> None:
    paper = vqa_finetune(("vqa.jsonl?pairs=true",), model="pretrained.pth", validation=("val.jsonl",))
    assert (paper.image_size, paper.train.epochs, paper.train.learning_rate, paper.max_length) == (
        480,
        10,
        2e-5,
        35,
    )
    assert paper.sources[0].pairs
    assert (paper.answering.label_smoothing, paper.answering.keep, paper.decode.num_beams) == (0.1, 128, 3)
    words = small.tokenizer()
    save_model(tmp_path / "nano", StoredModel(Blip(blip_config("nano", vocab_size=words.vocab_size)), words))
    for model in ("micro", str(tmp_path / "nano")):
        assert vqa_finetune(("vqa.jsonl",), model=model).image_size is None, "it keeps its own"
    gentle = small_vqa(("vqa.jsonl",), model="micro")
    assert (gentle.train.learning_rate, gentle.transform.flip, gentle.transform.crop_scale) == (4e-3, False, None)


def test_an_empty_list_of_answers_is_not_kept(tmp_path: Path) -> None:
    """Else the next run into the folder, on data that are repaired, would refuse the list."""
    assert answer_list(config(tmp_path), (), tmp_path) == []
    assert not (tmp_path / "answers.txt").exists()
