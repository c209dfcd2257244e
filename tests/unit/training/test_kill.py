"""A real process, killed with SIGKILL again and again at moments nobody chose, ends where one left alone ends."""

from __future__ import annotations

import random
import signal
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import training_toy
from training_toy import losses

ARGUMENTS = ["--epochs=8", "--log_every=3", "--checkpoint_every=4", "--keep_checkpoints=2", "--sleep=0.02"]


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_gives_the_same_losses(forked: ForkServerContext, tmp_path: Path) -> None:
    def begin(name: str, *more: str) -> BaseProcess:
        arguments = [str(tmp_path / name), "--resume", *ARGUMENTS, *more]
        process = forked.Process(target=training_toy.main, args=(arguments,))
        process.start()
        return process

    whole = begin("whole")
    whole.join(400)
    assert whole.exitcode == 0
    moments = random.Random(0)
    log, metrics = tmp_path / "killed" / "log.txt", tmp_path / "killed" / "metrics.jsonl"
    dying = begin("killed", "--die_in_save=4")  # in the middle of the second checkpoint
    dying.join(400)
    assert dying.exitcode == -signal.SIGKILL
    unfinished, *complete = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert unfinished.startswith(".step-00000008")
    assert complete == ["last", "step-00000004"]
    killed_at = []
    while len(killed_at) < 8:
        said = log.stat().st_size if log.exists() else 0
        process = begin("killed")
        # It says that it begins; steps take 20 ms.
        while process.exitcode is None and not (log.exists() and log.stat().st_size > said):
            time.sleep(0.005)
        process.join(moments.uniform(0.0, 0.4))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:  # it ended just before the signal
            break
        killed_at.append(len(metrics.read_text().splitlines()) if metrics.exists() else 0)
    else:
        process = begin("killed")
        process.join(400)
    assert process.exitcode == 0
    assert len(killed_at) >= 3, killed_at
    assert len(set(killed_at)) >= 2, killed_at
    for split in ("train", "eval"):
        assert losses(tmp_path / "killed", split) == losses(tmp_path / "whole", split)
    assert len(losses(tmp_path / "killed")) == 16
    for name in ("model.safetensors", "optimizer.safetensors"):
        final = Path("checkpoints/step-00000048") / name
        assert (tmp_path / "killed" / final).read_bytes() == (tmp_path / "whole" / final).read_bytes()
    left = [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()]
    assert sorted(left) == ["last", "step-00000044", "step-00000048"]
