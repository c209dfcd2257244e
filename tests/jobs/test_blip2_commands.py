"""BLIP-2 from the command line: both stages, features on disk, use, measures, conversion, mistakes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from job_commands import CommandServer
from job_world import World, same_numbers

from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, blip_config

sys.path.append(str(Path(__file__).parents[1] / "unit" / "blip2"))
from small_blip2 import write_language

pytestmark = pytest.mark.slow

RUN = (
    *("--set", "batch_size=8", "--set", "num_workers=0", "--set", "train.log_every=2", "--set", "vocab_size=200"),
    *("--set", "validation_samples=6", "--set", "rerank_k=3", "--set", "train.trackers=[]"),
)


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP with drawn weights, whose vision tower is the frozen one."""
    folder = tmp_path_factory.mktemp("blip") / "model"
    tokenizer = TextTokenizer.train(["a red circle left of a blue square"], vocab_size=60)
    torch.manual_seed(0)
    save_model(
        folder, StoredModel(Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=32)), tokenizer)
    )
    return folder


@pytest.fixture(scope="session")
def stage1(openblip: CommandServer, world: World, blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 from features on disk, in two crops of each image, over the vision tower of a BLIP."""
    features, out = tmp_path_factory.mktemp("features") / "f", tmp_path_factory.mktemp("runs") / "stage1"
    tower = f"openblip:{blip}"
    how = ("--store", "int8", "--crops", 2, "--no-flip", "--num-workers", 0)
    done = openblip("cache-features", world.folder, "--vision", tower, "--out", features, *how)
    assert "48 of 48 images, " in done.err
    assert " images/s, 0:00:00 left" in done.err
    assert (found := re.search(r"Stored as int8: relative error (.*)%, mean cosine similarity 0\.9999", done.out))
    assert 0.1 < float(found[1]) < 1
    assert str(features) in done.out
    openblip(
        *(
            "train",
            "small-stage1",
            world.folder,
            "--out",
            out,
            "--vision",
            tower,
            "--model",
            "nano",
            "--steps",
            6,
        ),
        *(*RUN, "--set", f'features=["{features}"]', "--validation", world.folder),
    )
    return out


@pytest.fixture(scope="session")
def stage2(openblip: CommandServer, world: World, stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage2")
    llm = write_language(folder / "llm", "opt")
    openblip(
        *("train", "small-stage2", world.folder, "--out", folder / "run", "--model", stage1 / "model"),
        *("--language", llm, "--steps", 4, *RUN, "--set", "prompt=a photo of"),
    )
    return folder / "run"


def test_stage_1_matches_embeds_and_searches(openblip: CommandServer, world: World, stage1: Path) -> None:
    model, images = stage1 / "model", world.images[:3]
    done = openblip(
        "match", *images, "--model", model, "--text", world.texts[0], "--text", "two dogs", "--device", "cpu"
    )
    assert [len(record["matches"]) for record in done.records] == [2, 2, 2]
    done = openblip("embed", *images, "--model", model, "--device", "cpu")
    assert len(done.records) == 3
    done = openblip("retrieve", world.texts[0], *images, "--model", model, "--top", 2, "--device", "cpu")
    assert [record["rank"] for record in done.records] == [1, 2]
    (metrics,) = openblip("evaluate", world.folder, "--model", model, "--samples", 6, "--device", "cpu").records
    assert {"t2i_recall@1", "itm_accuracy", "itg_perplexity"} <= metrics.keys()
    info = json.loads(openblip("info", model).out)
    assert info["can"] == ["match", "embed", "retrieve", "classify", "caption", "score", "explain"]
    assert 0 < info["trained_parameters"] < info["parameters"]


def test_stage_2_captions_and_answers(openblip: CommandServer, world: World, stage2: Path, tmp_path: Path) -> None:
    model, images = stage2 / "model", world.images[:3]
    done = openblip("caption", *images, "--model", model, "--max-new-tokens", 5, "--device", "cpu")
    assert [len(record["captions"]) for record in done.records] == [1, 1, 1]
    done = openblip("ask", images[0], "--model", model, "--question", "what is it", "--device", "cpu")
    assert done.records
    told = ("--prompt", "question {} answer", "--length-penalty", "-1", "--num-answers", 2)
    done = openblip("ask", images[0], "--model", model, "--question", "what is it", *told, "--device", "cpu")
    assert len(done.records[0]["questions"][0]["answers"]) == 2
    (metrics,) = openblip("evaluate", world.folder, "--model", model, "--samples", 4, "--device", "cpu").records
    assert {"CIDEr", "perplexity"} <= metrics.keys()
    openblip("convert", model, tmp_path / "whole", "--to", "openblip")
    assert (tmp_path / "whole" / "language" / "config.json").is_file()
    again = openblip("caption", *images, "--model", tmp_path / "whole", "--max-new-tokens", 5, "--device", "cpu")
    done = openblip("caption", *images, "--model", model, "--max-new-tokens", 5, "--device", "cpu")
    same_numbers(again.records, done.records)


def test_a_run_resumes(openblip: CommandServer, world: World, stage2: Path) -> None:
    done = openblip(
        *("train", stage2 / "config.json", "--out", stage2, "--resume"),
        *("--set", "train.max_steps=5"),
    )
    assert "resuming from step 4 of 5" in done.err + done.out


def test_mistakes(openblip: CommandServer, world: World, stage1: Path, blip: Path, tmp_path: Path) -> None:
    blip2, data = stage1 / "model", world.folder
    assert "answers need a BLIP VQA model" in openblip.refuse(
        "ask", world.images[0], "--model", blip2, "--question", "what", "--device", "cpu"
    )
    for model in (blip, blip2):
        assert "--prompt tells BLIP-2" in openblip.refuse(
            "ask", world.images[0], "--model", model, "--question", "what", "--prompt", "so", "--device", "cpu"
        )
    assert "--vision, or" in openblip.refuse("cache-features", data, "--out", tmp_path / "f")
    assert "timm:NAME, hf:NAME" in openblip.refuse("cache-features", data, "--out", tmp_path / "f", "--vision", "x")
    assert "is no BLIP-2 model" in openblip.refuse(
        "train", "blip2-retrieval", data, "--model", blip, "--out", tmp_path / "r"
    )
    assert "language model" in openblip.refuse(
        *("train", "small-stage2", data, "--model", blip2, "--language", tmp_path, "--out", tmp_path / "s")
    )
    assert 'unknown setting "features2"' in openblip.refuse(
        *("train", "blip2-retrieval", data, "--model", blip2, "--out", tmp_path / "t", "--set", "features2=1")
    )
