"""What stops an actor of Ray's is told as what stops a process of this machine: in a sentence, or a traceback."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openblip.bootstrap import engines
from openblip.bootstrap.engines import connected_to_ray, run_local, run_ray
from openblip.bootstrap.job import CapFiltConfig, Chunk, Done
from openblip.cli import entry, main
from openblip.core.errors import MissingExtra, UserError
from openblip.data.source_config import SourceConfig

CONFIG = CapFiltConfig(source=SourceConfig(path="web"), filter="f", device="cpu", dtype="float32")
CHUNKS = [Chunk("00000-00000", SourceConfig(path="a.tar"), 0, 1)]
WORDS = ["capfilt", "web", "out", "--filter", "f"]
ERRORS = {
    "mistake": UserError("a.tar was done before and cannot be opened now"),
    "extra": MissingExtra("decord", "video"),
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    "python": MemoryError(),
    "disk": OSError(errno.ENOSPC, "No space left on device", Path("out/capfilt/table/00000-00000.parquet")),
}


def failing(error: Exception, *, when_made: bool) -> Any:
    """What makes a worker that fails, or fails itself."""

    def make(config: CapFiltConfig) -> Callable[[Chunk], Done]:
        if when_made:
            raise error
        return work

    def work(chunk: Chunk) -> Done:
        raise error

    return make


class Here:
    """Ray and Ray Data, as far as they are asked, with the actor in this process."""

    DataContext = SimpleNamespace(get_current=SimpleNamespace)
    ActorPoolStrategy = SimpleNamespace

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def from_items(self, rows: list[Any], **_: Any) -> Here:
        self.rows = rows
        return self

    def map(self, actor: Any, *, fn_constructor_args: tuple[Any, ...], **_: Any) -> Here:
        self.actor = actor(*fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[Any]:
        return map(self.actor, self.rows)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Iterator[Done]], Any]:
    """What the command says of an engine's work, and its exit code."""

    def ask(work: Iterator[Done]) -> tuple[int, str]:
        monkeypatch.setattr(entry, "_read", lambda words: lambda: list(work))
        return main(WORDS), capsys.readouterr().err

    return ask


@pytest.mark.parametrize("when_made", [True, False], ids=["constructor", "call"])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_is_told_as_the_local_engine_tells_it(
    error: Exception, when_made: bool, told: Callable[[Iterator[Done]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "require", lambda *_: Here())
    make = failing(error, when_made=when_made)
    code, said = told(run_local(make, CONFIG, CHUNKS, workers=1, threads=1))
    assert said.startswith("openblip: ")
    assert said.count("\n") == 1
    assert told(run_ray(make, CONFIG, CHUNKS, workers=1, threads=1)) == (code, said)


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "require", lambda *_: Here())
    make = failing(KeyError("a fault"), when_made=False)
    with pytest.raises(KeyError, match="a fault"):
        list(run_ray(make, CONFIG, CHUNKS, workers=1, threads=1))


@pytest.mark.slow
def test_an_error_arrives_from_a_process_of_ray(told: Callable[[Iterator[Done]], Any]) -> None:
    pytest.importorskip("ray")
    with connected_to_ray(""):
        for name, when_made in (("mistake", True), ("gpu", False)):
            make = failing(ERRORS[name], when_made=when_made)
            code, said = told(run_local(make, CONFIG, CHUNKS, workers=1, threads=1))
            answer, printed = told(run_ray(make, CONFIG, CHUNKS, workers=1, threads=1))
            assert answer == code
            assert said in printed
            assert "Traceback" not in printed
