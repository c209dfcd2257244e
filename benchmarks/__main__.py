"""Command line of the benchmarks.

    python -m benchmarks list
    python -m benchmarks compare blip-pretrain [--quick] [--dtype D] [--json] [--out FILE | --store]
    python -m benchmarks gpu [--predict | --pretend]        # benchmarks/gpu.sh

Each benchmark is a module with `run(quick: bool) -> dict`, which gives the object that `--json` prints.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import machine_slug, table
from openblip.core.errors import UserError, nearest
from openblip.core.files import write_json

BENCHMARKS = {
    "attention": ("benchmarks.attention", "attention fused or written out, on a CPU"),
    "blip-pretrain": ("benchmarks.blip_pretrain", "one training step of BLIP ViT-B: time and peak memory"),
    "blip2-stage1": (
        "benchmarks.blip2_stage1",
        "one training step of BLIP-2's stage 1 over ViT-g, and from features",
    ),
    "caption": ("benchmarks.caption", "captions by beam search, against transformers"),
    "capfilt": ("benchmarks.capfilt", "CapFilt: the whole command against a plain loop over transformers"),
    "capfilt-engines": ("benchmarks.capfilt_engines", "CapFilt by Ray and by processes: what the engine costs"),
    "capfilt-memory": ("benchmarks.capfilt_memory", "CapFilt's peak memory over 1,000 samples and 100,000"),
    "features": ("benchmarks.features", "features cached, beside the bare forward pass of their tower"),
    "loader": ("benchmarks.loader", "JPEG images decoded and transformed from tars for each second"),
    "match": ("benchmarks.match", "one image with 32 texts by ITM, against transformers"),
    "onnx": ("benchmarks.onnx_runtime", "images, ITM and captions by onnxruntime, against torch"),
    "serve": ("benchmarks.serve", "the service: many clients, some of them bad; batches against one at a time"),
    "startup": (
        "benchmarks.startup",
        "the first caption of a new process, against transformers; mistakes, against --help",
    ),
    "search": ("benchmarks.search", "an image index: made-up vectors with known neighbours, exact search"),
    "rerank": ("benchmarks.rerank", "ITM of 128 texts with an image, against projecting for each pair"),
    "rank": ("benchmarks.rank", "128 answers to a question by log-likelihood, against transformers"),
}
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 1 when outputs differ, 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure OpenBLIP beside its peers.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the benchmarks")
    commands.add_parser("gpu", help="the run on a GPU (benchmarks/gpu.sh)", add_help=False)
    compare = commands.add_parser("compare", help="run one benchmark")
    compare.add_argument("name")
    compare.add_argument("--quick", action="store_true", help="a small size, to see that it runs")
    dtypes = ["float32", "bfloat16", "default"]
    compare.add_argument("--dtype", choices=dtypes, help="only its rows; --store keeps the others")
    compare.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    compare.add_argument("--out", type=Path, help="write the result to this file")
    compare.add_argument("--store", action="store_true", help="write it to benchmarks/results/NAME-MACHINE.json")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "gpu":
        from benchmarks.gpu.__main__ import main as gpu

        return gpu(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "list":
        for name, (_, subject) in BENCHMARKS.items():
            print(f"{name:16} {subject}")
        return 0
    try:
        if options.name not in BENCHMARKS:
            raise UserError(f'there is no benchmark "{options.name}"{nearest(options.name, BENCHMARKS)}')
        if options.quick and options.store:
            raise UserError("a quick run is not worth storing; leave out --quick or --store")
        run = importlib.import_module(BENCHMARKS[options.name][0]).run
        if options.dtype and "only" not in inspect.signature(run).parameters:
            raise UserError(f"{options.name} takes no --dtype")
        only = {"only": options.dtype} if options.dtype else {}
        result: dict[str, Any] = run(options.quick, **only)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    out = RESULTS / f"{options.name}-{machine_slug()}.json" if options.store else options.out
    if out is not None:
        if options.store and options.dtype:
            result = {**result, "rows": other_rows(out, options.dtype) + result["rows"]}
        write_json(out, result)
    print(json.dumps(result, indent=2) if options.json else table(result))
    return 0 if all(row.get("outputs_agree", True) for row in result["rows"]) else 1


def other_rows(stored: Path, dtype: str) -> list[dict[str, Any]]:
    """The rows of a stored result that are of another dtype."""
    if not stored.exists():
        return []
    return [row for row in json.loads(stored.read_text(encoding="utf-8"))["rows"] if row["dtype"] != dtype]


if __name__ == "__main__":
    sys.exit(main())
