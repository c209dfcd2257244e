"""How often a Grad-CAM map's peak falls on the object that a text names, for each part and layer of a model.

    openblip experiments pointing      # the demo's model after pre-training

The game is `judges.pointing`: clean images of the test split of the scene world with two or more objects, one of
them named by colour and shape. The layer that `openblip explain` shows by default is marked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openblip.core.errors import UserError
from openblip.core.runtime import seed_everything
from openblip.data.world.dataset import WorldSource
from openblip.experiments.judges.pointing import measure_pointing
from openblip.explain.cam import default_layer
from openblip.tasks.load import load

__all__ = ["QUICK", "PointingExperiment", "run_pointing", "table"]


@dataclass(frozen=True, kw_only=True)
class PointingExperiment:
    """What is measured."""

    model: str = "runs/demo/pretrain/model"
    images: int = 200


QUICK = PointingExperiment(images=5)


def run_pointing(
    out: Path | str, config: PointingExperiment, *, seeds: int = 1, on_stage: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Play with every part and every layer of a model; nothing is drawn at random, so one seed is all there is.

    Returns:
        "rows": for each part ("by") and "layer" the shares "named", "other" and "chance", and the standard error of
        "named" ("deviation"); "layers", "grid" and "info" of the model.
    """
    seed_everything(0)
    predictor = load(config.model, device="cpu", dtype="float32")
    if predictor.adapter.family != "blip":
        raise UserError(f"{config.model} is no BLIP model, whose words are what is looked for")
    blip = predictor.adapter.need("explain").model
    depth = blip.config.text.depth
    world = WorldSource(split="test", num_samples=10 * config.images, size=64, seed=1, disturb=0.0)
    rows = []
    for by, able in (("match", blip.config.encoder), ("caption", blip.config.decoder)):
        # A match says nothing of words in its last layer.
        for layer in range(depth - (by == "match") if able else 0):
            if on_stage is not None:
                on_stage(f"{by}, layer {layer}")
            found = measure_pointing(
                blip,
                predictor.tokenizer,
                world,
                images=config.images,
                by=by,
                prompt=predictor.prompt if by == "caption" else "",
                layer=layer,
            )
            shares = {name: round(value, 4) for name, value in asdict(found).items() if name != "images"}
            row = {"by": by, "layer": layer, "default": layer == default_layer(depth), **shares}
            rows.append({**row, "deviation": round(found.deviation, 4)})
    return {
        "name": "pointing",
        "images": config.images,
        "grid": list(blip.config.vision.grid),
        "layers": depth,
        "info": predictor.info,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result for a reader."""
    head = f"{'by':10}{'layer':>12}{'named object':>16}{'another':>10}{'chance':>10}"
    lines = [
        f"{row['by']:10}{str(row['layer']) + ' (default)' * row['default']:>12}"
        f"{row['named']:>16.1%}{row['other']:>10.1%}{row['chance']:>10.1%}"
        for row in result["rows"]
    ]
    return "\n".join([head, *lines])
