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

import torch
from torch import Tensor, nn

from openblip.core.runtime import gather, rank, world_size
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip
from openblip.models.layers import ImageMemory
from openblip.objectives.configs import ObjectiveConfig
from openblip.objectives.contrastive import SoftTargets, contrastive_loss, positive_pairs
from openblip.objectives.language import language_loss, language_targets
from openblip.objectives.matching import AllRanks, Negatives, draw_negatives, match_pairs
from openblip.objectives.momentum import FeatureQueue, MomentumCopy

__all__ = ["BlipPretraining"]


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
                    negatives = draw_negatives(
                        similarity_t2i,
                        similarity_i2t,
                        ids,
                        all_ids,
                        hard_share=self.config.hard_share,
                        floor=self.config.negative_floor,
                    )
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
        # In float32 as in the loss: a temperature down to 0.001 divides them.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            similarity_i2t = image_features.float() @ other_texts.float().T / model.temperature
            similarity_t2i = text_features.float() @ other_images.float().T / model.temperature
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
