"""A BLIP training step computed as the original repository does: the peer of `BlipPretraining`.

Same weights, same losses, another way there: every text is padded to 30 tokens; each reader of the images
projects keys and values of its own from raw features (ITM's pairs, ITM's negatives, LM: four times the batch);
attention is written out (that of the vision tower by who measures: `benchmarks.blip_pretrain`);
negatives are drawn one by one and read back to the host; momentum copies are moved
one parameter at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.tokenizer import TokenBatch
from openblip.models.layers import CrossAttention, SelfAttention
from openblip.models.text import TextTransformer
from openblip.objectives.language import IGNORED, language_targets
from openblip.objectives.matching import Negatives
from openblip.objectives.pretraining import BlipPretraining

__all__ = ["ReferencePretraining", "pad_to", "repeated_readers"]


def pad_to(text: TokenBatch, length: int) -> TokenBatch:
    """Pad ids and mask [B, T] to [B, length]."""
    missing = length - text.input_ids.shape[1]
    return TokenBatch(F.pad(text.input_ids, (0, missing)), F.pad(text.attention_mask, (0, missing)))


@dataclass
class _Readers:
    """What a text transformer reads beside the text: raw features and their mask, one for each row."""

    image_embeds: Tensor
    image_mask: Tensor


class ReferencePretraining(nn.Module):
    """Computes the losses of `step` as the original repository does, over the same parameters and buffers.

    Args:
        text_length: every text is padded to so many tokens.
    """

    def __init__(self, step: BlipPretraining, *, text_length: int = 30) -> None:
        super().__init__()
        assert step.momentum_copy is not None
        assert step.queue is not None
        self.step = step
        self.text_length = text_length

    def forward(self, images: Tensor, text: TokenBatch, negatives: Negatives | None = None) -> dict[str, Tensor]:
        """As `BlipPretraining.forward` with all three objectives and no image ids."""
        model, text = self.step.model, pad_to(text, self.text_length)
        image_embeds = model.encode_image(images)
        image_mask = torch.ones(image_embeds.shape[:2], dtype=torch.bool, device=images.device)
        loss_itc, sim_i2t, sim_t2i = self._itc(images, image_embeds, text)
        loss_itm = self._itm(image_embeds, image_mask, text, sim_i2t, sim_t2i, negatives)
        loss_lm = self._lm(_Readers(image_embeds, image_mask), text)
        total = loss_itc + loss_itm + loss_lm
        return {"loss": total, "loss_itc": loss_itc, "loss_itm": loss_itm, "loss_lm": loss_lm}

    def _itc(self, images: Tensor, image_embeds: Tensor, text: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
        step, model, batch = self.step, self.step.model, len(text)
        queue, alpha, temperature = step.queue, step.alpha_now, step.model.temperature
        assert queue is not None
        with torch.no_grad():
            temperature.clamp_(step.config.temperature_min, step.config.temperature_max)
        image_feat = F.normalize(model.vision_proj(image_embeds[:, 0]), dim=-1)
        hidden = plain_text(model.encoder, text.input_ids, text.attention_mask)
        text_feat = F.normalize(model.text_proj(hidden[:, 0]), dim=-1)
        with torch.no_grad():
            self._momentum_update()
            momentum_copy: Any = step.momentum_copy
            image_feat_m = F.normalize(momentum_copy.vision_proj(momentum_copy.vision(images)[:, 0]), dim=-1)
            hidden_m = plain_text(momentum_copy.text_encoder, text.input_ids, text.attention_mask)
            text_feat_m = F.normalize(momentum_copy.text_proj(hidden_m[:, 0]), dim=-1)
            image_all = torch.cat((image_feat_m.T, queue.images.T.clone().detach()), dim=1)
            text_all = torch.cat((text_feat_m.T, queue.texts.T.clone().detach()), dim=1)
            targets = torch.zeros(batch, image_all.shape[1], device=images.device)
            targets.fill_diagonal_(1)
            soft_i2t = alpha * F.softmax(image_feat_m @ text_all / temperature, dim=1) + (1 - alpha) * targets
            soft_t2i = alpha * F.softmax(text_feat_m @ image_all / temperature, dim=1) + (1 - alpha) * targets
        sim_i2t = image_feat @ text_all / temperature
        sim_t2i = text_feat @ image_all / temperature
        loss_i2t = -torch.sum(F.log_softmax(sim_i2t, dim=1) * soft_i2t, dim=1).mean()
        loss_t2i = -torch.sum(F.log_softmax(sim_t2i, dim=1) * soft_t2i, dim=1).mean()
        queue.enqueue(image_feat_m, text_feat_m)
        return (loss_i2t + loss_t2i) / 2, sim_i2t, sim_t2i

    def _momentum_update(self) -> None:
        momentum_copy = self.step.momentum_copy
        assert momentum_copy is not None
        online = dict(self.step.model.named_parameters())
        for name, parameter in momentum_copy.named_parameters():
            parameter.data = parameter.data * momentum_copy.momentum + online[name].data * (
                1.0 - momentum_copy.momentum
            )

    def _itm(
        self,
        image_embeds: Tensor,
        image_mask: Tensor,
        text: TokenBatch,
        sim_i2t: Tensor,
        sim_t2i: Tensor,
        negatives: Negatives | None,
    ) -> Tensor:
        model, batch = self.step.model, len(text)
        ids = text.input_ids.clone()
        ids[:, 0] = self.step.enc_id
        mask = text.attention_mask
        positive = plain_text(model.encoder, ids, mask, _Readers(image_embeds, image_mask))
        image_index, text_index = _draw_one_by_one(sim_i2t, sim_t2i, batch)
        if negatives is not None:
            image_index, text_index = negatives.image_for_text.tolist(), negatives.text_for_image.tolist()
        image_neg = torch.stack([image_embeds[i] for i in image_index])
        ids_neg = torch.stack([ids[i] for i in text_index])
        mask_neg = torch.stack([mask[i] for i in text_index])
        negative = plain_text(
            model.encoder,
            torch.cat((ids, ids_neg)),
            torch.cat((mask, mask_neg)),
            _Readers(torch.cat((image_neg, image_embeds)), torch.cat((image_mask, image_mask))),
        )
        logits = model.itm_head(torch.cat((positive[:, 0], negative[:, 0])))
        labels = (torch.arange(3 * batch, device=logits.device) < batch).long()
        return F.cross_entropy(logits, labels)

    def _lm(self, readers: _Readers, text: TokenBatch) -> Tensor:
        decoder, ids = self.step.model.decoder, text.input_ids.clone()
        ids[:, 0] = self.step.dec_id
        targets = language_targets(ids, text.attention_mask)
        logits = decoder.head(plain_text(decoder.transformer, ids, text.attention_mask, readers))
        logits = logits[:, :-1].contiguous()
        return F.cross_entropy(
            logits.view(-1, logits.shape[-1]),
            targets[:, 1:].reshape(-1),
            ignore_index=IGNORED,
            label_smoothing=self.step.config.label_smoothing,
        )


@torch.no_grad()
def _draw_one_by_one(sim_i2t: Tensor, sim_t2i: Tensor, batch: int) -> tuple[list[int], list[int]]:
    drawn: list[list[int]] = []
    for similarity in (sim_t2i, sim_i2t):
        weights = F.softmax(similarity[:, :batch], dim=1) + 1e-4
        weights.fill_diagonal_(0)
        drawn.append([int(torch.multinomial(row, 1).item()) for row in weights])
    return drawn[0], drawn[1]


def plain_text(
    transformer: TextTransformer, input_ids: Tensor, attention_mask: Tensor, readers: _Readers | None = None
) -> Tensor:
    """Hidden states [R, T, D]; keys and values of the images are projected here, in every layer for every row."""
    length = input_ids.shape[1]
    allowed = attention_mask[:, None, None, :]
    if transformer.causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=allowed.device).tril()
    hidden = transformer.embeddings(input_ids)
    for block in transformer.text_blocks:
        hidden = _self_attention(block.self_attention, hidden, allowed)
        if readers is not None:
            assert block.cross_attention is not None
            hidden = _cross_attention(block.cross_attention, hidden, readers)
        hidden = block.feed_forward(hidden)
    return hidden


def repeated_readers(
    transformer: TextTransformer, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor
) -> Tensor:
    """Hidden states [R, T, D] of texts that all read one image [1, N, Dv], whose features are repeated for them."""
    embeds = image_embeds.repeat(len(input_ids), 1, 1)
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    return plain_text(transformer, input_ids, attention_mask, _Readers(embeds, mask))


def _self_attention(module: SelfAttention, hidden: Tensor, allowed: Tensor) -> Tensor:
    weights, biases = module.qkv.weight.chunk(3), module.qkv.bias.chunk(3)
    query, key, value = (F.linear(hidden, w, b) for w, b in zip(weights, biases, strict=True))
    return _attend(module, hidden, query, key, value, allowed)


def _cross_attention(module: CrossAttention, hidden: Tensor, readers: _Readers) -> Tensor:
    weights, biases = module.key_value.weight.chunk(2), module.key_value.bias.chunk(2)
    key, value = (F.linear(readers.image_embeds, w, b) for w, b in zip(weights, biases, strict=True))
    return _attend(module, hidden, module.query(hidden), key, value, readers.image_mask[:, None, None, :])


def _attend(
    module: SelfAttention | CrossAttention,
    hidden: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
) -> Tensor:
    heads = module.num_heads
    size = query.shape[-1] // heads
    query, key, value = (
        t.view(t.shape[0], t.shape[1], heads, size).permute(0, 2, 1, 3) for t in (query, key, value)
    )
    scores = torch.matmul(query, key.transpose(-1, -2)) / size**0.5
    # In the parameters' dtype, as the original has it; a float32 mask would turn bfloat16 scores into float32.
    hidden_places = torch.zeros(allowed.shape, device=scores.device, dtype=module.output.weight.dtype)
    scores = scores + hidden_places.masked_fill(~allowed, -10000.0)
    probabilities = F.dropout(scores.softmax(-1), module.dropout, module.training)
    context = torch.matmul(probabilities, value).permute(0, 2, 1, 3).contiguous().flatten(2)
    projected = F.dropout(module.output(context), module.dropout, module.training)
    return module.norm(hidden + projected)
