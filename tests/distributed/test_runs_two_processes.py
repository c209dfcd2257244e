"""Whole runs over two gloo processes: what they write is a model that one process opens."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import launching
import pytest
import run_toy
import torch

from openblip.checkpoints.blip2_parts import open_tower
from openblip.checkpoints.store import open_model, unique_state
from openblip.models.configs import as_tower

pytestmark = pytest.mark.slow

run, begin = partial(launching.run, run_toy.main), partial(launching.begin, run_toy.main)
MONITORED = {"blip": "mean_recall", "stage1": "mean_recall", "stage2": "CIDEr"}
BLOCKS = {"blip": '["Block"]', "stage1": '["Block"]', "stage2": '["Block", "OPTDecoderLayer"]'}
FROZEN = {"blip": (), "stage1": ("vision.encoder.",), "stage2": ("vision.encoder.", "language.")}


@pytest.fixture(scope="module")
def parts(make_once: Callable[..., Path]) -> Path:
    return make_once("parts-of-runs", run_toy.write_parts)


@pytest.mark.parametrize("kind", ["blip", "stage1", "stage2"])
def test_shards_are_exported_whole(parts: Path, tmp_path: Path, kind: str) -> None:
    """The best model and the last one, opened, are those of a run with whole copies."""
    monitor = f"train.monitor={MONITORED[kind]}"
    run(tmp_path / "copies", str(parts), kind, monitor)
    for name, layers in (("shards", "[]"), ("blocks", BLOCKS[kind])):
        sharded = ("train.sharding=fsdp2", f"train.sharding_layers={layers}")
        run(tmp_path / name, str(parts), kind, monitor, *sharded)
        for which in ("best", "model"):
            found, wanted = (open_model(tmp_path / each / which).model for each in (name, "copies"))
            state = unique_state(found)
            for key, value in unique_state(wanted).items():
                # copies add gradients up in another order than shards
                exact = key.startswith(FROZEN[kind]) if FROZEN[kind] else False
                close = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-3, "atol": 1e-4}
                torch.testing.assert_close(state[key], value, **close, msg=lambda m, k=key: f"{k}: {m}")


def test_an_unfrozen_tower_trains_without_what_its_tokens_do_not_depend_on(parts: Path, tmp_path: Path) -> None:
    """DDP would wait for gradients of the norm behind CLIP's pooling; it is written and read again as it was."""
    run(tmp_path, str(parts), "unfrozen", "train.max_steps=3")
    before = open_tower(as_tower(f"hf:{parts}/clip@0")).encoder.state_dict()
    after = open_model(tmp_path / "model").model.vision.encoder.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name for name in before if name.endswith(".weight")} - moved == {"model.post_layernorm.weight"}
    assert "model.post_layernorm.bias" not in moved


@pytest.mark.parametrize("objectives", [["itc", "lm"], ["itc"]], ids="-".join)
def test_objectives_may_be_left_out(parts: Path, tmp_path: Path, objectives: list[str]) -> None:
    """DDP would wait for the gradient of what only the others read."""
    settings = ("train.max_steps=3", "train.evaluate_every_steps=0", "train.monitor=null", "validation=[]")
    run(tmp_path, str(parts), "blip", f"objective.objectives={json.dumps(objectives)}", *settings)
    assert len(launching.losses(tmp_path)) == 3


def test_blocks_that_are_not_gathered_where_they_are_used_are_refused(parts: Path, tmp_path: Path) -> None:
    """An image is projected by the cross-attention of all blocks before these are run."""
    sharded = ("train.sharding=fsdp2", 'train.sharding_layers=["QFormerBlock"]')
    assert launching.end(begin(tmp_path, str(parts), "stage1", *sharded)) == [2, 2]
    said = (tmp_path / "error-1.txt").read_text()
    assert said.endswith("the model uses outside of its forward; name Block")


@pytest.mark.parametrize("kind", ["blip", "stage1"])
def test_sharded_blocks_may_be_evaluated_before_the_first_step(parts: Path, tmp_path: Path, kind: str) -> None:
    """The first forward pass of all is then that of a block, or of a tower, and not of the whole step."""
    sharded = ("train.sharding=fsdp2", 'train.sharding_layers=["Block"]', "train.evaluate_first=true")
    for name, more in (("copies", sharded[2:]), ("blocks", sharded)):
        run(tmp_path / name, str(parts), kind, *more)
    launching.close(tmp_path / "copies", tmp_path / "blocks", rtol=1e-3)
    ours, theirs = (launching.losses(tmp_path / name, "eval") for name in ("copies", "blocks"))
    assert [record["step"] for record in ours] == [0, 1, 2]
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    # Before the first step, so that nothing was rounded otherwise.
    assert {key: value for key, value in theirs[0].items() if key != "split"} == pytest.approx(
        {key: value for key, value in ours[0].items() if key != "split"}, rel=1e-5
    )


def test_sharded_blocks_resume_where_an_evaluation_is_due(parts: Path, tmp_path: Path) -> None:
    settings = ("train.sharding=fsdp2", 'train.sharding_layers=["Block"]', "train.max_steps=2")
    codes = launching.end(begin(tmp_path, str(parts), "blip", *settings, "train.monitor=unknown"))
    assert codes == [2, 2]
    assert "monitor names" in (tmp_path / "error-0.txt").read_text()
    run(tmp_path, str(parts), "blip", *settings, "--resume")
    assert [record["step"] for record in launching.losses(tmp_path, "eval")] == [1, 2]
