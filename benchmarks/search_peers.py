"""The image index beside common local tools: images indexed and queries answered in a second, the model apart.

    python -m benchmarks.search_peers IMAGES --model MODEL [--rclip PYTHON] [--clip-retrieval PYTHON]
        [--faiss PYTHON]

IMAGES is a folder that every tool indexes. A peer runs in the Python of its own environment, given by its
option, or in this one; where it is not installed, or fails (its weights cannot be downloaded), its row says
so and holds no number. Each tool has its own model, of another size: what compares is the time without the
model, which is reading, decoding and storing images, and search and looking up rows. Ours searches by ITC
alone, since no peer re-ranks.

The last rows compare search alone: the index's segments against faiss's flat index on the same vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks.harness import THREADS, result_of
from benchmarks.search_drivers.timing import timed
from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.core.text import read_list
from openblip.index.building import create, update
from openblip.index.entries import Place
from openblip.index.image_index import ImageIndex
from openblip.index.segments import Segments
from openblip.index.vectors import Term
from openblip.tasks.load import load
from openblip.tasks.predictor import Predictor

__all__ = ["PEERS", "flat", "main", "ours", "peer"]

DRIVERS = Path(__file__).parent / "search_drivers"
PEERS = {"rclip": "rclip", "clip-retrieval": "clip_retrieval"}
"""packages, and what they are imported as"""
TEXTS = (
    *("a dog running on the grass", "two people on a street at night", "a red car", "children playing in water"),
    *("a man on a bicycle", "a plate of food", "a mountain in the snow", "a woman with a hat", "a boat on a lake"),
)
TOP = 10
WIDTH = 256


def ours(predictor: Predictor, images: str, texts: Sequence[str], work: Path) -> dict[str, Any]:
    """Index a folder and search for each text."""
    spent = [0.0]
    predictor.embed_images = timed(predictor.embed_images, spent)  # type: ignore[method-assign]
    create(work / "index", predictor, "MODEL")
    with ImageIndex.open(work / "index", predictor) as index:
        index._read = timed(index._read, spent)  # type: ignore[method-assign]
        spent[0], began = 0.0, time.perf_counter()
        update(index, Place(images))
        told: dict[str, Any] = {"index_s": time.perf_counter() - began, "index_model_s": spent[0]}
        told |= {"images": index.catalog.count(), "query_s": [], "query_model_s": []}
        for text in texts:
            spent[0], began = 0.0, time.perf_counter()
            index.search(text=text, count=TOP, rerank=0)
            told["query_s"].append(time.perf_counter() - began)
            told["query_model_s"].append(spent[0])
    return told


def peer(name: str, python: str, images: str, texts: Sequence[str], work: Path) -> dict[str, Any]:
    """What a peer takes, or {"not_measured": why}."""
    if (why := _absent(python, PEERS[name])) is not None:
        return {"not_measured": why.replace(PEERS[name], name)}
    work.mkdir(parents=True)
    asked = work / "texts.json"
    write_json(asked, list(texts))
    driver = f"drive_{PEERS[name]}.py"
    return _driven(python, driver, os.path.abspath(images), asked, work, TOP)


def flat(count: int, python: str, *, searches: int = 50, folder: Path) -> list[dict[str, Any]]:
    """Search alone over made-up vectors: ours in float16 from files, faiss's in float32 in memory."""
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(count, WIDTH, generator=generator), dim=-1).to(torch.float16)
    asked = normalize(torch.randn(searches, WIDTH, generator=generator), dim=-1)
    segments = Segments(folder / "vectors", (1, WIDTH))
    segments.append(vectors[:, None], 0)
    segments.search([Term(asked[0])], TOP, count)  # maps the files
    times, numbers = [], []
    for one in asked:
        began = time.perf_counter()
        numbers.append(segments.search([Term(one)], TOP, count)[1].tolist())
        times.append(time.perf_counter() - began)
    size = f"{count:,} x {WIDTH}"
    rows = [{"case": f"search alone, {size}: segments", **_figures("query", times)}]
    theirs = f"search alone, {size}: faiss flat"
    if (why := _absent(python, "faiss")) is not None:
        return [*rows, {"case": theirs, "not_measured": why}]
    np.save(folder / "vectors.npy", vectors.float().numpy())
    np.save(folder / "queries.npy", asked.numpy())
    told = _driven(python, "drive_faiss.py", folder / "vectors.npy", folder / "queries.npy", TOP, THREADS)
    if "not_measured" in told:
        return [*rows, {"case": theirs, **told}]
    same = sum(len(set(a) & set(b)) for a, b in zip(numbers, told["numbers"], strict=True)) / (TOP * searches)
    # Two neighbours whose cosines differ in the last bits of float32 may change places at the end of the ten.
    agree = {"same_neighbours": round(same, 4), "outputs_agree": same >= 0.99}
    return [*rows, {"case": theirs, "version": told["version"], **_figures("query", told["query_s"]), **agree}]


