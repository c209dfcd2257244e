"""Two gloo processes, started as a launcher starts them: they equal one with the whole batch, stop, fail and resume
together, and may share their weights (FSDP2)."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path

import launching
import pytest
import training_toy
from launching import close, end
from safetensors.torch import load_file
from torch import testing
from training_toy import losses

pytestmark = pytest.mark.slow

begin, run = partial(launching.begin, training_toy.main), partial(launching.run, training_toy.main)
WHOLE = ("--dropout=0", "--batch_size=8")
HALF = ("--dropout=0", "--batch_size=4")


def test_two_halves_equal_the_whole(tmp_path: Path) -> None:
    run(tmp_path / "one", *WHOLE, "--max_steps=1", processes=1)
    run(tmp_path / "two", *HALF, "--max_steps=1")
    checkpoint = Path("checkpoints/step-00000001")
    # After one step the first moment is a tenth of the gradient.
    one, two = (load_file(tmp_path / name / checkpoint / "optimizer.safetensors") for name in ("one", "two"))
    gradients = [key for key in one if key.endswith("|exp_avg")]
    assert len(gradients) == 16
    for key in gradients:
        testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-8, msg=key)
    buffers = [load_file(tmp_path / name / checkpoint / "model.safetensors")["ring"] for name in ("one", "two")]
    testing.assert_close(*buffers)
    close(tmp_path / "one", tmp_path / "two", rtol=1e-5)


def test_they_accumulate_and_stay_equal(tmp_path: Path) -> None:
    more = ("--epochs=2", "--gradient_accumulation=2", "--clip_norm=0.5", "--evaluate_every_steps=2")
    run(tmp_path / "one", *WHOLE, *more, processes=1)
    run(tmp_path / "two", *HALF, *more)
    close(tmp_path / "one", tmp_path / "two", rtol=1e-3)
    assert losses(tmp_path / "two")[-1]["loss"] < losses(tmp_path / "two")[0]["loss"]


def test_killed_together_and_resumed_they_give_the_same_losses(tmp_path: Path) -> None:
    arguments = (
        "--batch_size=4",
        "--checkpoint_every=4",
        "--log_every=3",
        "--sleep=0.02",
        "--epochs=6",
        "--resume",
    )
    run(tmp_path / "whole", *arguments)
    started = begin(tmp_path / "cut", *arguments)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
        assert all(process.exitcode is None for process in started)
        time.sleep(0.01)
    for process in started:
        process.kill()
    assert end(started) == [-signal.SIGKILL] * 2
    assert len(losses(tmp_path / "cut")) < 12
    run(tmp_path / "cut", *arguments)
    for split in ("train", "eval"):
        assert losses(tmp_path / "cut", split) == losses(tmp_path / "whole", split)
    assert end(begin(tmp_path / "cut", *arguments, processes=1)) == [2]
    assert "2 processes and this run has 1" in (tmp_path / "cut" / "error-0.txt").read_text()


def test_a_signal_to_one_stops_both_after_the_same_step(tmp_path: Path) -> None:
    run(tmp_path / "whole", "--batch_size=4")
    codes = end(begin(tmp_path / "cut", "--batch_size=4", "--signal_at=5"))
    assert codes == [143, 143]
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").glob("step-*")] == ["step-00000006"]
    run(tmp_path / "cut", "--batch_size=4", "--resume")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_full_disk_ends_both_with_the_reason(tmp_path: Path) -> None:
    assert end(begin(tmp_path, "--batch_size=4", "--checkpoint_every=4", "--full_at=3")) == [2, 2]
    for rank in (0, 1):
        assert "the disk is full" in (tmp_path / f"error-{rank}.txt").read_text()
    assert (tmp_path / "checkpoints" / "last").read_text().strip() == "step-00000004"


@pytest.mark.parametrize("sharding", ['"none"', '"fsdp2"'])
def test_they_begin_with_the_firsts_weights_and_stop_at_a_loss_that_is_not_finite(
    tmp_path: Path, sharding: str
) -> None:
    arguments = (
        "--batch_size=4",
        f"--sharding={sharding}",
        "--poison_at=5",
        "--checkpoint_every=3",
        "--log_every=2",
    )
    for name, seed in (("alike", 0), ("apart", 99)):
        assert end(begin(tmp_path / name, *arguments, f"--seed_of_second={seed}")) == [2, 2]
        assert "step 5 gave a loss" in (tmp_path / name / "error-1.txt").read_text()
        assert [path.name for path in (tmp_path / name / "checkpoints").glob("step-*")] == ["step-00000003"]
    assert losses(tmp_path / "alike") == losses(tmp_path / "apart")
    assert [record["step"] for record in losses(tmp_path / "alike")] == [2, 4]


@pytest.mark.parametrize("layers", ["[]", '["Block"]'])
def test_shards_equal_copies_and_resume_either_way(tmp_path: Path, layers: str) -> None:
    sharded = ('--sharding="fsdp2"', f"--sharding_layers={layers}")
    common = (*HALF, "--epochs=2", "--clip_norm=1.0", "--gradient_accumulation=2")
    run(tmp_path / "copies", *common)
    run(tmp_path / "shards", *common, *sharded)
    close(tmp_path / "copies", tmp_path / "shards", rtol=1e-5)
    checkpoint = Path("checkpoints/step-00000006/model.safetensors")
    one, two = (load_file(tmp_path / name / checkpoint) for name in ("copies", "shards"))
    assert one.keys() == two.keys()
    for name in one:
        testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    run(tmp_path / "cut", *common, *sharded, "--max_steps=3")
    run(tmp_path / "cut", *common, *sharded, "--resume", "--max_steps=6")
    assert losses(tmp_path / "cut") == losses(tmp_path / "shards")
    if layers == "[]":
        run(tmp_path / "mixed", *common, *sharded, "--max_steps=3")
        run(tmp_path / "mixed", *common, "--resume", "--max_steps=6")
        close(tmp_path / "mixed", tmp_path / "copies", rtol=1e-5)
