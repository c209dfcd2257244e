"""What a run on a GPU should find, computed on any machine: arithmetic counted, memory of a step without values.

    python -m benchmarks gpu --predict [--store]

Speeds are those at the shares of a card's figures that last (`openblip.core.gpus`). Of writing a caption, reading
the decoder's weights and the images' keys and values once for each token is counted as well; what the host needs to
launch kernels is not.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import caption, match
from benchmarks.gpu.steps import WORKS, blip_sizes, tower_sizes
from benchmarks.tables import RESULTS, text_table
from openblip.core.files import write_json
from openblip.core.gpus import ARITHMETIC_SHARE, GPUS, MEMORY_SHARE
from openblip.models.blip import Blip, BlipConfig
from openblip.models.tower import make_tower
from openblip.tasks.cost import GIB, counted_flops, predicted_cost

__all__ = ["STORED", "main", "predicted", "table"]

H100 = GPUS["h100"]
STORED = RESULTS / "gpu-predicted.json"
STEPS = (("blip", (64, 128, 256)), ("stage1", (128,)), ("stage2", (128,)))
CAPTIONS = (1, 16, 64)
FEATURES, TEXTS = 128, 128


def predicted(case: str) -> dict[str, Any] | None:
    """The stored prediction of a case; None where there is none."""
    rows = json.loads(STORED.read_text(encoding="utf-8"))["rows"]
    found: dict[str, Any] | None = next((row for row in rows if row["case"] == case), None)
    return found


def compute() -> dict[str, Any]:
    """All predictions."""
    rows = [predict_step(name, batch) for name, batches in STEPS for batch in batches]
    rows += [predict_captions(batch) for batch in CAPTIONS]
    rows += [predict_features(FEATURES), predict_matching(TEXTS)]
    return {"name": "gpu-predicted", "card": H100.name, "rows": rows}


def _row(case: str, images: int, tflop: float, *, gigabytes: float = 0.0, **more: Any) -> dict[str, Any]:
    """A prediction by its arithmetic and what has to be read one token after another."""
    seconds = tflop / H100.tflops / ARITHMETIC_SHARE + gigabytes / H100.gb_per_s / MEMORY_SHARE
    return {
        "case": case,
        "images": images,
        "tflop": round(tflop, 3),
        "images_per_s": round(images / seconds),
        **more,
    }


def predict_step(name: str, batch: int, *, small: bool = False) -> dict[str, Any]:
    """One training step of an objective."""
    work = WORKS[name](small)
    cost = predicted_cost(work.make("meta").train(), lambda: work.batch(batch))
    return _row(
        f"{name}, batch {batch}",
        batch,
        (cost.flops + cost.attention_flops) / 1e12,
        peak_gib=round(cost.peak / GIB, 2),
        trained_parameters=cost.trained_parameters,
        frozen_parameters=cost.frozen_parameters,
    )


def predict_captions(batch: int, *, small: bool = False) -> dict[str, Any]:
    """Captions of `caption.NEW` tokens by beams: the vision tower once, then the decoder token by token."""
    config = blip_sizes(small, "base" if small else "large", 384)
    tflop = caption_flops(config) * batch / 1e12
    tokens = 1 + config.vision.grid[0] * config.vision.grid[1]
    with torch.device("meta"):
        decoder = Blip(replace(config, encoder=False)).decoder
    weights = 2 * sum(value.numel() for value in decoder.parameters())
    memory = 2 * 2 * config.text.depth * tokens * config.text.width
    read = caption.NEW * (weights + batch * memory) / 1e9
    return _row(f"captions, batch {batch}", batch, tflop, gigabytes=read)


def caption_flops(config: BlipConfig) -> int:
    """Operations of one image's caption, all beams; attention over the words before is left out, a hundredth."""
    with torch.device("meta"):
        model = Blip(replace(config, encoder=False)).eval().requires_grad_(False)

    def word(rows: int) -> object:
        memory = model.remember(model.encode_image(torch.zeros(1, 3, *config.vision.pixels)))
        return model.decoder(torch.zeros(rows, 1, dtype=torch.int64), memory=memory) if rows else memory

    seen, one, many = (counted_flops(model, partial(word, rows)) for rows in (0, 1, caption.BEAMS))
    return one + (caption.NEW - 1) * (many - seen)


def predict_features(batch: int, *, small: bool = False) -> dict[str, Any]:
    """Features of the frozen tower."""
    with torch.device("meta"):
        tower = make_tower(tower_sizes(small), pretrained=False)
    flops = counted_flops(tower, lambda: tower(torch.zeros(batch, 3, *tower.pixels)))
    return _row(f"features of the frozen tower, batch {batch}", batch, flops / 1e12)


def predict_matching(texts: int, *, small: bool = False) -> dict[str, Any]:
    """ITM of one image's features with texts; its "images" are pairs."""
    config = blip_sizes(small, "base", 384)
    with torch.device("meta"):
        model = Blip(replace(config, decoder=False)).eval().requires_grad_(False)

    def run() -> object:
        tokens = 1 + config.vision.grid[0] * config.vision.grid[1]
        memory = model.remember(torch.zeros(1, tokens, config.vision.width))
        return model.match(torch.zeros(texts, match.TOKENS, dtype=torch.int64), None, memory)

    return _row(f"{texts} texts, features", texts, counted_flops(model, run) / 1e12)


def table(result: dict[str, Any]) -> list[str]:
    """The predictions as lines of docs/performance.md."""
    head = ("what", "TFLOP", "peak memory", f"images/s on an {result['card']}")
    rows = [
        (
            row["case"],
            f"{row['tflop']:.2f}",
            f"{row['peak_gib']:.1f} GiB" if "peak_gib" in row else "",
            f"{row['images_per_s']:,}",
        )
        for row in result["rows"]
    ]
    return text_table(head, rows)


def main(*, store: bool) -> int:
    """Compute, print, and store where that is asked for."""
    result = compute()
    if store:
        write_json(STORED, result)
    print("\n".join(table(result)))
    return 0
