"""The catalogue of experiments, its command, and the labels of what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.cli.experiments import Name
from openblip.core.config import override, to_dict
from openblip.core.text import read_json
from openblip.core.tokenizer import TextTokenizer
from openblip.experiments.catalogue import EXPERIMENTS
from openblip.experiments.labels import label, unit
from openblip.models.blip import Blip, blip_config

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


def test_the_command_names_the_catalogue() -> None:
    assert get_args(Name) == tuple(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_can_be_shown_and_set(name: str) -> None:
    made = EXPERIMENTS[name]
    assert (made.page is None) != (made.table is None)
    assert type(made.settings) is type(made.quick)
    for settings in (made.settings, made.quick):
        first = next(key for key, value in to_dict(settings).items() if isinstance(value, int))
        assert to_dict(override(settings, [f"{first}=7"]))[first] == 7


def test_experiments_that_share_a_folder_write_different_files() -> None:
    places = [(made.folder, made.files) for made in EXPERIMENTS.values()]
    assert len(places) == len(set(places))


def test_the_pointing_game_is_played_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = TextTokenizer.train(["a red circle", "a blue square"] * 3, vocab_size=60)
    blip = Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=64))
    save_model(tmp_path / "model", StoredModel(blip, tokenizer))
    command = ["experiments", "pointing", "--quick", "--out", str(tmp_path / "out"), "--seeds", "1"]
    assert main([*command, "--set", f"model={tmp_path / 'model'}"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == read_json(tmp_path / "out" / "results.json")
    stored = read_json(RESULTS / "pointing.json")
    assert result.keys() == stored.keys()
    assert [row.keys() for row in result["rows"][:1]] == [row.keys() for row in stored["rows"][:1]]
    assert {row["by"] for row in result["rows"]} == {"match", "caption"}
    assert sum(row["default"] for row in result["rows"]) == 2
    table = EXPERIMENTS["pointing"].table
    assert table is not None
    assert len(table(stored).splitlines()) == 1 + len(stored["rows"])
    assert "69.5%" in table(stored)


def test_labels_and_units() -> None:
    assert label("truth") == "captions true"
    assert label("novel_truth") == "captions true, new combinations"
    assert label("cached_seconds") == "from cached features"
    assert label("precision_web") == label("precision_synthetic") == "of the kept, true"
    assert label("auc_synthetic") == "AUC of ITM"
    assert label("kept_half-true") == "kept_half-true"
    assert [unit(name) for name in ("truth", "cached_parameters", "novel_mean_facts")] == ["fraction", "count", ""]
