"""A run that is stopped, killed or meets a full disk loses nothing and resumes as if nothing had been."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from job_commands import CommandServer, Running
from job_world import NANO, SMALL, TRAIN, World

pytestmark = pytest.mark.slow

RUN = (*NANO, *SMALL, "--steps", 24, "--set", "train.log_every=1", "--set", "train.checkpoint_every=5")
RUN = (*RUN, "--set", "train.learning_rate=2e-3", "--set", "train.warmup_steps=4", "--set", "train.trackers=[]")
# Each step waits a little, so that there is a moment to send a signal in.
SLOWLY = """
import time
from openblip.tasks.pairs import BlipStep
forward = BlipStep.forward
BlipStep.forward = lambda self, batch: (time.sleep(0.1), forward(self, batch))[1]
"""
# A disk that is full when the second checkpoint's moments are written: half of the file, then the system's error.
FULL = """
import errno, os
from openblip.training import state
real, calls = state.write_tensors, []
def write_tensors(path, tensors):
    calls.append(path)
    if len(calls) == 4:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    real(path, tensors)
state.write_tensors = write_tensors
"""


def records(run: Path) -> list[dict[str, Any]]:
    """What is logged, without what the clock decides."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    timed = ("time", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def reach(running: Running, run: Path, steps: int) -> None:
    """Wait until so many steps are logged."""
    end = time.monotonic() + 400
    while len(records(run)) < steps:
        assert time.monotonic() < end, running.err.read_text()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(openblip: CommandServer, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stops."""
    run = tmp_path_factory.mktemp("whole") / "run"
    openblip(*TRAIN, world.folder, *RUN, "--out", run)
    assert [record["step"] for record in records(run)] == list(range(1, 25))
    return run


def goes_on(openblip: CommandServer, world: World, run: Path, whole: Path) -> None:
    """The same command with --resume ends where the undisturbed run ends, bit for bit."""
    openblip(*TRAIN, world.folder, *RUN, "--out", run, "--resume")
    assert records(run) == records(whole)
    assert weights(run) == weights(whole)


def test_ctrl_c_saves_and_says_how_to_go_on(
    openblip: CommandServer, world: World, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    running = openblip.start(*TRAIN, world.folder, *RUN, "--out", run, before=SLOWLY)
    reach(running, run, 7)
    running.signal(signal.SIGINT)
    done = running.wait()
    assert done.code == 130
    step = len(records(run))
    assert 7 <= step < 24
    last_line = done.err.strip().splitlines()[-1]
    checkpoint = run / "checkpoints" / f"step-{step:08d}"
    assert last_line.startswith(f"openblip: stopped at step {step}; everything is saved in {checkpoint}")
    assert last_line.endswith("run the same command with --resume to continue")
    assert "Traceback" not in done.err
    goes_on(openblip, world, run, whole)


def test_killed_and_resumed_it_gives_the_same_losses_bit_for_bit(
    openblip: CommandServer, world: World, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for steps in (8, 17):
        running = openblip.start(*TRAIN, world.folder, *RUN, "--out", run, "--resume", before=SLOWLY)
        reach(running, run, steps)
        running.signal(signal.SIGKILL)
        assert running.wait().code == -signal.SIGKILL
        assert steps <= len(records(run)) < 24
    goes_on(openblip, world, run, whole)


def test_a_full_disk_leaves_the_previous_checkpoint_good(
    openblip: CommandServer, world: World, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = openblip(*TRAIN, world.folder, *RUN, "--out", run, code=2, before=FULL)
    last_line = done.err.strip().splitlines()[-1]
    assert last_line.startswith("openblip: the disk is full: ")
    assert "step-00000010 was not written (what stood there before is untouched)" in last_line
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["last", "step-00000005"]
    assert (run / "checkpoints" / "last").read_text().strip() == "step-00000005"
    goes_on(openblip, world, run, whole)


def test_a_file_that_may_not_grow_is_told_like_any_trouble_with_files(
    openblip: CommandServer, world: World, tmp_path: Path
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    ignore = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    done = openblip(*TRAIN, world.folder, *RUN, "--out", tmp_path / "run", code=2, before=ignore + limit)
    last_line = done.err.strip().splitlines()[-1]
    assert last_line.startswith("openblip: ")
    assert "step-00000005" in last_line
    assert not list((tmp_path / "run" / "checkpoints").glob("*step-*")), "nothing half-written stays"
