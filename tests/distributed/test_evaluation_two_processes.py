"""Every measure over several gloo processes, each with its part of the data, equals that of one process.

Seven images do not divide by two or three, one is missing and a row of each table cannot be read: nothing is
counted twice, nothing is left out on the way.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import evaluation_toy
import launching
import pytest
from kept_results import kept_predictions

pytestmark = pytest.mark.slow

KINDS = ("blip", "answers", "statements", "blip2", "classes", "composed", "dialogs")
RECALLS = tuple(f"{way}_recall{itm}@{k}" for way in ("t2i", "i2t") for itm in ("", "_itm") for k in (1, 5, 10))
MEASURES = {
    "blip": {*RECALLS, "itm_accuracy", "itm_auc", "CIDEr", "BLEU-4", "ROUGE-L", "perplexity"},
    "answers": {"accuracy_generated", "accuracy_ranked", "accuracy_most"},
    "statements": {"accuracy", "consistency"},
    "blip2": {*RECALLS, "itm_accuracy"},
    "classes": {"accuracy_top1", "accuracy_mean_per_class"},
    "composed": {"recall@1", "recall@1, image", "recall@1, text", "recall@1, image + text"},
    "dialogs": {"mean_reciprocal_rank", "recall@1", "ndcg", "num_unanswered"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluation_toy.write(tmp_path_factory.mktemp("data"))


def measured(folder: Path, data: Path, processes: int, samples: int = 100) -> list[dict[str, Any]]:
    """What each process says of each kind, the first process's first."""
    folder.mkdir()
    launching.run(evaluation_toy.main, folder, str(data), str(samples), processes=processes)
    return [
        {kind: json.loads((folder / f"{kind}-{rank}.json").read_text()) for kind in KINDS}
        for rank in range(processes)
    ]


@pytest.mark.parametrize("samples", [100, 2])
def test_parts_give_the_figures_of_the_whole(tmp_path: Path, data: Path, samples: int) -> None:
    (one,) = measured(tmp_path / "one", data, 1, samples)
    for processes in (2, 3):  # of two samples the third process has none
        for said in measured(tmp_path / f"of-{processes}", data, processes, samples):
            for kind in KINDS:
                wanted, found = dict(one[kind]), dict(said[kind])
                assert MEASURES[kind] <= wanted["metrics"].keys()
                # batches of other sizes sum in another order
                assert found.pop("metrics") == pytest.approx(wanted.pop("metrics"), rel=1e-5, abs=1e-6)
                for told in (wanted, found):
                    told["left_out"] = sorted(told["left_out"])
                assert found == wanted
    if samples == 100:
        assert one["blip"]["images"] == evaluation_toy.IMAGES - 1 == len(one["blip"]["keys"])
        assert len(one["blip"]["left_out"]) == 2


def command(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """`openblip evaluate` as torchrun starts it, its output in a file of each process."""
    from openblip.cli.entry import main

    os.environ.update(environment or {})
    folder, *rest = arguments
    out = Path(folder, f"said-{os.environ.get('RANK', '0')}.txt")
    with open(out, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        sys.exit(main(rest))


def test_the_command_writes_once(tmp_path: Path, data: Path) -> None:
    from openblip.checkpoints.store import save_model

    save_model(tmp_path / "model", evaluation_toy.adapters()["blip"][2].stored)
    told = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        words = ["evaluate", f"{data}/captions.jsonl", "--model", str(tmp_path / "model"), "--device", "cpu"]
        words += ["--out", str(folder / "out"), "--rerank", "3", "--max-new-tokens", "5"]
        codes = launching.end(launching.begin(command, folder, *words, processes=processes))
        assert codes[0] == 1  # an image was left out
        assert not processes - 1 or (folder / "said-1.txt").read_text() == ""
        told.append(json.loads((folder / "said-0.txt").read_text().splitlines()[-1]))
        assert len(kept_predictions(folder / "out")) == evaluation_toy.IMAGES - 1
    left_out = [sorted((one["key"], one["cause"]) for one in numbers.pop("left_out")) for numbers in told]
    assert left_out[0] == left_out[1]
    assert told[1] == pytest.approx(told[0], rel=1e-5, abs=1e-6)