def _absent(python: str, module: str) -> str | None:
    """Why a module cannot be used in a Python; None where it can."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", code], cwd=tempfile.gettempdir(), check=False, capture_output=True)
    except OSError as error:
        raise UserError(f"{python} is no Python that runs: {error.strerror}") from error
    return None if found.returncode == 0 else f"{module} is not installed in that Python"


def _driven(python: str, driver: str, *arguments: object) -> dict[str, Any]:
    """What a driver prints in the end, or {"not_measured": its last words}."""
    ran = subprocess.run(
        [python, str(DRIVERS / driver), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": ""},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        words = [line.strip() for line in ran.stderr.splitlines() if line.strip()] or ["no message"]
        return {"not_measured": f"it failed: {words[-1][:300]}"}
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return told


def _figures(what: str, times: Sequence[float]) -> dict[str, Any]:
    median = statistics.median(times)
    return {f"{what}_p50_ms": round(1e3 * median, 3), "queries_per_s": round(1 / median, 1)}


def _row(case: str, told: dict[str, Any]) -> dict[str, Any]:
    if "not_measured" in told:
        return {"case": case, **told}
    rest = [whole - model for whole, model in zip(told["query_s"], told["query_model_s"], strict=True)]
    return {
        "case": case,
        **({"version": told["version"]} if "version" in told else {}),
        "images": told["images"],
        "images_per_s": round(told["images"] / told["index_s"], 2),
        "images_per_s_without_model": round(told["images"] / max(told["index_s"] - told["index_model_s"], 1e-9), 1),
        **_figures("query", told["query_s"]),
        "query_p50_ms_without_model": round(1e3 * statistics.median(rest), 3),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 1 where faiss finds other neighbours, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("images", metavar="IMAGES", help="a folder of images")
    parser.add_argument("--model", required=True, help="our model, with ITC")
    parser.add_argument("--texts", type=Path, help="a file with a query on each line")
    for name in (*PEERS, "faiss"):
        parser.add_argument(f"--{name}", default=sys.executable, metavar="PYTHON", help=f"that has {name}")
    parser.add_argument("--vectors", type=int, default=100_000, help="of the search alone; 0 leaves it out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, help="write the result to this file as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    try:
        if not Path(options.images).is_dir():
            raise UserError(f"{options.images} is no folder; every tool indexes a folder of images")
        texts = read_list(options.texts) if options.texts else list(TEXTS)
        predictor = load(options.model, device=options.device, dtype=options.dtype)
        with tempfile.TemporaryDirectory() as folder:
            told = ours(predictor, options.images, texts, Path(folder))
            rows = [_row("openblip, ITC alone", told)]
            for name in PEERS:
                python = getattr(options, name.replace("-", "_"))
                rows.append(_row(name, peer(name, python, options.images, texts, Path(folder) / name)))
            if options.vectors:
                rows += flat(options.vectors, options.faiss, folder=Path(folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    result = result_of("search-peers", rows, queries=len(texts))
    if options.out is not None:
        write_json(options.out, result)
    print(json.dumps(result, indent=2))
    return 0 if all(row.get("outputs_agree", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
