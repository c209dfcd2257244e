"""How often a Grad-CAM map's peak falls on the object that a text names, in the synthetic world.

    python -m benchmarks.pointing runs/demo/matcher/model [--pictures 500] [--store]

The game is `openblip.experiments.judges.pointing`: clean images of the test split with two or more objects, one of
them named by colour and shape. Every layer is measured; the one that `openblip explain` shows by default is marked.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from openblip.core.files import write_json
from openblip.data.world.dataset import WorldSource
from openblip.experiments.judges.pointing import measure_pointing
from openblip.explain.cam import default_layer
from openblip.tasks.load import load

__all__ = ["measure"]

STORED = Path(__file__).parent / "results" / "pointing.json"


def measure(model: str, pictures: int) -> dict[str, Any]:
    """Play with every part and every layer of a model; returns the object that is stored."""
    predictor = load(model, device="cpu", dtype="float32")
    blip = predictor.blip
    depth = blip.config.text.depth
    world = WorldSource(split="test", num_samples=10 * pictures, size=64, seed=1, disturb=0.0)
    rows = []
    for by, able in (("match", blip.config.encoder), ("caption", blip.config.decoder)):
        # A match says nothing of words in its last layer.
        for layer in range(depth - (by == "match") if able else 0):
            found = measure_pointing(
                blip,
                predictor.tokenizer,
                world,
                pictures=pictures,
                by=by,
                prompt=predictor.prompt if by == "caption" else "",
                layer=layer,
            )
            numbers = {name: round(value, 4) for name, value in asdict(found).items() if name != "pictures"}
            row = {"by": by, "layer": layer, "default": layer == default_layer(depth), **numbers}
            rows.append({**row, "deviation": round(found.deviation, 4)})
            print(json.dumps(rows[-1]))
    grid = list(blip.config.vision.grid)
    return {
        "name": "pointing",
        "pictures": pictures,
        "grid": grid,
        "layers": depth,
        "info": predictor.info,
        "rows": rows,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pointing")
    parser.add_argument("model")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/pointing.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    result = measure(options.model, options.pictures)
    if options.store:
        write_json(STORED, result)


if __name__ == "__main__":
    main()
