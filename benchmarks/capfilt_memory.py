"""CapFilt's peak memory over few and over a hundred times as many samples, with a stand-in for models and decoding.

All else is as it is: tars are opened, samples read, texts decided on, the table, the training set and the report's
summary made. Each run is a process of its own. Deciding anew is timed as well, with the training set and without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

import openblip.bootstrap.run as capfilt
from benchmarks.harness import result_of
from openblip.bootstrap.job import CapFiltConfig, Layout, Output
from openblip.bootstrap.places import Places
from openblip.bootstrap.policy import Policy
from openblip.bootstrap.summary import summarise
from openblip.bootstrap.table import Row, Text
from openblip.core.memory import peak_mb
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import Source

__all__ = ["EACH", "LIMIT", "compare", "run"]

EACH = 1000
"""samples of a tar"""
LIMIT = 1.1
"""how much more memory many times the samples may take"""
_BATCH = 32
_KEPT = Output(policy=Policy(threshold=0.97))


def run(quick: bool) -> dict[str, Any]:
    """1,000 samples and 100,000, or 3,000 to see that it runs."""
    with tempfile.TemporaryDirectory() as folder:
        return result_of("capfilt-memory", compare(Path(folder), 3 if quick else 100))


def compare(folder: Path, times: int) -> list[dict[str, Any]]:
    """Rows of the runs over `EACH` samples and over `times` as many; the last says whether memory grew."""
    first = _write_tar(folder / "one" / "00000.tar")
    (folder / "many").mkdir()
    for number in range(times):
        os.link(first, folder / "many" / f"{number:05d}.tar")
    rows = [_measured(folder, name) for name in ("one", "many")]
    growth = max(rows[1][name] / rows[0][name] for name in ("peak_mb", "decide_peak_mb"))
    rows[1] |= {"growth": round(growth, 4), "outputs_agree": growth <= LIMIT}
    return rows


def _measured(folder: Path, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.capfilt_memory", str(folder / name), str(folder / f"{name}-clean")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[1],
    )
    if done.returncode:
        raise RuntimeError(f"the run over {name} failed:\n{done.stderr}")
    row: dict[str, Any] = json.loads(done.stdout)
    return row


@dataclass
class _StandIn:
    """Takes the place of models and decoding: texts as long as a web's and a caption, with made-up scores."""

    seconds: dict[str, float] = field(default_factory=dict)

    def rows(
        self,
        source: Source,
        indices: range,
        *,
        known: Sequence[Row] = (),
        on_batch: Callable[[list[Row]], None] | None = None,
    ) -> list[Row]:
        """A web text and a written one for each sample; one web text in 50 is above the threshold."""
        assert not known, "nothing here is broken off"
        rows: list[Row] = []
        for index in indices:
            sample = source[index]
            texts = [Text(text, "web", itm=index % 50 / 50, itc=0.1 + index % 97 / 1e3) for text in sample.texts]
            score = 0.3 + index % 89 / 1e3
            texts.append(
                Text(_words(index, 10), "synthetic", itm=score, itc=0.2, log_prob=-9 * score, num_tokens=11)
            )
            rows.append(
                Row(
                    key=sample.key, index=index, image_id=sample.key, image_hash=f"{index * 7919:016x}",
                    texts=texts,
                    captioner="0123456789abcdef", filter="fedcba9876543210",
                )
            )  # fmt: skip
            if on_batch is not None and len(rows) % _BATCH == 0:
                on_batch(rows[-_BATCH:])
        return rows


def _words(seed: int, count: int) -> str:
    return " ".join(f"word{number}" for number in np.random.default_rng(seed).integers(1000, 30000, count))


def _write_tar(path: Path) -> Path:
    """Samples as img2dataset writes them, with small images."""
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for number in range(EACH):
            buffer = BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            fields = json.dumps({"key": f"{number:09d}", "url": f"https://example.org/{number}.png"}).encode()
            for ending, data in (
                ("png", buffer.getvalue()),
                ("txt", _words(number, 12).encode()),
                ("json", fields),
            ):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
    return path


def _timed(run: Path, layout: Layout | str) -> float:
    """Seconds to decide anew and back."""
    began = time.perf_counter()
    capfilt.decide_again(run, Output(policy=Policy(threshold=0.9), layout=layout))  # type: ignore[arg-type]
    return round(time.perf_counter() - began, 2)


def _main(source: str, target: str) -> None:
    """One run, in this process; prints its row."""
    model = SimpleNamespace(fingerprint="stand-in")
    stand_ins = {
        "open_models": lambda *_, **__: SimpleNamespace(captioner=model, filter=model, one_vision=True),
        "make_pipeline": lambda *_, **__: _StandIn(),
    }
    for name, stand_in in stand_ins.items():
        setattr(capfilt, name, stand_in)
    config = CapFiltConfig(
        source=SourceConfig(path=source), filter="stand-in", chunk_size=EACH, device="cpu", dtype="float32"
    )
    began = time.perf_counter()
    totals = capfilt.run_capfilt(config, target, _KEPT)
    seconds = time.perf_counter() - began
    assert summarise(target).samples == totals.samples
    peak = peak_mb()
    tables = sum(path.stat().st_size for path in Places(Path(target)).tables.iterdir())
    row = {
        "case": f"{totals.samples:,} samples",
        "samples": totals.samples,
        "images_kept": totals.images,
        "peak_mb": round(peak, 1),
        "seconds": round(seconds, 1),
        "table_bytes_per_row": round(tables / totals.samples, 1),
        "decide_s": _timed(Path(target), "none"),
        "decide_and_write_s": _timed(Path(target), "tars"),
        "decide_peak_mb": round(peak_mb(), 1),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    _main(*sys.argv[1:])
