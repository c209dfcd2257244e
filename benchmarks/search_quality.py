"""Recall and cost of a search: ITC alone against the same candidates re-ranked by ITM.

    python -m benchmarks.search_quality val.jsonl --model MODEL --queries 1000 --rerank 32

DATA are indexed as `openblip index build` does. A query is one of their captions, drawn without replacement; it
should find its image, or one of the same content. A caption that the model cannot read (too long) is counted
and left out. Each query is searched three times: by ITC, re-ranked with those image features at hand that
queries before it left, and re-ranked with all of them at hand. Milliseconds include the text encoder. `--index`
keeps the index, so that a second run does not build it again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import result_of
from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.index.building import create, update
from openblip.index.catalog import Record
from openblip.index.entries import Place
from openblip.index.image_index import Hit, ImageIndex
from openblip.tasks.load import load
from openblip.tasks.predictor import Predictor

__all__ = ["main", "measure"]

RANKS = (1, 5, 10)
SEED = 0


def measure(predictor: Predictor, data: Sequence[str], index: Path, *, queries: int, rerank: int) -> dict[str, Any]:
    """Index data, search for some of their captions, and give recall and cost.

    Args:
        queries: captions; all where there are fewer.
        rerank: candidates that ITM reads.

    Raises:
        UserError: the data have no captions, or the model has no ITM.
    """
    predictor.adapter.need("embed").need("match")
    create(index, predictor, "MODEL")
    with ImageIndex.open(index, predictor) as opened:
        began = time.perf_counter()
        for spec in data:
            update(opened, Place(spec))
        built = time.perf_counter() - began
        asked = [
            (caption, record)
            for records in opened.catalog.blocks(1024)
            for record in records
            for caption in record.captions
        ]
        if not asked:
            raise UserError(f"{', '.join(data)} has no captions to search for; name a captions file")
        random.Random(SEED).shuffle(asked)
        chosen: list[tuple[str, Record]] = []
        unread = 0
        for text, record in asked:
            if len(chosen) == queries:
                break
            if _readable(predictor, text := _plain(text)):
                chosen.append((text, record))
            else:
                unread += 1
        if not chosen:
            raise UserError(f"the model can read none of the captions of {', '.join(data)}")
        rows = _rows(opened, chosen, rerank)
        images = opened.catalog.count()
    told = {
        "images": images,
        "captions": len(asked),
        "queries": len(chosen),
        "unread": unread,
        "rerank": rerank,
        "seed": SEED,
    }
    return result_of("search-quality", rows, **told, build_s=round(built, 2), computing=predictor.computing)


def _rows(index: ImageIndex, asked: Sequence[tuple[str, Record]], rerank: int) -> list[dict[str, Any]]:
    places: dict[str, list[int | None]] = {"ITC alone": [], "re-ranked by ITM": []}
    times: dict[str, list[float]] = {"ITC alone": [], "first": [], "re-ranked by ITM": []}
    for text, record in asked:
        # The second of the two that re-rank finds the image features of its candidates on disk.
        for name, candidates in (("ITC alone", 0), ("first", rerank), ("re-ranked by ITM", rerank)):
            began = time.perf_counter()
            hits = index.search(text=text, count=max(RANKS), rerank=candidates)
            times[name].append(1e3 * (time.perf_counter() - began))
            if name in places:
                places[name].append(_place(index, hits, record))
    rows = []
    for name, found in places.items():
        row: dict[str, Any] = {"case": name}
        for rank in RANKS:
            recall = sum(place is not None and place <= rank for place in found) / len(found)
            row[f"recall_at_{rank}"] = round(recall, 4)
            row[f"standard_error_at_{rank}"] = round(math.sqrt(recall * (1 - recall) / len(found)), 4)
        row["query_p50_ms"] = round(statistics.median(times[name]), 2)
        row["query_mean_ms"] = round(statistics.fmean(times[name]), 2)
        if name != "ITC alone":
            row["query_p50_ms_without_features"] = round(statistics.median(times["first"]), 2)
            row["query_mean_ms_without_features"] = round(statistics.fmean(times["first"]), 2)
        rows.append(row)
    return rows


def _readable(predictor: Predictor, text: str) -> bool:
    try:
        predictor.adapter.check_texts([text])
    except UserError:
        return False
    return True


def _plain(text: str) -> str:
    """A caption as one text: a sign at its beginning would make it several."""
    return text.lstrip().lstrip("+-").strip()


def _place(index: ImageIndex, hits: Sequence[Hit], record: Record) -> int | None:
    """Where the image of a caption came, from 1; one of the same content is as good."""
    for place, hit in enumerate(hits, 1):
        if hit.path == record.path or index.record(hit.id).hash == record.hash:
            return place
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", nargs="+", metavar="DATA", help="a captions file, as Flickr8k's val.jsonl")
    parser.add_argument("--model", required=True, help="a model with ITC and ITM")
    parser.add_argument("--queries", type=int, default=1000, help="captions to search for")
    parser.add_argument("--rerank", type=int, default=32, help="candidates that ITM reads")
    parser.add_argument("--index", type=Path, help="keep the index in this folder; left out, it is not kept")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time")
    parser.add_argument("--out", type=Path, help="write the result to this file as well")
    options = parser.parse_args(arguments)
    try:
        if options.queries < 1 or options.rerank < 1:
            raise UserError("--queries and --rerank are at least 1")
        predictor = load(options.model, device=options.device, dtype=options.dtype, batch_size=options.batch_size)
        with tempfile.TemporaryDirectory() as folder:
            index = options.index or Path(folder) / "index"
            counts = {"queries": options.queries, "rerank": options.rerank}
            result = measure(predictor, options.data, index, **counts)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if options.out is not None:
        write_json(options.out, result)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
