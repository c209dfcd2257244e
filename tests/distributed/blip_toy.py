"""A nano BLIP with all its objectives on pairs that are drawn from their numbers; also a command that trains it.

Texts are of very different lengths, so that halves of a batch hold unequally many tokens.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from training_toy import ToyLoader, given, toy_config

from openblip.core.errors import UserError
from openblip.core.runtime import rank, seed_everything, world_size
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip, blip_config
from openblip.objectives import pretraining
from openblip.objectives.configs import DrawnFrom, ObjectiveConfig, SelfCriticalConfig
from openblip.objectives.matching import Negatives
from openblip.objectives.pretraining import BlipPretraining
from openblip.objectives.selfcritical import CaptionRewards
from openblip.tasks import selfcritical
from openblip.tasks.pairs import BlipStep
from openblip.tasks.selfcritical import SelfCritical, SelfCriticalStep
from openblip.tasks.step import PairBatch
from openblip.training import start, train

DEC, ENC, PAD = 38, 39, 0
step_draws_from_all = False
GROUP = 4
"""pairs among which chosen negatives lie: what the smallest part of a batch holds"""


class PairLoader(ToyLoader):
    """24 pairs of 12 images, shuffled and shared out as `ToyLoader` does."""

    @staticmethod
    def rows(indices: np.ndarray) -> PairBatch:  # type: ignore[override]
        lengths = [3 + int(index) * 7 % 10 for index in indices]
        ids = torch.full((len(indices), max(lengths)), PAD)
        images = torch.empty(len(indices), 3, 16, 16, dtype=torch.uint8)
        for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            generator = torch.Generator().manual_seed(int(index))
            ids[row, :length] = torch.randint(5, 38, (length,), generator=generator)
            generator.manual_seed(int(index) % 12)
            images[row] = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=generator)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return PairBatch(images, TokenBatch(ids, mask), torch.from_numpy(indices % 12))


def chosen_negatives(
    similarity_t2i: Tensor, similarity_i2t: Tensor, image_ids: Tensor, all_ids: Tensor, **how: float
) -> Negatives:
    """The next pair of the same group of four; some pairs have none, unequally many in each group.

    Where negatives come from all ranks: for the text the pair after next of all, for the image the third next.
    """
    pairs, count = torch.arange(len(image_ids)), len(all_ids)
    if step_draws_from_all:
        own = pairs + rank() * len(image_ids)
        return Negatives((own + 2) % count, (own + 3) % count, image_ids > 3)
    following = pairs // GROUP * GROUP + (pairs + 1) % GROUP
    return Negatives(following, following, image_ids > 3)


def draw_from_all(on: bool) -> None:
    """Let `chosen_negatives` choose among the pairs of all ranks."""
    global step_draws_from_all
    step_draws_from_all = on


class Words:
    """A tokenizer whose words are numbers."""

    sep_id, pad_id = 3, PAD

    def prompts(self, texts: list[str]) -> TokenBatch:
        return TokenBatch(torch.tensor([[DEC]]), torch.ones(1, 1, dtype=torch.bool))

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"w{number}" for number in ids if number != self.sep_id)


def build_self_critical(seed: int = 0) -> SelfCriticalStep:
    """The step of a captioner whose captions depend on the image and the seed alone, not on the process."""
    seed_everything(seed)
    selfcritical._MOST = 1
    references = {
        image: [
            CaptionRewards.words_of(" ".join(f"w{image + n}" for n in range(5, 5 + length))) for length in (3, 6)
        ]
        for image in range(12)
    }
    model = Blip(blip_config("nano", vocab_size=40, image_size=16)).part(encoder=False, decoder=True)
    tokenizer: Any = Words()
    config = SelfCriticalConfig(samples=8, max_new_tokens=7)
    return SelfCriticalStep(SelfCritical(model, config, tokenizer, CaptionRewards(references)))


def build(objectives: tuple[str, ...], seed: int = 0, negatives: DrawnFrom = "rank") -> BlipStep:
    """The step of a nano model, 16 pixels, with a queue that a few batches fill."""
    seed_everything(seed)
    model = Blip(blip_config("nano", vocab_size=40, image_size=16))
    model = model.part(encoder="itc" in objectives, decoder="lm" in objectives)
    config = ObjectiveConfig(
        objectives=objectives, queue_size=12, momentum=0.9, use_image_ids=True, negatives=negatives
    )
    return BlipStep(BlipPretraining(model, config, enc_id=ENC, dec_id=DEC))


def main(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """blip_toy.py OUT [--key=value of TrainConfig, objectives, batch_size, draw, resume ...]; values are JSON."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    out_dir = Path(arguments[0])
    options = given(arguments[1:])
    objectives = options.pop("objectives", ("itc", "itm", "lm"))
    batch_size, resume = options.pop("batch_size", 8), options.pop("resume", False)
    negatives = options.pop("negatives", "rank")
    draw_from_all(negatives == "all")
    if not options.pop("draw", False):
        pretraining.draw_negatives = chosen_negatives
    # A large eps: the first steps of Adam else follow the sign of gradients that are nearly zero.
    settings: dict[str, Any] = {"max_steps": 6, "eps": 1e-3, "learning_rate": 5e-3, "warmup_steps": 0, **options}
    start("cpu")
    step = build_self_critical() if "scst" in objectives else build(objectives, negatives=negatives)
    loader = PairLoader(24, batch_size, rank=rank(), world=world_size())

    def export(folder: Path) -> None:
        torch.save({name: value.clone() for name, value in step.state_dict().items()}, folder / "step.pt")

    try:
        train(toy_config(**settings), step, loader, out_dir, resume=resume, show=False, export=export)
    except UserError as error:
        (out_dir / f"error-{rank()}.txt").write_text(str(error))
        sys.exit(2)


def weights(out_dir: Path) -> dict[str, Tensor]:
    """Everything that a finished run's step holds: model, momentum copies, queue."""
    state = torch.load(out_dir / "model" / "step.pt")
    return {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


if __name__ == "__main__":
    main(sys.argv[1:])
