"""A nano BLIP-2 in either stage on pairs that are drawn from their numbers; also a command that trains it.

Texts and negatives are those of `blip_toy`; the frozen tower and language models have random weights.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blip_toy import DEC, PairLoader, chosen_negatives, draw_from_all
from torch import Tensor
from training_toy import given, toy_config

from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageBatch
from openblip.core.runtime import rank, seed_everything, world_size
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import LanguageConfig, QFormerConfig, TowerConfig, VisionConfig
from openblip.models.language import FrozenLanguage
from openblip.models.tower import make_tower
from openblip.objectives import blip2 as objectives
from openblip.objectives.blip2 import Blip2Stage1, Blip2Stage2, split_prefix
from openblip.objectives.configs import DrawnFrom, Stage1Config
from openblip.tasks.captioning import LanguagePairBatch, Stage2Step
from openblip.tasks.pairs import Stage1Step
from openblip.training import start, train

EOS = 2


class Stage1Loader(PairLoader):
    """Pairs for stage 1."""


class DecoderLoader(PairLoader):
    """Pairs for stage 2 before a decoder; the first two tokens are a prompt."""

    @staticmethod
    def rows(indices: np.ndarray) -> LanguagePairBatch:  # type: ignore[override]
        batch = PairLoader.rows(indices)
        scored = batch.text.attention_mask.clone()
        scored[:, :2] = False
        return LanguagePairBatch(
            batch.images, _words(batch.text.input_ids, batch.text.attention_mask, scored), batch.image_ids
        )


class QuestionLoader(PairLoader):
    """As `DecoderLoader`, with questions for the Q-Former to read too."""

    @staticmethod
    def rows(indices: np.ndarray) -> LanguagePairBatch:  # type: ignore[override]
        return replace(DecoderLoader.rows(indices), questions=PairLoader.rows((indices + 5) % 24).text)


class EncoderDecoderLoader(PairLoader):
    """Pairs for stage 2 before an encoder-decoder, split at places drawn from the pairs' numbers."""

    @staticmethod
    def rows(indices: np.ndarray) -> LanguagePairBatch:  # type: ignore[override]
        batch = PairLoader.rows(indices)
        mask = batch.text.attention_mask
        words = _words(batch.text.input_ids, mask, mask)
        cuts = torch.zeros_like(mask)
        cuts[torch.arange(len(indices)), torch.from_numpy(1 + indices % 2)] = True
        prefix, rest = split_prefix(LanguageBatch(words.input_ids, mask, mask, cuts), eos_id=EOS)
        return LanguagePairBatch(batch.images, rest, batch.image_ids, prefix=prefix)


def _words(ids: Tensor, mask: Tensor, scored: Tensor) -> LanguageBatch:
    return LanguageBatch(ids, mask, scored, scored)


LOADERS: dict[str, type[PairLoader]] = {
    "stage1": Stage1Loader,
    "opt": DecoderLoader,
    "vqa": QuestionLoader,
    "t5": EncoderDecoderLoader,
}


def language(kind: str) -> FrozenLanguage:
    """A small OPT or T5."""
    import transformers

    torch.manual_seed(7)
    ids: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS}
    if kind != "t5":
        sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        model: Any = transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, word_embed_proj_dim=32, **ids))
    else:
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**sizes, decoder_start_token_id=0, **ids)
        )
    return FrozenLanguage(model, LanguageConfig(source=kind))


def build(
    kind: str, seed: int = 0, parts: tuple[str, ...] = ("itc", "itm", "itg"), negatives: DrawnFrom = "rank"
) -> Stage1Step | Stage2Step:
    """The step of stage 1, of stage 2 before a small "opt" or "t5", or of "vqa", before an OPT with questions."""
    first = kind == "stage1"
    own = VisionConfig(image_size=16, patch_size=8, width=32, depth=1, num_heads=2, final_norm=False)
    qformer = QFormerConfig(
        num_queries=4, width=32, depth=2, num_heads=2, inner_width=64, memory_width=32, max_positions=16,
        dropout=0.0, vocab_size=40 if first or kind == "vqa" else None, writes=first,
    )  # fmt: skip
    config = Blip2Config(
        vision=TowerConfig(source="own", own=own), qformer=qformer, matches=first, embed_dim=16,
        language=None if first else LanguageConfig(source=kind),
    )  # fmt: skip
    llm = None if first else language(kind)
    seed_everything(seed)
    model = Blip2(config, make_tower(config.vision), llm)
    if first:
        stage1 = Stage1Config(objectives=parts, use_image_ids=True, negatives=negatives)
        return Stage1Step(Blip2Stage1(model, stage1, dec_id=DEC))
    return Stage2Step(Blip2Stage2(model, eos_id=EOS))


def hold(step: torch.nn.Module, number: int) -> None:
    """Let the step of that number never end, so that a run does not either before it is killed."""
    numbers = count(1)

    def wait(*_: object) -> None:
        if next(numbers) == number:
            time.sleep(3600)

    step.register_forward_pre_hook(wait)


def main(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """blip2_toy.py OUT --kind=... [--key=value of TrainConfig, objectives, hold_at, draw ...]; JSON values."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    out_dir = Path(arguments[0])
    options = given(arguments[1:])
    parts = options.pop("objectives", ("itc", "itm", "itg"))
    kind, batch_size, resume = options.pop("kind"), options.pop("batch_size", 8), options.pop("resume", False)
    negatives, hold_at = options.pop("negatives", "rank"), options.pop("hold_at", 0)
    draw_from_all(negatives == "all")
    if not options.pop("draw", False):
        objectives.draw_negatives = chosen_negatives  # type: ignore[assignment]
    # A large eps: the first steps of Adam else follow the sign of gradients that are nearly zero.
    settings: dict[str, Any] = {"max_steps": 6, "eps": 1e-3, "learning_rate": 5e-3, "warmup_steps": 0, **options}
    start("cpu")
    step = build(kind, parts=parts, negatives=negatives)
    hold(step, hold_at)
    loader = LOADERS[kind](24, batch_size, rank=rank(), world=world_size())
    try:
        train(toy_config(**settings), step, loader, out_dir, resume=resume, show=False)
    except UserError as error:
        (out_dir / f"error-{rank()}.txt").write_text(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
