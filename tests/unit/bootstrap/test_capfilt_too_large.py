"""Batches that the memory of a GPU does not suffice for are computed in parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from capfilt_small import config, output, rows_of, run, write_folder

from openblip.bootstrap.models import Models
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import decide_again, read_totals
from openblip.cli import main
from openblip.core.text import read_json

Paths = tuple[str, str, str]
Limit = Callable[..., list[int]]
FULL = torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """A device whose memory suffices for so many images; the list receives how many were tried each time."""

    def make(most: int, error: RuntimeError = FULL) -> list[int]:
        tried: list[int] = []
        look = Models.look

        def limited(self: Models, pixels: dict[Any, torch.Tensor]) -> Any:
            tried.append(len(next(iter(pixels.values()))))
            if tried[-1] > most:
                raise error
            return look(self, pixels)

        monkeypatch.setattr(Models, "look", limited)
        return tried

    return make


def test_parts_give_the_same_table(tmp_path: Path, models: Paths, limit: Limit) -> None:
    """Sizes are halved until they fit, and later batches begin with what fitted."""
    settings = config(models, write_folder(tmp_path / "web", 11), batch_size=5)
    assert run(settings, tmp_path / "whole").smallest_batch == 0
    tried = limit(2)
    totals = run(settings, tmp_path / "parts")
    # chunks of 8 and 3 samples, in batches of 5, 3 and 3
    assert tried == [5, 3, *(2, 2, 1), *(2, 1), *(2, 1)]
    assert totals.smallest_batch == 2
    whole, parts = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert [row.key for row in parts] == [row.key for row in whole]
    for one, other in zip(whole, parts, strict=True):
        assert [text.text for text in one.texts] == [text.text for text in other.texts]
        for name in ("itm", "itc", "log_prob"):
            mine, its = [[getattr(text, name) for text in row.texts] for row in (one, other)]
            # batches of other sizes sum in another order
            assert [value is None for value in mine] == [value is None for value in its]
            assert [v for v in its if v is not None] == pytest.approx([v for v in mine if v is not None], abs=1e-5)
    assert (read_totals(tmp_path / "parts") or {})["smallest_batch"] == 2
    assert run(settings, tmp_path / "parts").smallest_batch == 2, "what is done says so still"
    assert decide_again(tmp_path / "parts", output(threshold=0.9)).smallest_batch == 2
    assert decide_again(tmp_path / "parts", output(threshold=0.9), target=tmp_path / "set").smallest_batch == 2
    first = Places(tmp_path / "parts").marker("00000-00000"), Places(tmp_path / "set").marker("00000-00000")
    stages, elsewhere = (read_json(marker)["stages"] for marker in first)
    assert stages == elsewhere != {}


def test_what_an_earlier_version_noted_is_read(tmp_path: Path, models: Paths, limit: Limit) -> None:
    settings = config(models, write_folder(tmp_path / "web", 3))
    limit(2)
    run(settings, tmp_path / "out")
    marker = Places(tmp_path / "out").marker("00000-00000")
    marker.write_text(marker.read_text().replace('"smallest_batch"', '"at_once"'))
    again = run(settings, tmp_path / "out")
    assert (again.new_chunks, again.smallest_batch) == (0, 2)
    assert decide_again(tmp_path / "out", output(threshold=0.9)).smallest_batch == 2
    assert "at_once" not in marker.read_text()


def test_one_image_too_many_ends_the_run(tmp_path: Path, models: Paths, limit: Limit) -> None:
    settings = config(models, write_folder(tmp_path / "web", 3))
    tried = limit(0)
    with pytest.raises(torch.OutOfMemoryError):
        run(settings, tmp_path / "out")
    assert tried == [3, 2, 1]


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`", False),
        ("CUDA error: out of memory", True),
        ("MPS backend out of memory (MPS allocated: 8.00 GB)", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_libraries_of_the_gpu_say(
    message: str, parts: bool, tmp_path: Path, models: Paths, limit: Limit
) -> None:
    settings = config(models, write_folder(tmp_path / "web", 3))
    tried = limit(2, RuntimeError(message))
    if parts:
        assert run(settings, tmp_path / "out").smallest_batch == 2
    else:
        with pytest.raises(RuntimeError, match=re.escape(message)):
            run(settings, tmp_path / "out")
    assert tried == ([3, 2, 1] if parts else [3])


def test_the_command_says_so(
    tmp_path: Path, models: Paths, limit: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    limit(3)
    command = ["capfilt", str(write_folder(tmp_path / "web", 4)), str(tmp_path / "out"), "--captioner", models[0]]
    main([*command, "--filter", models[1], "--device", "cpu", "--batch-size", "4"])
    said = capsys.readouterr().err
    assert "did not suffice for 4 images at a time" in said
    assert "the smallest of 2" in said
