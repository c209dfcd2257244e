"""The commands that train and measure, as a user types them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from job_commands import CommandServer
from job_world import NANO, SMALL, TRAIN, World

pytestmark = pytest.mark.slow


def test_pretraining_leaves_a_model_and_everything_to_repeat_it(pretrained: Path, world: World) -> None:
    records = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["split"] == "train"]
    evaluations = [record for record in records if record["split"] == "eval"]
    assert [record["step"] for record in train] == list(range(5, 41, 5))
    for name in ("loss_itc", "loss_itm", "loss_lm"):
        assert all(math.isfinite(record[name]) for record in train)
    assert train[-1]["loss_lm"] < train[0]["loss_lm"] - 0.5
    assert evaluations[-1].keys() >= {"t2i_recall@1", "i2t_recall_itm@1", "itm_accuracy", "CIDEr", "perplexity"}
    config = json.loads((pretrained / "config.json").read_text())
    assert config["run"]["sources"][0]["path"] == str(world.folder)
    assert config["model"]["vision"]["image_size"] == 32
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in (pretrained / "model").iterdir()
    }
    assert any((pretrained / "tensorboard").iterdir())
    assert "done after 40 steps" in (pretrained / "log.txt").read_text()


def test_a_run_is_repeated_from_its_own_configuration(
    openblip: CommandServer, pretrained: Path, tmp_path: Path
) -> None:
    openblip(
        *("train", pretrained / "config.json", "--out", tmp_path / "again"),
        *("--set", "train.max_steps=10", "--set", "train.schedule=cosine"),
    )
    first, again = ((run / "metrics.jsonl").read_text().splitlines() for run in (pretrained, tmp_path / "again"))
    one, two = json.loads(first[0]), json.loads(again[0])
    assert one["step"] == two["step"] == 5
    # The cosine ends elsewhere; in the five steps of the warm-up the rates are the same.
    assert one["loss_lm"] == two["loss_lm"]


@pytest.mark.parametrize("kind", ["folder", "jsonl", "csv", "tar", "world"])
def test_every_kind_of_data_trains(openblip: CommandServer, world: World, tmp_path: Path, kind: str) -> None:
    data = {
        "folder": lambda: world.as_folder(tmp_path / "photos"),
        "jsonl": lambda: world.folder / "captions.jsonl",
        "csv": lambda: f"{world.as_csv(tmp_path / 'captions.csv')}?image_root={world.folder}",
        "tar": lambda: world.as_tar(tmp_path / "00000.tar"),
        "world": lambda: "world:train?n=48&size=32",
    }[kind]()
    done = openblip(*TRAIN, data, "--out", "run", *NANO, *SMALL, "--steps", 2, cwd=tmp_path)
    assert "The model is in run/model" in done.out
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["step"] == 2
    assert record["skipped"] == 0
    assert math.isfinite(record["loss"])


def test_a_tokenizer_is_learned_and_used(openblip: CommandServer, world: World, tmp_path: Path) -> None:
    done = openblip("tokenizer", world.folder, "--out", "words", "--vocab-size", 150, cwd=tmp_path)
    vocabulary = json.loads((tmp_path / "words" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) <= 150
    assert done.out.startswith("15")
    openblip(
        *(
            "train",
            "small-pretrain",
            world.folder,
            "--out",
            "run",
            *NANO,
            *SMALL,
            "--steps",
            1,
            "--set",
            "tokenizer=words",
        ),
        cwd=tmp_path,
    )
    info = json.loads(openblip("info", "run/model", cwd=tmp_path).out)
    assert info["vocab_size"] == int(done.out.split()[0])
    assert info["can"] == ["caption", "match", "embed", "retrieve", "classify", "score", "explain"]


def test_fine_tuning_a_captioner_keeps_what_writes(openblip: CommandServer, captioner: Path) -> None:
    info = json.loads(openblip("info", captioner).out)
    assert info["can"] == ["caption", "score", "explain"]
    assert info["info"]["prompt"] == "a picture of "
    records = [json.loads(line) for line in (captioner.parent / "metrics.jsonl").read_text().splitlines()]
    assert "loss_itc" not in records[0]
    assert records[-1]["split"] == "eval"
    assert records[-1]["CIDEr"] > 0


def test_fine_tuning_for_retrieval_keeps_what_matches(
    openblip: CommandServer, world: World, model: Path, tmp_path: Path
) -> None:
    openblip(
        *("train", "blip-retrieval", world.folder, "--model", model, "--out", "run", *SMALL),
        *("--set", "train.epochs=1", "--set", "objective.queue_size=32"),
        cwd=tmp_path,
    )
    can = json.loads(openblip("info", "run/model", cwd=tmp_path).out)["can"]
    assert can == ["match", "embed", "retrieve", "classify", "score", "explain"]
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "loss_lm" not in record
    # Three captions for each of 48 images are as many pairs: 18 steps of 8.
    assert record["step"] == 18


def test_evaluation_measures_and_writes_its_predictions(
    openblip: CommandServer, world: World, model: Path, tmp_path: Path
) -> None:
    done = openblip(
        *("evaluate", world.folder, "--model", model, "--samples", 12, "--rerank", 4, "--out", "measured"),
        cwd=tmp_path,
    )
    (metrics,) = done.records
    assert 0 <= metrics["t2i_recall@1"] <= metrics["t2i_recall@5"] <= 1
    (file,) = (tmp_path / "measured").glob("*.json")
    stored = json.loads(file.read_text())
    whole = {name: figure["value"] for name, figure in stored["metrics"].items()}
    assert {name: round(value, 6) for name, value in whole.items()} == metrics
    assert whole != metrics, "what is stored is not rounded"
    assert (stored["samples"], stored["limit"], stored["official"]) == (12, 12, False)
    predictions = file.with_suffix(".predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 12
    assert json.loads(predictions[0])["references"] == list(world.records[0]["captions"])  # type: ignore[call-overload]


def test_a_report_is_drawn(openblip: CommandServer, pretrained: Path, tmp_path: Path) -> None:
    openblip("report", pretrained, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "loss_itm" in page
    assert "<svg" in page or "data:image/png" in page
