"""Commands whose whole process group is signalled save, say how to resume, and end as if nothing had been."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_commands import ENVIRONMENT, CommandServer, Done, Running
from job_pair import launch, new_store
from job_world import NANO, SMALL, TRAIN, World

from openblip.core.interrupt import AGAIN, RESUME
from openblip.tasks.feature_files import ShardHead, open_shard, shard_files

pytestmark = pytest.mark.slow

SIGNALS = ((signal.SIGTERM, 143), (signal.SIGINT, 130))
TOGETHER = pytest.mark.parametrize(("signum", "code"), SIGNALS)
Unstopped = tuple[tuple[object, ...], Path]
"""options of a command, and the folder that it filled where nothing stopped it"""
STEPS = 16
RUN = (*NANO, *SMALL, "--steps", STEPS, "--set", "train.log_every=1", "--set", "train.checkpoint_every=0")
RUN = (*RUN, "--set", "train.trackers=[]")
SLOWLY = """
import time
from openblip.tasks.pairs import BlipStep
forward = BlipStep.forward
BlipStep.forward = lambda self, batch: (time.sleep(0.15), forward(self, batch))[1]
"""
# Says when an evaluation has begun, and takes long.
LONG_EVALUATION = """
import pathlib, time
from openblip.tasks import training as run
evaluate = run.evaluate_model
def slowly(*words, **options):
    pathlib.Path("evaluating").touch()
    time.sleep(60)
run.evaluate_model = slowly
"""
SLOW_CAPFILT = """
import time
from openblip.bootstrap.pipeline import Pipeline
process = Pipeline._process
def slowly(self, batch):
    time.sleep(0.3)
    process(self, batch)
