"""BLIP-2's two stages: a model with its objectives, from tensors to named losses.

Stage 1 trains the Q-Former on ITC, ITM and ITG over frozen features in one step; the image memory is projected
once and read by all three. Stage 2 trains it with a projection, so that a frozen language model continues from it.
Nothing in a step waits for the device, and frozen tokens are not gathered over ranks, unless negatives are drawn
from all of them.

Shapes: B pairs of this rank, Q queries, T text tokens, E joint width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openblip.core.language_tokenizer import LanguageBatch
from openblip.core.runtime import gather, rank, world_size
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip2 import Blip2, best_query
from openblip.models.layers import KVCache
from openblip.objectives.configs import Stage1Config
from openblip.objectives.contrastive import positive_pairs, smoothed_contrastive_loss
from openblip.objectives.language import language_loss, language_targets, token_loss
from openblip.objectives.matching import AllRanks, Negatives, draw_negatives, match_pairs

__all__ = ["Blip2Stage1", "Blip2Stage2", "pairs_read", "split_prefix"]


def pairs_read(batch: int, share: float) -> int:
    """How many of a batch's pairs an objective with this share reads: the first ones, at least one."""
    return max(1, round(share * batch))


class Blip2Stage1(nn.Module):
    """Stage 1: ITC, ITM and ITG.

    Args:
        model: with stage 1's heads and a language head.
        dec_id: id of [DEC], with which a text to write begins.
    """

    def __init__(self, model: Blip2, config: Stage1Config, *, dec_id: int) -> None:
        super().__init__()
        self.model, self.config, self.dec_id = model, config, dec_id

    def forward(
        self,
        image_embeds: Tensor,
        text: TokenBatch,
        image_ids: Tensor | None = None,
        *,
        negatives: Negatives | None = None,
        num_tokens: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            image_embeds: [B, N, Dv] of `Blip2.encode_image`, or of `normalize_features` over cached features.
            text: ids [B, T] that begin with [CLS]; ITG replaces it by [DEC].
            image_ids: int64 [B], read when the configuration says `use_image_ids`.
            negatives: instead of drawing them.
            num_tokens: see `language_loss`.

        Returns:
            scalars "loss" (the weighted sum) and "loss_itc", "loss_itm", "loss_itg" for the objectives that are on,
            with "itm_accuracy".
        """
        model, config = self.model, self.config
        ids = image_ids if config.use_image_ids else None
        memory = model.remember(image_embeds)
        cache = KVCache()
        queries = model.read_image(memory, cache)
        losses: dict[str, Tensor] = {}
        total = image_embeds.new_zeros((), dtype=torch.float32)
        if "itc" in config.objectives:
            losses["loss_itc"], similarity_i2t, similarity_t2i, all_ids = self._itc(queries, text, ids)
            total = total + config.weights[0] * losses["loss_itc"]
            if "itm" in config.objectives:
                if negatives is None:
                    negatives = draw_negatives(
                        similarity_t2i,
                        similarity_i2t,
                        ids,
                        all_ids,
                        hard_share=config.hard_share,
                        floor=config.negative_floor,
                    )
                everyone = None
                if self._over_ranks:
                    everyone = AllRanks.gather(text.input_ids, text.attention_mask, image_embeds, model.remember)
                read = negatives.first(pairs_read(len(text), config.itm_share))
                losses["loss_itm"], losses["itm_accuracy"] = match_pairs(
                    model.match, text.input_ids, text.attention_mask, memory, read, everyone
                )
                total = total + config.weights[1] * losses["loss_itm"]
        if "itg" in config.objectives:
            losses["loss_itg"] = self._itg(text, cache, num_tokens)
            total = total + config.weights[2] * losses["loss_itg"]
        return {"loss": total, **losses}

    @property
    def _over_ranks(self) -> bool:
        return self.config.negatives == "all" and world_size() > 1

    def _itc(
        self, queries: Tensor, text: TokenBatch, image_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The loss, similarities [B, A] with what negatives are drawn from in both directions, its image ids."""
        model, batch = self.model, len(text)
        image_features = model.image_features(queries).float()
        text_features = model.text_features(text.input_ids, text.attention_mask).float()
        with torch.autocast(queries.device.type, enabled=False):
            # As in the reference, what is compared with has no gradient, on one process as on many.
            all_images, all_texts = gather(image_features), gather(text_features)
            similarity_i2t = best_query(image_features, all_texts) / model.temperature
            similarity_t2i = best_query(all_images, text_features).T / model.temperature
        all_ids = None if image_ids is None else gather(image_ids)
        positives = positive_pairs(batch, rank(), batch * world_size(), queries.device, image_ids, all_ids)
        loss = smoothed_contrastive_loss(
            similarity_i2t, similarity_t2i, positives, label_smoothing=self.config.label_smoothing
        )
        if self._over_ranks:
            return loss, similarity_i2t.detach(), similarity_t2i.detach(), all_ids
        own = slice(rank() * batch, (rank() + 1) * batch)
        return loss, similarity_i2t[:, own].detach(), similarity_t2i[:, own].detach(), image_ids

    def _itg(self, text: TokenBatch, cache: KVCache, num_tokens: Tensor | None) -> Tensor:
        pairs = pairs_read(len(text), self.config.itg_share)
        cache = KVCache([key[:pairs] for key in cache.keys], [value[:pairs] for value in cache.values])
        input_ids, mask = text.input_ids[:pairs].clone(), text.attention_mask[:pairs]
        input_ids[:, 0].fill_(self.dec_id)
        logits = self.model.write(input_ids, mask, cache)
        targets = language_targets(input_ids, mask)
        return language_loss(logits, targets, label_smoothing=self.config.label_smoothing, num_tokens=num_tokens)


class Blip2Stage2(nn.Module):
    """Stage 2: the frozen language model continues from the soft prompts; no label smoothing, as in the reference.

    Args:
        model: with a language model.
        eos_id: closes an encoder-decoder's prefix.
        each_frame: as of `Blip2.soft_prompt`.
    """

    def __init__(self, model: Blip2, *, eos_id: int, each_frame: bool = False) -> None:
        super().__init__()
        self.model, self.eos_id, self.each_frame = model, eos_id, each_frame

    def forward(
        self,
        image_embeds: Tensor,
        text: LanguageBatch,
        *,
        questions: TokenBatch | None = None,
        prefix: LanguageBatch | None = None,
        num_tokens: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch.

        Args:
            image_embeds: [B, N, Dv].
            text: what is written, padded on the right; what is not `scored` is read and carries no loss.
            questions: for the Q-Former to read with the images (fine-tuning for VQA).
            prefix: what an encoder-decoder's encoder reads; None splits each text at a word drawn at random.
            num_tokens: see `language_loss`.

        Returns:
            scalars "loss" and "loss_lm".
        """
        model, llm = self.model, self.model.llm
        memory = model.remember(image_embeds)
        read = (None, None) if questions is None else (questions.input_ids, questions.attention_mask)
        soft = model.soft_prompt(memory, *read, each_frame=self.each_frame)
        if llm.is_encoder_decoder:
            if prefix is None:
                prefix, text = split_prefix(text, eos_id=self.eos_id)
            states, mask = llm.encode(soft, prefix.input_ids, prefix.attention_mask)
            places = text.scored_places
            logits = llm.target_logits(states, mask, text.input_ids, places)
        else:
            places, mask = text.scored_places, text.attention_mask
            logits = llm.decoder_logits(soft, text.input_ids, mask, places, before=text.before)
        loss = token_loss(logits, text.input_ids.flatten()[places], num_tokens=num_tokens)
        return {"loss": loss, "loss_lm": loss}


def split_prefix(text: LanguageBatch, *, eos_id: int) -> tuple[LanguageBatch, LanguageBatch]:
    """Split each text before a word drawn evenly: (prefix with an end token, rest), both padded on the right.

    The draw is torch's, on the device, so that a resumed run splits as an unbroken one. A prefix may be empty.
    """
    ids, mask = text.input_ids, text.attention_mask
    rows, length = ids.shape
    draws = torch.rand(rows, length, device=ids.device).masked_fill(~text.starts, -1.0)
    place = torch.arange(length, device=ids.device)
    cut = torch.where(text.starts.any(1), draws.argmax(1), 0)[:, None]
    before = mask & (place < cut)
    padded = torch.nn.functional.pad
    prefix_ids = padded(ids, (0, 1)).masked_fill(padded(place, (0, 1), value=length) == cut, eos_id)
    prefix_mask = padded(before, (1, 0), value=True)
    source = (place + cut).clamp(max=length - 1)
    rest_mask = mask.gather(1, source) & (place + cut < length)
    none = torch.zeros_like(prefix_mask)
    rest = LanguageBatch(ids.gather(1, source), rest_mask, rest_mask, torch.zeros_like(rest_mask))
    return LanguageBatch(prefix_ids, prefix_mask, none, none), rest
