"""BLIP-2's stages over two gloo processes with half the batch each: as one with the whole, and as if never killed.

Negatives of ITM are chosen within groups of four, as for BLIP, since drawn ones lie in a process's own batch.
"""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path

import blip2_toy
import launching
import pytest
import torch
from launching import close, end
from safetensors.torch import load_file
from training_toy import losses

pytestmark = pytest.mark.slow

run, begin = partial(launching.run, blip2_toy.main), partial(launching.begin, blip2_toy.main)
KINDS = ("stage1", "opt", "t5")
LAST = Path("checkpoints/step-00000006")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each kind six steps of two processes."""
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp(kind)
        run(found[kind], f'--kind="{kind}"', "--batch_size=4")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_equal_the_whole(halves: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Losses and gradient norms step by step, weights and moments at the end."""
    run(tmp_path, f'--kind="{kind}"', "--batch_size=8", processes=1)
    close(tmp_path, halves[kind], rtol=1e-3)
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(tmp_path / LAST / name), load_file(halves[kind] / LAST / name)
        assert ours.keys() == theirs.keys()
        assert not any("vision.encoder" in key or "language.hf" in key for key in ours)
        for key in ours:
            torch.testing.assert_close(
                theirs[key], ours[key], rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
            )


@pytest.mark.parametrize(
    "how",
    [
        '--kind="vqa"',
        '--kind="stage1" --objectives=["itc","itg"] --find_unused_parameters=true',
        '--kind="stage1" --negatives="all"',
    ],
    ids=["vqa", "itc-itg", "negatives-of-all-ranks"],
)
def test_other_settings_equal_the_whole_too(tmp_path: Path, how: str) -> None:
    """The last layer's text of a question that is read; ITM's head without ITM, as `loop_config` has it; ITM with
    pairs of the other rank."""
    run(tmp_path / "one", *how.split(), "--max_steps=3", "--batch_size=8", processes=1)
    run(tmp_path / "two", *how.split(), "--max_steps=3", "--batch_size=4")
    close(tmp_path / "one", tmp_path / "two", rtol=1e-3)


def test_frozen_tokens_are_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves a process are the normalised embeddings and the images' ids."""
    step, shapes = blip2_toy.build("stage1"), []
    gather = blip2_toy.objectives.gather
    monkeypatch.setattr(
        blip2_toy.objectives, "gather", lambda tensor: shapes.append(tensor.shape) or gather(tensor)
    )
    step(blip2_toy.Stage1Loader.rows(blip2_toy.np.arange(4)))
    assert [tuple(shape) for shape in shapes] == [(4, 4, 16), (4, 16), (4,)]


@pytest.mark.parametrize("kind", ["stage1", "t5"])
def test_killed_and_resumed_two_give_the_same_losses(halves: dict[str, Path], tmp_path: Path, kind: str) -> None:
    command = (
        f'--kind="{kind}"',
        "--batch_size=4",
        "--checkpoint_every=2",
        "--draw=true",
        "--max_steps=10",
        "--resume",
    )
    started = begin(tmp_path, *command, "--hold_at=8")
    metrics = tmp_path / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 5):
        assert all(process.exitcode is None for process in started)
        time.sleep(0.005)
    for process in started:
        process.kill()
    assert end(started) == [-signal.SIGKILL] * 2
    run(tmp_path, *command)
    whole = tmp_path / "whole"
    run(whole, *command)
    assert losses(tmp_path) == losses(whole)
