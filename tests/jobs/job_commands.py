"""`openblip` commands as processes of their own: same arguments, same exit code, same signals as in a shell.

Importing torch takes seconds, so a server process pays for it once and each command is forked from there; it
runs the same `main` as the installed script. `test_entry_points.py` starts the script itself.

python job_commands.py     # the server: requests and replies are JSON lines
"""

from __future__ import annotations

import json
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOAD = (
    "openblip.tasks.training",
    "openblip.tasks.load",
    "openblip.recipes.small",
    "openblip.report",
    "openblip.cli.entry",
)
AT_FIRST_USE = (
    *("tensorboard", "torch._dynamo", "pandas", "pyarrow.pandas_compat"),
    *("typeguard", "tyro._backends._argparse_formatter", "tyro.constructors._struct_spec_pydantic"),
    *("transformers.models.opt.modeling_opt", "fastapi", "uvicorn"),
    *("torch.utils.tensorboard", "psycopg", "pgvector.psycopg", "matplotlib.backends.backend_agg"),
)
"""what the tracker, torch's optimizers, PyArrow, tyro, BLIP-2, the service and PostgreSQL import when they are
first used"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    """as a shell has it; a signal is negative"""
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON lines of standard output."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def sentence(self) -> str:
        """What the command says of a mistake: the only line it wrote to standard error."""
        (line,) = self.err.strip().splitlines()
        assert line.startswith("openblip: "), self.err
        return line.removeprefix("openblip: ")


class Running:
    """A command that was started."""

    def __init__(self, server: CommandServer, pid: int, out: Path, err: Path) -> None:
        self.server, self.pid, self.out, self.err = server, pid, out, err

    def wait(self, seconds: float = 400) -> Done:
        """Wait for its end; one that takes longer is killed, and its code is -9."""
        code = self.server.ask({"wait": self.pid, "seconds": seconds})
        return Done(code, self.out.read_text(), self.err.read_text())

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def signal_group(self, signum: int) -> None:
        """Signal the command and all its processes, as `timeout`, Slurm and a terminal do."""
        os.killpg(self.pid, signum)

    def await_file(self, pattern: Path, seconds: float = 100) -> None:
        """Wait until a file of that pattern (of its last part) is there."""
        end = time.monotonic() + seconds
        while not list(pattern.parent.glob(pattern.name)):
            assert time.monotonic() < end, self.err.read_text()
            time.sleep(0.01)


class CommandServer:
    """The tests' side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = 0
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )

    def ask(self, request: dict[str, Any]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return int(json.loads(self.process.stdout.readline()))
        except BaseException:
            self.process.kill()  # a late answer must not be taken for that to another question
            raise

    def start(self, *arguments: object, cwd: Path | None = None, before: str = "") -> Running:
        """Begin `openblip ARGUMENTS`.

        Args:
            before: Python to run in the process first, to arrange a failure.
        """
        self.started += 1
        out, err = (self.folder / f"{self.started:03d}.{name}" for name in ("out", "err"))
        words = [str(argument) for argument in arguments]
        request = {"arguments": words, "cwd": str(cwd or self.folder), "out": str(out), "err": str(err)}
        return Running(self, self.ask({**request, "before": before}), out, err)

    def __call__(self, *arguments: object, code: int = 0, **options: Any) -> Done:
        """Run `openblip ARGUMENTS` to its end and hold it to its exit code."""
        done = self.start(*arguments, **options).wait()
        assert done.code == code, f"exit code {done.code}, not {code}\n{done.out}\n{done.err}"
        assert code == 0 or "Traceback" not in done.err, done.err
        return done

    def refuse(self, *arguments: object, **options: Any) -> str:
        """Run a command that must end with code 2, and return the one sentence that it says."""
        return self(*arguments, code=2, **options).sentence


@contextmanager
def serving(folder: Path) -> Iterator[CommandServer]:
    """A server until the end of the block."""
    server = CommandServer(folder)
    try:
        yield server
    finally:
        assert server.process.stdin is not None
        server.process.stdin.close()
        server.process.wait()


def serve() -> None:
    """Fork a command for each request that names arguments, wait for one for each that names its process.

    A package that cannot be imported here (pandas need not be installed) is passed over; a command that needs it
    reports it. What a command imports itself where nothing is imported before is tested with interpreters of their
    own: `test_entry_points.py`, the tests under torchrun, tests/unit/core/test_imports.py.
    """
    import contextlib
    import importlib

    from PIL import Image

    for name in PRELOAD:
        importlib.import_module(name)
    for name in AT_FIRST_USE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    Image.init()  # imports the readers of all formats
    for line in sys.stdin:
        request = json.loads(line)
        answer = _wait(request["wait"], request["seconds"]) if "wait" in request else _fork(request)
        print(json.dumps(answer), flush=True)
    os._exit(0)  # the interpreter's shutdown takes seconds


def _wait(pid: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()  # a process group of its own
        os.chdir(request["cwd"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["openblip", *request["arguments"]]
        exec(request["before"], {})
        from openblip.cli.entry import main

        code = main()
        sys.stdout.flush()
        threading._shutdown()  # type: ignore[attr-defined]
        multiprocessing.util._exit_function()
    except BaseException:  # noqa: BLE001  as the interpreter does at its end
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
