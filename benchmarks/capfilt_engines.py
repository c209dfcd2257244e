"""What an engine costs: CapFilt by one process and two, local and Ray's, on the same cores; ViT-B/16, 384 px.

A worker is held from the moment it begins its first chunk to the end of the last chunk of all, so that opening
models and starting Ray count as start-up. Model time is what the chunks say they spent seeing, writing and scoring.
Overhead is how much longer workers are held than that: waiting for chunks, and at the end for the others; reading,
decoding, tables and training set.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import published
from benchmarks.harness import THREADS, result_of
from benchmarks.photographs import write_tars
from openblip.bootstrap.job import CapFiltConfig, Output
from openblip.bootstrap.places import Places
from openblip.bootstrap.policy import Policy
from openblip.bootstrap.run import Engine, run_capfilt
from openblip.core.memory import keep_freed_memory
from openblip.data.source_config import SourceConfig
from openblip.generation.config import DecodeConfig

__all__ = ["CASES", "run"]

CASES = {
    "local, 1 worker": Engine(workers=1, threads=THREADS),
    "ray, 1 worker": Engine(name="ray", workers=1, threads=THREADS),
    "local, 2 workers": Engine(workers=2, threads=THREADS // 2),
    "ray, 2 workers": Engine(name="ray", workers=2, threads=THREADS // 2),
}
NEW = 20
"""tokens of each written text: random weights do not stop by themselves"""


def run(quick: bool) -> dict[str, Any]:
    """All cases over the same images, one after the other."""
    keep_freed_memory()
    chunks, chunk_size = (4, 2) if quick else (36, 3)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        with published.published(published.captioner(quick)):
            captioner = published.folder()
            with published.published(published.matcher(quick)):
                write_tars(root / "web", 1, chunks * chunk_size, 4)
                config = CapFiltConfig(
                    source=SourceConfig(path=str(root / "web")),
                    captioner=str(captioner),
                    filter=str(published.folder()),
                    decode=DecodeConfig(sample=True, top_p=0.9, min_new_tokens=NEW, max_new_tokens=NEW),
                    batch_size=chunk_size,
                    chunk_size=chunk_size,
                )
                rows = [_measured(config, root / name, name) for name in CASES]
    texts = {row["case"]: row.pop("texts") for row in rows}
    for row in rows:
        # Sums differ in their last bits with the number of threads, and so may what is drawn.
        row["outputs_agree"] = texts[row["case"]] == texts[row["case"].replace("ray", "local")]
    return result_of("capfilt-engines", rows, new_tokens=NEW)


def _measured(config: CapFiltConfig, target: Path, case: str) -> dict[str, Any]:
    engine, began = CASES[case], time.time()
    totals = run_capfilt(config, target, Output(policy=Policy(threshold=0.0)), engine=engine)
    whole = time.time() - began
    markers = list(Places(target).marker("").parent.glob("*.json"))
    chunks = [json.loads(marker.read_text(encoding="utf-8")) for marker in markers]
    # A chunk's marker is the last thing that is written of it.
    ended = [marker.stat().st_mtime for marker in markers]
    begun = sorted(end - chunk["done"]["seconds"] for end, chunk in zip(ended, chunks, strict=True))
    held = sum(max(ended) - start for start in begun[: engine.workers])
    model = sum(chunk["stages"][stage] for chunk in chunks for stage in ("see", "write", "score"))
    return {
        "case": case,
        "images": totals.samples,
        "workers": engine.workers,
        "threads": engine.threads,
        "span_s": round(max(ended) - begun[0], 2),
        "model_s": round(model, 2),
        "overhead": round(held / model - 1, 4),
        "start_up_s": round(whole - (max(ended) - begun[0]), 1),
        "s_per_1000_images": round(1000 * held / engine.workers / totals.samples),
        "texts": [text.text for row in Places(target).rows() for text in row.texts],
    }
