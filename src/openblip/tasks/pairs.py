"""Training on images with captions: BLIP's ITC, ITM and LM, and stage 1 of BLIP-2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch
from openblip.objectives.blip2 import Blip2Stage1, pairs_read
from openblip.objectives.configs import STAGE1_OBJECTIVES, Stage1Config
from openblip.objectives.pretraining import BlipPretraining
from openblip.tasks.config import RunConfig
from openblip.tasks.feature_cache import FeatureCache
from openblip.tasks.protocols import Adapter
from openblip.tasks.step import PairBatch, Training, TrainingStep, images_of
from openblip.tasks.task import RunData

__all__ = ["BlipStep", "Stage1Step", "prepare_pairs", "stage1_for", "train_blip", "train_stage1"]


def prepare_pairs(
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    prompt: str = "",
    cache: FeatureCache | None = None,
    written_share: float = 1.0,
) -> Callable[[Batch], PairBatch]:
    """A function from the loader's batches to `PairBatch`es.

    Args:
        max_length: tokens of a text, first and last included; longer ones are cut.
        prompt: put before every text, with a blank, and not scored, as in fine-tuning a captioner.
        written_share: fraction of a batch's pairs, the first ones, whose texts language modelling reads.
    """
    images = images_of(cache)

    def prepare(batch: Batch) -> PairBatch:
        text, prompt_length = tokenizer.encode_after(prompt, batch.texts, first="cls", max_length=max_length)
        written = pairs_read(len(batch.texts), written_share)
        return PairBatch(images(batch), text, batch.image_ids, prompt_length, written)

    return prepare


class BlipStep(TrainingStep[PairBatch]):
    """`BlipPretraining` over `PairBatch`es."""

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        return self.objective(
            self.model.vision.normalize(batch.images),
            batch.text,
            batch.image_ids,
            prompt_length=batch.prompt_length,
            num_tokens=self.divisor,
        )


class Stage1Step(TrainingStep[PairBatch]):
    """`Blip2Stage1` over `PairBatch`es."""

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        image_embeds = self.model.encode_pixels(batch.images)
        return self.objective(image_embeds, batch.text, batch.image_ids, num_tokens=self.divisor)


def train_blip(
    config: RunConfig, adapter: Adapter, data: RunData, *, objectives: Sequence[str] | None = None
) -> Training:
    """BLIP on pairs.

    Args:
        objectives: in place of the configuration's.

    Raises:
        UserError: the tokenizer does not know the prompt: a model trained on it could write no caption after it.
    """
    if config.prompt:
        adapter.check_prompt([config.prompt], remedy=" (--set prompt=TEXT), or train without one (--set prompt=)")
    tokenizer, chosen = adapter.tokenizer, config.objective
    if objectives is not None:
        chosen = replace(chosen, objectives=tuple(objectives))
    objective = BlipPretraining(adapter.model, chosen, enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id)
    prepare = prepare_pairs(tokenizer, max_length=config.max_length, prompt=config.prompt)
    # An objective that is left out leaves what only it reads unused, where the model has that part.
    parts, trained = adapter.model.config, set(chosen.objectives)
    unused = (parts.encoder and not {"itc", "itm"} <= trained) or (parts.decoder and "lm" not in trained)
    return Training(
        BlipStep(objective), prepare, config.clean, config.max_words, find_unused_parameters=bool(unused)
    )


def train_stage1(config: RunConfig, adapter: Adapter, data: RunData) -> Training:
    """BLIP-2's Q-Former on pairs.

    Raises:
        UserError: as `stage1_for`.
    """
    writes = adapter.model.qformer.head is not None
    chosen = stage1_for(config, writes=writes)
    objective = Blip2Stage1(adapter.model, chosen, dec_id=adapter.tokenizer.dec_id)
    prepare = prepare_pairs(
        adapter.tokenizer, max_length=config.max_length, cache=data.cache, written_share=config.stage1.itg_share
    )
    # An objective that is left out leaves its head unused.
    unused = set(chosen.objectives) != set(STAGE1_OBJECTIVES) - (set() if writes else {"itg"})
    return Training(Stage1Step(objective), prepare, config.clean, config.max_words, find_unused_parameters=unused)


def stage1_for(config: RunConfig, *, writes: bool) -> Stage1Config:
    """The objectives of a run that its model can be trained on.

    Args:
        writes: whether the model has a head for ITG. Retrieval models of transformers come without; ITC and ITM are
            what retrieval is by.

    Raises:
        UserError: it has none, and the run is not for retrieval.
    """
    chosen = config.stage1
    if writes or "itg" not in chosen.objectives:
        return chosen
    if config.task != "retrieval":
        raise UserError(
            f"{config.model} has no head for ITG, which transformers' retrieval models lack: set "
            "stage1.objectives=itc,itm, or start from a file of LAVIS"
        )
    return replace(chosen, objectives=tuple(name for name in chosen.objectives if name != "itg"))