Pipeline._process = slowly
"""
SLOW_TOWER = """
import time
from openblip.models.tower import FrozenTower
forward = FrozenTower.forward
FrozenTower.forward = lambda self, pixels: (time.sleep(0.15), forward(self, pixels))[1]
"""
TINY_DEMO = """
from openblip.experiments.demo import DemoPlan, plan
plan.calibrate = lambda minutes: plan.Calibration(draw=0.002, step={}, write=0.001, seconds=0.0)
plan.make_plan = lambda *given, **options: DemoPlan(
    model="nano", web_images=40, human_images=40, simple_images=20, test_images=12,
    pretrain_steps=3, captioner_steps=2, matcher_steps=2, capfilt_images=40, again_steps=2, batch_size=8,
    documents=40, language_steps=(2, 2), blip2_images=40, stage1_steps=2, stage2_steps=2,
)
"""


def stop(running: Running, signum: int, code: int, how: str) -> Done:
    """Signal the group and hold the command to a good end; `how` is how its only line ends."""
    running.signal_group(signum)
    done = running.wait()
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    said = [line for line in done.err.splitlines() if line.startswith("openblip: stopped")]
    assert len(said) == 1, done.err
    assert said[0].endswith(how)
    assert "leaked" not in done.err, done.err
    none_is_left(running.pid)
    return done


def none_is_left(session: int) -> None:
    """No process outlives the command by more than moments."""
    end = time.monotonic() + 60
    while left_of(session):
        assert time.monotonic() < end, left_of(session)
        time.sleep(0.05)


def left_of(session: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(of) == session and state != "Z":
            found.append(int(folder.name))
    return found


def losses(run: Path) -> list[dict[str, object]]:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    timed = ("time", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def reach(running: Running, run: Path, steps: int) -> None:
    end = time.monotonic() + 100
    while len(losses(run)) < steps:
        assert time.monotonic() < end, running.err.read_text()
        time.sleep(0.01)


def files(folder: Path, *endings: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.name.endswith(endings)}


@pytest.fixture(scope="module")
def whole(openblip: CommandServer, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    openblip(*TRAIN, world.folder, *RUN, "--out", run)
    return run


@pytest.mark.parametrize("workers", [0, 2])
def test_training(openblip: CommandServer, world: World, whole: Path, tmp_path: Path, workers: int) -> None:
    """Stopped by one signal, resumed, stopped by the other, resumed: the losses are those of an unstopped run."""
    run = tmp_path / "run"
    command = (*TRAIN, world.folder, *RUN, "--set", f"num_workers={workers}", "--out", run)
    for signum, code in SIGNALS if workers else reversed(SIGNALS):
        before = len(losses(run))
        running = openblip.start(*command, *(("--resume",) if before else ()), before=SLOWLY)
        reach(running, run, before + 2)
        assert len(left_of(running.pid)) >= 1 + workers
        stop(running, signum, code, RESUME)
        assert before + 2 <= len(losses(run)) < STEPS
    openblip(*command, "--resume")
    assert losses(run) == losses(whole)
    assert files(run / "model", "safetensors") == files(whole / "model", "safetensors")


@pytest.mark.parametrize("moment", [0.0, 0.1])
def test_training_while_its_workers_start(
    openblip: CommandServer, world: World, whole: Path, tmp_path: Path, moment: float
) -> None:
    command = (*TRAIN, world.folder, *RUN, "--set", "num_workers=2", "--out", tmp_path / "run")
    running = openblip.start(*command)
    running.await_file(tmp_path / "run" / "log.txt")
    time.sleep(moment)
    stop(running, signal.SIGTERM, 143, RESUME)
    openblip(*command, "--resume")
    assert losses(tmp_path / "run") == losses(whole)


def test_training_in_an_evaluation_that_takes_long(openblip: CommandServer, world: World, tmp_path: Path) -> None:
    more = ("--validation", world.folder, "--set", "validation_samples=6", "--set", "train.evaluate_every_steps=5")
    more = (*more, "--set", "rerank_k=2")
    openblip(*TRAIN, world.folder, *RUN, *more, "--out", tmp_path / "whole")
    command = (*TRAIN, world.folder, *RUN, *more, "--out", tmp_path / "run")
    running = openblip.start(*command, before=LONG_EVALUATION, cwd=tmp_path)
    running.await_file(tmp_path / "evaluating")
    began = time.monotonic()
    done = stop(running, signal.SIGTERM, 143, RESUME)
    assert time.monotonic() - began < 50, "it has waited for the evaluation"
    assert "stopped at step 5;" in done.err
    openblip(*command, "--resume")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_no_worker_outlives_a_killed_command(openblip: CommandServer, world: World, tmp_path: Path) -> None:
    command = (*TRAIN, world.folder, *RUN, "--set", "num_workers=2", "--out", tmp_path / "run")
    running = openblip.start(*command, before=SLOWLY)
    reach(running, tmp_path / "run", 2)
    assert len(left_of(running.pid)) >= 3
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    none_is_left(running.pid)


def test_a_second_ctrl_c_interrupts_at_once(openblip: CommandServer, world: World, tmp_path: Path) -> None:
    slow = SLOWLY.replace("0.15", "20 if (__import__('pathlib').Path('slow').exists()) else 0")
    command = (*TRAIN, world.folder, *RUN, "--out", tmp_path / "run")
    running = openblip.start(*command, before=slow, cwd=tmp_path)
    reach(running, tmp_path / "run", 1)
    (tmp_path / "slow").touch()
    time.sleep(0.5)
    began = time.monotonic()
    running.signal_group(signal.SIGINT)
    time.sleep(0.5)
    stop(running, signal.SIGINT, 130, RESUME)
    assert time.monotonic() - began < 15


@pytest.fixture(scope="module")
def capfilt(
    openblip: CommandServer, world: World, captioner: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Unstopped:
    """The options, and the tables of a run that was not stopped; its images are in `web` beside them."""
    folder = tmp_path_factory.mktemp("capfilt")
    models = ("--captioner", captioner, "--filter", model, "--max-new-tokens", 6, "--min-new-tokens", 2)
    how = (*models, "--batch-size", 2, "--chunk-size", 8, "--threshold", 0.0, "--threads", 1, "--device", "cpu")
    openblip("capfilt", world.as_folder(folder / "web", 16), folder / "whole", *how)
    return how, folder / "whole"


@pytest.mark.parametrize(("workers", "signum", "code"), [(1, 2, 130), (1, 15, 143), (2, 15, 143)])
def test_capfilt(
    openblip: CommandServer, capfilt: Unstopped, tmp_path: Path, workers: int, signum: int, code: int
) -> None:
    how, whole = capfilt
    command = ("capfilt", whole.parent / "web", tmp_path / "clean", *how)
    running = openblip.start(*command, "--workers", workers, before=SLOW_CAPFILT)
    running.await_file(tmp_path / "clean" / "capfilt" / "table" / ".*.jsonl.tmp")
    stop(running, signum, code, AGAIN)
    kept = files(tmp_path / "clean", ".jsonl.tmp", ".parquet")
    assert kept, "the batches that were done are lost"
    openblip(*command, "--workers", workers)
    assert files(tmp_path / "clean", ".parquet", ".tar") == files(whole, ".parquet", ".tar")
    assert not files(tmp_path / "clean", ".tmp")


@pytest.fixture(scope="module")
def features(
    openblip: CommandServer, world: World, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Unstopped:
    """The options, and the features of a run that was not stopped."""
    how = ("--vision", f"openblip:{model}", "--batch-size", 4, "--device", "cpu")
    whole = tmp_path_factory.mktemp("features") / "whole"
    openblip("cache-features", world.folder, "--out", whole, *how, "--num-workers", 0)
    return how, whole


@TOGETHER
@pytest.mark.parametrize("workers", [0, 2])
def test_cache_features(
    openblip: CommandServer, world: World, features: Unstopped, tmp_path: Path, workers: int, signum: int, code: int
) -> None:
    how, whole = features
    command = ("cache-features", world.folder, "--out", tmp_path / "features", *how, "--num-workers", workers)
    running = openblip.start(*command, before=SLOW_TOWER)
    running.await_file(tmp_path / "features" / "cache.json")
    time.sleep(0.5)
    done = stop(running, signum, code, AGAIN)
    kept = re.search(r"stopped after (\d+) of 48 images; their features are in ", done.err)
    assert kept is not None, done.err
    assert features_in(tmp_path / "features").keys() < features_in(whole).keys()
    assert f"({kept[1]} done before)" in openblip(*command).err
    assert features_in(tmp_path / "features") == features_in(whole)
    assert files(tmp_path / "features", ".json") == files(whole, ".json")


def test_cache_features_killed(openblip: CommandServer, world: World, features: Unstopped, tmp_path: Path) -> None:
    """kill -9 loses the shard that is being written, and nothing of it stays on disk."""
    how, whole = features
    command = ("cache-features", world.folder, "--out", tmp_path / "features", *how, "--shard-mb", 0.0001)
    running = openblip.start(*command, before=SLOW_TOWER)
    running.await_file(tmp_path / "features" / "features-000000008.safetensors")
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    none_is_left(running.pid)
    kept = len(features_in(tmp_path / "features"))
    assert kept % 4 == 0
    assert 12 <= kept < 48
    assert f"48 images ({kept} done before)" in openblip(*command).err
    assert not list((tmp_path / "features").glob(".*"))
    assert features_in(tmp_path / "features") == features_in(whole)


def features_in(folder: Path) -> dict[str, bytes]:
    """Of each image, whatever shards hold them."""
    shards = [(ShardHead.read(file).keys, open_shard(file)) for file in shard_files(folder)]
    return {key: rows[n, 0].numpy().tobytes() for keys, rows in shards for n, key in enumerate(keys)}


def test_bootstrap(openblip: CommandServer, world: World, tmp_path: Path) -> None:
    web = world.as_folder(tmp_path / "web", 16)
    how = ["--web", web, "--human", world.folder, "--size", "nano", "--steps", 3, "--tune-steps", 2]
    for run in ("pretrain", "captioner", "filter"):
        for setting in ("image_size=32", "batch_size=8", "num_workers=2", "train.trackers=[]"):
            how += ["--set", f"{run}.{setting}"]
    how += ["--set", "policy.threshold=0.0", "--set", "batch_size=4"]
    openblip("bootstrap", "--out", tmp_path / "whole", *how)
    command = ("bootstrap", "--out", tmp_path / "loop", *how)
    running = openblip.start(*command, before=SLOWLY)
    running.await_file(tmp_path / "loop" / "first" / "log.txt")
    assert "everything is saved in" in stop(running, signal.SIGTERM, 143, AGAIN).err
    running = openblip.start(*command, before=SLOW_CAPFILT)
    running.await_file(tmp_path / "loop" / "clean" / "0" / "capfilt" / "table" / ".*.jsonl.tmp")
    stop(running, signal.SIGTERM, 143, AGAIN)
    openblip(*command)
    for stage in ("first", "second"):
        assert files(tmp_path / "loop" / stage / "model", "safetensors") == files(
            tmp_path / "whole" / stage / "model", "safetensors"
        )


def test_demo(openblip: CommandServer, tmp_path: Path) -> None:
    only = ("--stage", "world", "--stage", "pretrain", "--stage", "captioner")
    openblip("demo", "--quick", "--out", tmp_path / "whole", *only, before=TINY_DEMO)
    command = ("demo", "--quick", "--out", tmp_path / "demo", *only)
    running = openblip.start(*command, before=TINY_DEMO + SLOWLY)
    running.await_file(tmp_path / "demo" / "pretrain" / "log.txt")
    stop(running, signal.SIGTERM, 143, AGAIN)
    more = ("--stage", "pretrain", "--stage", "captioner")
    openblip("demo", "--quick", "--out", tmp_path / "demo", *more, before=TINY_DEMO)
    for stage in ("pretrain", "captioner"):
        assert files(tmp_path / "demo" / stage / "model", "safetensors") == files(
            tmp_path / "whole" / stage / "model", "safetensors"
        )


def test_captions_that_are_written_stay(
    openblip: CommandServer, world: World, captioner: Path, tmp_path: Path
) -> None:
    slow = "import time; from openblip.tasks.predictor import Predictor; caption = Predictor.caption\n"
    slow += "Predictor.caption = lambda *w, **o: (time.sleep(0.2), caption(*w, **o))[1]\n"
    out = tmp_path / "captions.jsonl"
    command = ("caption", world.folder / "images", "--model", captioner, "--out", out, "--batch-size", 2)
    running = openblip.start(*command, "--device", "cpu", before=slow)
    running.await_file(out)
    while not out.read_bytes():
        time.sleep(0.01)
    stop(running, signal.SIGTERM, 143, "openblip: stopped")
    assert 2 <= len([json.loads(line) for line in out.read_text().splitlines()]) < 48


@pytest.mark.timeout(900)  # three processes import torch
def test_training_under_torchrun(openblip: CommandServer, world: World, tmp_path: Path) -> None:
    """The launcher gets the signal too, passes it on and says what it likes; its processes save.

    That two processes continue with the numbers of an undisturbed run is shown in tests/distributed. Those that
    resume here are forked: torchrun itself has been shown by then.
    """
    run, slow = tmp_path / "run", tmp_path / "slow.py"
    slow.write_text(SLOWLY + "from openblip.cli import main\nraise SystemExit(main())\n")
    words = [str(word) for word in (*TRAIN, world.folder, *RUN, "--set", "num_workers=1")]

    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(slow), *words, "--out", str(run)),
        ],
        start_new_session=True, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    end = time.monotonic() + 200
    while len(losses(run)) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(launcher.pid, signal.SIGTERM)
    _, said = launcher.communicate(timeout=100)
    assert launcher.returncode != 0
    step = len(losses(run))
    assert 2 <= step < STEPS
    assert said.count(f"openblip: stopped at step {step}; everything is saved in {run}") == 1, said
    assert (run / "checkpoints" / "last").read_text().strip() == f"step-{step:08d}"
    assert "DataLoader worker" not in said
    none_is_left(launcher.pid)
    saved = losses(run)
    store = new_store()
    both = launch(openblip, store, tmp_path, *words, "--out", run, "--resume")
    assert [one.wait(300).code for one in both] == [0, 0]
    assert losses(run)[:step] == saved
    assert [record["step"] for record in losses(run)] == list(range(1, STEPS + 1))
