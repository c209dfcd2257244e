"""Whole runs of small models in the scene world, as `openblip train` does them; also a command."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit" / "blip2"))

import small_blip2
from kinds_of_towers import make_transformers

from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.core.runtime import rank
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, blip_config
from openblip.models.configs import as_language
from openblip.recipes.small import small_pretrain, small_stage1
from openblip.tasks.config import RunConfig
from openblip.tasks.training import run_training

PIXELS = 32
DATA, VALIDATION = f"world:train?n=16&size={PIXELS}", f"world:val?n=4&size={PIXELS}"
SETTINGS = (
    *("batch_size=4", "num_workers=0", "vocab_size=200", "rerank_k=2", "decode.num_beams=1"),
    *("decode.max_new_tokens=3", "train.max_steps=2", "train.warmup_steps=0", "train.schedule=constant"),
    *("train.eps=1e-3", "train.optimizer=adamw", "train.learning_rate=5e-3", "train.evaluate_every_epochs=0"),
    *("train.evaluate_every_steps=1", "train.log_every=1", "train.device=cpu", "train.precision=float32"),
    *("train.trackers=[]", "train.monitor=mean_recall", "train.monitor_mode=max"),
)


def write_parts(folder: Path) -> None:
    """A BLIP whose tower is to be frozen, one of CLIP, and a language model."""
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train(["a red circle left of a blue square"], vocab_size=60)
    blip = Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=PIXELS))
    save_model(folder / "blip", StoredModel(blip, tokenizer))
    clip = make_transformers("CLIP")
    small_blip2.spread(clip, 0.2)  # its norms too, which are drawn alike
    clip.save_pretrained(folder / "clip")
    small_blip2.write_language(folder / "language")


def configuration(kind: str, parts: Path) -> RunConfig:
    """Of "blip"'s pre-training; of BLIP-2's "stage1", that with a tower of CLIP that is "unfrozen", and "stage2",
    saved with all that is frozen."""
    if kind == "blip":
        config = small_pretrain((DATA,), model="nano", validation=(VALIDATION,))
        return override(config, ("image_size=32", "objective.momentum=0.9", "objective.queue_size=8"))
    vision = f"hf:{parts}/clip@0" if kind == "unfrozen" else f"openblip:{parts}/blip"
    config = small_stage1((DATA,), model="nano", vision=vision, validation=(VALIDATION,))
    if kind in ("stage1", "unfrozen"):
        return replace(config, unfreeze_vision=kind == "unfrozen")
    language = replace(as_language(str(parts / "language")), dtype="float32")
    return replace(config, task="captioning", language=language, save_whole=True)


def main(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """run_toy.py OUT PARTS KIND [--resume] [SETTING=VALUE ...]: settings as for `--set`."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    out, parts, kind, *rest = arguments
    resume = "--resume" in rest
    settings = [setting for setting in rest if setting != "--resume"]
    try:
        config = override(configuration(kind, Path(parts)), (*SETTINGS, *settings))
        run_training(config, out, resume=resume, show=False)
    except UserError as error:
        Path(out, f"error-{rank()}.txt").write_text(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
