"""BLIP's training step: a model with its objectives, momentum copies and queue, from tensors to named losses.

One module serves pre-training (ITC + ITM + LM), the captioner (LM alone) and the filter or retrieval
model (ITC + ITM): `objectives` says which. It fits the training loop's `Step` protocol once a task has
turned a batch into tensors.

In a step the image is encoded once and its memory is projected once; ITM positives, ITM negatives and LM
all read it. Nothing in a step waits for the device, unless negatives are drawn from all ranks.

Over several ranks, as in the reference: ITC compares with the momentum features of all ranks; ITM draws its
negatives among the pairs of its own rank (pre-training) or of all ranks (retrieval), see `negatives`. The mean of
the ranks' losses is the mean over all rows (ITC, ITM) and, with `num_tokens`, over all tokens (LM).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError, nearest
from openblip.core.runtime import gather, rank, world_size
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip
from openblip.models.layers import ImageMemory
from openblip.objectives.contrastive import SoftTargets, contrastive_loss, positive_pairs
from openblip.objectives.language import language_loss, language_targets
from openblip.objectives.matching import AllRanks, DrawnFrom, Negatives, draw_negatives, match_pairs
from openblip.objectives.momentum import FeatureQueue, MomentumCopy

__all__ = ["BlipPretraining", "ObjectiveConfig"]

OBJECTIVES = ("itc", "itm", "lm")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What a BLIP model is trained on; the defaults are the paper's pre-training."""

    objectives: tuple[str, ...] = OBJECTIVES
    """Any of "itc", "itm", "lm"; "itm" draws its negatives from ITC's similarities and needs it."""
    queue_size: int = 57600
    """Momentum features kept of each modality."""
    momentum: float = 0.995
    """Momentum of the copies whose features ITC compares with. 0 compares with the model's own features, without
    copies and without their forward pass, which short runs without a queue do not need."""
    alpha: float = 0.4
    """Weight of the momentum model's similarities in ITC's targets."""
    alpha_ramp_epochs: float = 1.0
    """Epochs over which alpha grows linearly from 0: 1 as in BLIP's fine-tuning for retrieval; its pre-training
    takes 2."""
    temperature_min: float = 0.001
    temperature_max: float = 0.5
    label_smoothing: float = 0.1
    """Label smoothing of LM."""
    use_image_ids: bool = False
    """Whether captions of one image are positives of each other and never negatives (fine-tuning for retrieval)."""
    hard_share: float = 1.0
    """Fraction of ITM's negatives drawn by similarity; the papers draw all. Below 1 the rest is drawn uniformly,
    which moves ITM's threshold to where texts of any other image are distinguished (a filter), not only the most
    similar."""
    negatives: DrawnFrom = "rank"
    """Whose pairs ITM draws its negatives from: "rank" as in pre-training, or "all" ranks' as the reference does in
    fine-tuning for retrieval on COCO, at the cost of gathering the image features and projecting B images more."""
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Weights of ITC, ITM and LM in the sum."""

    def __post_init__(self) -> None:
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise UserError(f'unknown objective "{name}"{nearest(name, OBJECTIVES)}')
        if "itm" in self.objectives and "itc" not in self.objectives:
            raise UserError('the objective "itm" draws its negatives from "itc": name both')
        if not self.objectives:
            raise UserError('no objective is named: choose from "itc", "itm", "lm"')
        if not 0 <= self.hard_share <= 1:
            raise UserError(f"hard_share is a share between 0 and 1, not {self.hard_share}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum lies between 0 and 1, not at {self.momentum}")
        if self.momentum == 0 and (self.queue_size or self.alpha):
            raise UserError(
                "momentum = 0 keeps no copies for a queue or for soft targets: set queue_size = 0 and alpha = 0"
            )
        if self.queue_size < 0:
            raise UserError(f"queue_size cannot be {self.queue_size}: it counts features")


class BlipPretraining(nn.Module):
    """A BLIP model with its objectives.

    Args:
        model: with an encoder for ITC and ITM, a decoder for LM.
        enc_id: id of [ENC], with which a text to match begins.
        dec_id: id of [DEC], with which a text to write begins.
    """

    alpha_now: Tensor

    def __init__(self, model: Blip, config: ObjectiveConfig, *, enc_id: int, dec_id: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.enc_id = enc_id
        self.dec_id = dec_id
        self.update_momentum = True
        self.momentum_copy: MomentumCopy | None = None
        self.queue: FeatureQueue | None = None
        if "itc" in config.objectives:
            self.momentum_copy = MomentumCopy(model, config.momentum) if config.momentum else None
            self.queue = FeatureQueue(config.queue_size, model.config.embed_dim)
        self.register_buffer("alpha_now", torch.tensor(config.alpha), persistent=False)

    def set_progress(self, epoch: float, new_step: bool = True) -> None:
        """Tell how far training is.

        Args:
            epoch: epochs done, a fraction in mid-epoch; ramps alpha up.
            new_step: False for the later micro-batches of an accumulated step, so that the momentum copies
                move once for each step of the optimiser.
        """
        ramp = self.config.alpha_ramp_epochs
        self.alpha_now.fill_(self.config.alpha * (min(1.0, epoch / ramp) if ramp > 0 else 1.0))
        self.update_momentum = new_step

    def gradient_checkpointing_enable(self, share: float = 1.0) -> None:
        """As `Blip.gradient_checkpointing_enable`."""
        self.model.gradient_checkpointing_enable(share)

    def forward(
        self,
        images: Tensor,
        text: TokenBatch,
        image_ids: Tensor | None = None,
        *,
        prompt_length: int = 0,
        negatives: Negatives | None = None,
        num_tokens: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            images: normalised [B, 3, H, W].
            text: ids [B, T]; the first token is replaced by what each objective begins with.
            image_ids: int64 [B], read when the configuration says `use_image_ids`.
            prompt_length: tokens at the start, the first included, that LM does not score.
            negatives: instead of drawing them.
            num_tokens: what LM's sum is divided by, see `language_loss`; None is the tokens of this batch.

        Returns:
            scalars "loss" (the weighted sum) and "loss_itc", "loss_itm", "loss_lm" for the objectives that are on,
            with "itm_accuracy".
        """
        ids = image_ids if self.config.use_image_ids else None
        weight_itc, weight_itm, weight_lm = self.config.weights
        image_embeds = self.model.encode_image(images)
        losses: dict[str, Tensor] = {}
        total = image_embeds.new_zeros((), dtype=torch.float32)
        memory: ImageMemory | None = None
        if "itm" in self.config.objectives or "lm" in self.config.objectives:
            memory = self.model.remember(image_embeds)
        if "itc" in self.config.objectives:
            losses["loss_itc"], similarity_i2t, similarity_t2i, all_ids = self._itc(images, image_embeds, text, ids)
            total = total + weight_itc * losses["loss_itc"]
            if "itm" in self.config.objectives:
                assert memory is not None
                if negatives is None:
                    share = self.config.hard_share
                    negatives = draw_negatives(similarity_t2i, similarity_i2t, ids, all_ids, hard_share=share)
                input_ids = text.input_ids.clone()
                input_ids[:, 0].fill_(self.enc_id)
                mask, everyone = text.attention_mask, None
                if self._over_ranks:
                    everyone = AllRanks.gather(input_ids, mask, image_embeds, self.model.remember)
                losses["loss_itm"], losses["itm_accuracy"] = match_pairs(
                    self.model.match, input_ids, mask, memory, negatives, everyone
                )
                total = total + weight_itm * losses["loss_itm"]
        if "lm" in self.config.objectives:
            assert memory is not None
            losses["loss_lm"] = self._lm(memory, text, prompt_length, num_tokens)
            total = total + weight_lm * losses["loss_lm"]
        return {"loss": total, **losses}

    @property
    def _over_ranks(self) -> bool:
        return self.config.negatives == "all" and world_size() > 1

    def _itc(
        self, images: Tensor, image_embeds: Tensor, text: TokenBatch, image_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The loss, similarities [B, A] with what negatives are drawn from in both directions, its image ids."""
        model, queue, momentum_copy = self.model, self.queue, self.momentum_copy
        assert queue is not None
        with torch.no_grad():
            model.temperature.clamp_(self.config.temperature_min, self.config.temperature_max)
        image_features = model.image_features(image_embeds)
        text_features = model.text_features(text.input_ids, text.attention_mask)
        if momentum_copy is None:
            momentum_image, momentum_text = image_features.detach(), text_features.detach()
        else:
            if self.training and self.update_momentum:
                momentum_copy.update(model)
            momentum_image, momentum_text = momentum_copy.features(images, text.input_ids, text.attention_mask)
        gathered_image, gathered_text = gather(momentum_image), gather(momentum_text)
        gathered_ids = None if image_ids is None else gather(image_ids)
        batch = len(text)
        targets = SoftTargets(
            momentum_image,
            momentum_text,
            torch.cat((gathered_image.to(queue.images.dtype), queue.images)),
            torch.cat((gathered_text.to(queue.texts.dtype), queue.texts)),
        )
        all_ids = None if gathered_ids is None else torch.cat((gathered_ids, queue.image_ids))
        positives = positive_pairs(
            batch, rank(), batch * world_size() + queue.size, images.device, image_ids, all_ids
        )
        loss = contrastive_loss(
            image_features, text_features, targets, positives, model.temperature, self.alpha_now
        )
        other_images, other_texts, ids = momentum_image, momentum_text, image_ids
        if self._over_ranks:
            other_images, other_texts, ids = gathered_image, gathered_text, gathered_ids
        with torch.no_grad():
            similarity_i2t = image_features @ other_texts.to(image_features.dtype).T / model.temperature
            similarity_t2i = text_features @ other_images.to(text_features.dtype).T / model.temperature
        if self.training:
            queue.enqueue(gathered_image, gathered_text, gathered_ids)
        return loss, similarity_i2t, similarity_t2i, ids

    def _lm(self, memory: ImageMemory, text: TokenBatch, prompt_length: int, num_tokens: Tensor | None) -> Tensor:
        input_ids = text.input_ids.clone()
        input_ids[:, 0].fill_(self.dec_id)
        logits = self.model.decoder(input_ids, text.attention_mask, memory=memory)
        targets = language_targets(input_ids, text.attention_mask, prompt_length)
        smoothing = self.config.label_smoothing
        return language_loss(logits, targets, label_smoothing=smoothing, num_tokens=num_tokens)
