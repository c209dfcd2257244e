"""What a training step of BLIP-2 takes on a GPU, computed on any machine: no weight is allocated, nothing is timed.

    python -m benchmarks.blip2_memory [--json] [--store]
    python -m benchmarks.blip2_memory --vision timm:NAME --language FOLDER-OR-HUB-NAME --tokens 32

The floating-point operations of a step's matrix products are counted too, forward and backward; attention's own,
some 3%, are not. From them docs/blip2.md estimates how long a run takes.

`openblip.tasks.cost` says how it is computed. Not in it: the CUDA context and what the allocator loses to
fragments, for which `RESERVE` is set aside, and what several processes add (DDP's buckets, as much as the
gradients).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.tables import text_table
from openblip.core.files import write_json
from openblip.core.language_tokenizer import LanguageBatch
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import LanguageConfig, QFormerConfig, TowerConfig, as_tower
from openblip.models.language import FrozenLanguage
from openblip.models.language_sizes import LANGUAGE_SIZES, language_of_size
from openblip.models.tower import FrozenTower, make_tower
from openblip.objectives.blip2 import Blip2Stage1, Blip2Stage2
from openblip.objectives.configs import Stage1Config
from openblip.recipes.blip2 import VISION_TODAY
from openblip.tasks.captioning import LanguagePairBatch, Stage2Step
from openblip.tasks.cost import GIB, RESERVE, StepCost, predicted_cost
from openblip.tasks.pairs import Stage1Step
from openblip.tasks.step import PairBatch

CARDS = (24, 40, 80)
SIZES = (32, 256)
"""batches that are computed"""
TOKENS = 32
"""of a caption, the longest that the recipes train on"""
VISION = TowerConfig(dtype="bfloat16")
"""the paper's tower"""
STORED = Path(__file__).parent / "results" / "blip2-memory.json"

Make = Callable[[], Any]
"""makes a language model of transformers without values"""


def step_memory(
    config: Blip2Config,
    language: Make | None,
    batch_size: int,
    *,
    tokens: int = TOKENS,
    from_features: bool = False,
    checkpointing: bool = False,
) -> StepCost:
    """Memory of one step under autocast in bfloat16, AdamW, stage 2 where there is a language model.

    Args:
        config: with the frozen parts' dtypes.
        language: makes the language model, on whatever device is the default.
        from_features: images are features of the frozen tower (`openblip cache-features`), and it is not there.
        checkpointing: the blocks of Q-Former and language model are computed again in the backward pass.
    """
    with torch.device("meta"):
        tower = make_tower(config.vision, pretrained=False)
        llm = None if language is None else FrozenLanguage(language(), config.language or LanguageConfig())
        model = Blip2(config, tower, llm).train()
    objective = Blip2Stage1(model, Stage1Config(), dec_id=30522) if llm is None else Blip2Stage2(model, eos_id=1)
    step: nn.Module = Stage1Step(objective) if llm is None else Stage2Step(objective)
    model.gradient_checkpointing_enable(checkpointing)

    def batch() -> PairBatch:
        features = None
        if from_features:
            features = tower(torch.zeros(1, 3, *tower.pixels)).expand(batch_size, -1, -1).contiguous()
            tower.encoder = nn.Identity()
        return _batch(tower, llm, batch_size, tokens, features)

    return predicted_cost(step, batch)


