"""Command line of the run on a GPU: `benchmarks/gpu.sh` calls it, and so does `python -m benchmarks gpu`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from benchmarks.gpu.run import MINUTES, run
from benchmarks.gpu.stages import STAGES


def main(arguments: list[str] | None = None) -> int:
    """Run the stages, or print what is predicted.

    The exit code is 1 when a stage, or each of its cases, failed, and 143 after SIGTERM.
    """
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("--pretend", action="store_true", help="every stage in tiny sizes on the CPU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which the run ends")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")), help="a folder")
    parser.add_argument("--only", nargs="+", default=[], choices=[stage.name for stage in STAGES])
    parser.add_argument("--predict", action="store_true", help="print arithmetic and memory, computed, and end")
    parser.add_argument("--store", action="store_true", help="with --predict: write benchmarks/results")
    options = parser.parse_args(arguments)
    if options.predict:
        from benchmarks.gpu import predict

        return predict.main(store=options.store)
    result = run(options.out, pretend=options.pretend, minutes=options.minutes, only=options.only)
    for aim in result.get("aims", ()):
        met = {True: "met", False: "not met", None: "not measured"}[aim["met"]]
        print(f"aim, {aim['aim']}: {met} (wanted {aim['wanted']:g}, found {aim.get('found', 'nothing')})")
    print(f"{options.out / 'gpu.json'}: {result['seconds']} s")
    if stopped := result.get("stopped"):
        return 128 + signal.Signals[stopped]
    return 0 if all(stage["status"] == "done" for stage in result["stages"]) else 1


if __name__ == "__main__":
    sys.exit(main())