def _batch(
    tower: FrozenTower, llm: FrozenLanguage | None, rows: int, tokens: int, features: Tensor | None
) -> PairBatch:
    """A batch of texts of equally many tokens; an encoder-decoder's are split in the middle."""
    images = torch.zeros(rows, 3, *tower.pixels, dtype=torch.uint8) if features is None else features
    ids = torch.zeros(rows, tokens, dtype=torch.int64)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    image_ids = torch.zeros(rows, dtype=torch.int64)
    if llm is None:
        return PairBatch(images, TokenBatch(ids, mask), image_ids)
    if not llm.is_encoder_decoder:
        return LanguagePairBatch(images, _all_scored(ids, mask), image_ids)
    half = slice(0, tokens // 2)
    part = _all_scored(ids[:, half], mask[:, half])
    return LanguagePairBatch(images, part, image_ids, prefix=part)


def _all_scored(ids: Tensor, mask: Tensor) -> LanguageBatch:
    """Their places are named, since tensors without values cannot be searched."""
    return LanguageBatch(ids, mask, mask, mask, torch.arange(ids.numel()))


def largest_batch(few: StepCost, many: StepCost, card: float) -> int:
    """The largest batch that fits a card of so many GiB, 0 if none does; peaks grow by equal steps with the batch.

    Args:
        few: memory with `SIZES[0]` rows; `many` with `SIZES[1]`.
    """
    each = (many.peak - few.peak) / (SIZES[1] - SIZES[0])
    return max(0, int(SIZES[0] + ((card - RESERVE) * GIB - few.peak) / each))


PAPER: dict[str, Make] = {
    "OPT-2.7B": LANGUAGE_SIZES["facebook/opt-2.7b"],
    "FlanT5-XL": LANGUAGE_SIZES["google/flan-t5-xl"],
}
TODAY: dict[str, Make] = {
    "Qwen3-1.7B": LANGUAGE_SIZES["Qwen/Qwen3-1.7B-Base"],
    "Gemma 3 1B": LANGUAGE_SIZES["google/gemma-3-1b-pt"],
}


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    config: Blip2Config
    language: Make | None = None
    from_features: bool = False
    checkpointing: bool = False

    def memory(self, batch_size: int, tokens: int = TOKENS) -> StepCost:
        """`step_memory` of it."""
        how = {"from_features": self.from_features, "checkpointing": self.checkpointing}
        return step_memory(self.config, self.language, batch_size, tokens=tokens, **how)


def cases(vision: TowerConfig, languages: dict[str, Make]) -> list[Case]:
    """Stage 1, and stage 2 before each language model: plainly, computing blocks again, and from features."""
    with torch.device("meta"):
        width = make_tower(vision, pretrained=False).width
    first = Blip2Config(vision=vision, qformer=QFormerConfig(memory_width=width))
    silent = replace(first.qformer, vocab_size=None, writes=False)
    made = [
        Case("stage 1", first),
        Case("stage 1, recomputing", first, checkpointing=True),
        Case("stage 1, from features", first, from_features=True),
    ]
    for name, language in languages.items():
        config = LanguageConfig(source=name, dtype="bfloat16")
        second = replace(first, qformer=silent, matches=False, language=config)
        made += [
            Case(f"stage 2, {name}", second, language),
            Case(f"stage 2, {name}, recomputing", second, language, checkpointing=True),
            Case(f"stage 2, {name}, from features", second, language, from_features=True),
        ]
    return made


def run(vision: TowerConfig, languages: dict[str, Make], tokens: int = TOKENS) -> dict[str, Any]:
    """The table as plain data."""
    return {
        "name": "blip2-memory",
        "tokens": tokens,
        "reserve_gib": RESERVE,
        "rows": _rows(cases(vision, languages), tokens),
    }


def _rows(made: list[Case], tokens: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for case in made:
        few, many = (case.memory(size, tokens) for size in SIZES)
        each = (many.peak - few.peak) / (SIZES[1] - SIZES[0])
        rows.append(
            {
                "case": case.name,
                "trained_parameters": few.trained_parameters,
                "frozen_parameters": few.frozen_parameters,
                "frozen_gib": round(few.frozen / GIB, 2),
                "trained_gib": round(few.trained / GIB, 2),
                "each_mib": round(each / 2**20, 1),
                "each_tflop": round((many.flops - few.flops) / (SIZES[1] - SIZES[0]) / 1e12, 3),
                "peak_gib": {
                    str(size): round(found.peak / GIB, 2) for size, found in zip(SIZES, (few, many), strict=True)
                },
                "largest_batch": {str(card): largest_batch(few, many, card) for card in CARDS},
            }
        )
    return rows


def table(result: dict[str, Any], rows: str = "rows") -> list[str]:
    """The result's `rows`, or those of "today", as a table for docs/blip2.md, by lines."""
    head = ("", "trained", "frozen", "weights and moments", "each image", *(f"{card} GB" for card in CARDS))
    lines = [
        (
            row["case"],
            f"{row['trained_parameters'] / 1e6:.1f}M",
            f"{row['frozen_parameters'] / 1e6:,.0f}M",
            f"{row['frozen_gib'] + row['trained_gib']:.1f} GiB",
            f"{row['each_mib']:.0f} MiB",
            *(str(row["largest_batch"][str(card)] or "none") for card in CARDS),
        )
        for row in result[rows]
    ]
    return text_table(head, lines, left=len(head))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blip2_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--vision", default=TowerConfig().source, help="the frozen tower, timm:NAME[@N]")
    parser.add_argument("--language", help="a transformers folder or hub name; only its config.json is read")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a text")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--store", action="store_true", help="keep it in benchmarks/results")
    options = parser.parse_args()
    named: dict[str, Make] = {options.language: partial(language_of_size, options.language)}
    languages = named if options.language else PAPER
    result = run(as_tower(options.vision, VISION), languages, options.tokens)
    if options.store:
        today = cases(as_tower(VISION_TODAY, VISION), TODAY)
        plain = [case for case in today if not case.checkpointing and not case.from_features]
        result["today"] = _rows(plain, options.tokens)
        write_json(STORED, result)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print("\n".join(table(result)))


if __name__ == "__main__":
    main()
