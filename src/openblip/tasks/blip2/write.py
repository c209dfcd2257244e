"""What the language model writes and thinks likely: captions, answers, and the log-likelihood of given texts.

Both kinds of language model behind one interface: a decoder goes on from soft prompts and prompt, an
encoder-decoder reads them and writes. A model of stage 1 writes with the Q-Former itself (ITG), without a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.generation.decode import decode
from openblip.generation.types import DecodeConfig, Decoded, Stepper
from openblip.models.blip2 import Blip2
from openblip.models.language import CausalStepper, FrozenLanguage, Seq2SeqStepper
from openblip.models.layers import ImageMemory, KVCache
from openblip.models.stepper import QFormerStepper
from openblip.objectives.language import language_loss, language_targets
from openblip.tasks.caption import Caption

__all__ = ["itg_log_likelihood", "log_likelihood", "write_after", "write_texts", "write_with_qformer"]


@torch.no_grad()
def write_texts(
    model: Blip2,
    words: LanguageTokenizer,
    memory: ImageMemory,
    config: DecodeConfig,
    *,
    prompts: Sequence[str],
    questions: TokenBatch | None = None,
    keys: Tensor | None = None,
) -> list[list[Caption]]:
    """`config.num_sequences` texts for each of R prompts, R a multiple of the images in `memory`.

    Args:
        prompts: rows of one image stand together.
        questions: for the Q-Former to read with the images, R rows.
        keys: int64 [R], name the rows for sampling.
    """
    soft = _soft(model, memory, len(prompts), questions)
    return write_after(model.llm, words, soft, config, prompts=prompts, keys=keys)


@torch.no_grad()
def write_after(
    llm: FrozenLanguage,
    words: LanguageTokenizer,
    soft: Tensor,
    config: DecodeConfig,
    *,
    prompts: Sequence[str],
    keys: Tensor | None = None,
) -> list[list[Caption]]:
    """As `write_texts`, after given soft prompts [R, Q, L]; Q is 0 for a language model that sees nothing."""
    device = soft.device
    stepper: Stepper
    if llm.is_encoder_decoder:
        read = words.prompts(prompts, side="right", end=True).to(device)
        stepper = Seq2SeqStepper(llm, *llm.encode(soft, read.input_ids, read.attention_mask))
        assert llm.start_id is not None
        start, mask = torch.full((len(prompts), 1), llm.start_id, device=device), None
    else:
        read = words.prompts(prompts, side="left").to(device)
        if not read.input_ids.shape[1] or not bool(read.attention_mask.any(1).all()):
            raise UserError("this language model needs a prompt to begin from: its tokenizer has no first token")
        stepper, start, mask = CausalStepper(llm, soft), read.input_ids, read.attention_mask
    decoded = decode(stepper, start, mask, config, eos_ids=words.stop_ids, pad_id=words.pad_id, keys=keys)
    return _captions(decoded, len(prompts), words)


@torch.no_grad()
def write_with_qformer(
    model: Blip2, tokenizer: TextTokenizer, memory: ImageMemory, config: DecodeConfig, *, keys: Tensor | None = None
) -> list[list[Caption]]:
    """Captions by the Q-Former's own language head, which ITG trains."""
    if model.qformer.head is None:
        raise UserError("this model has neither a language model nor the language head of stage 1; it cannot write")
    start = torch.full((memory.batch_size, 1), tokenizer.dec_id, device=memory.keys[0].device)
    stepper = QFormerStepper(model.qformer, memory)
    decoded = decode(stepper, start, None, config, eos_ids=tokenizer.sep_id, pad_id=tokenizer.pad_id, keys=keys)
    return _captions(decoded, memory.batch_size, tokenizer)


def _soft(model: Blip2, memory: ImageMemory, rows: int, questions: TokenBatch | None) -> Tensor:
    """Soft prompts [R, Q, L]: an image is read once for all its rows, unless each has a question of its own."""
    if questions is not None:
        return model.soft_prompt(memory, questions.input_ids, questions.attention_mask)
    return model.soft_prompt(memory).repeat_interleave(rows // memory.batch_size, dim=0)


def _captions(decoded: Decoded, rows: int, words: LanguageTokenizer | TextTokenizer) -> list[list[Caption]]:
    captions: list[list[Caption]] = [[] for _ in range(rows)]
    values = (decoded.rows, decoded.ids, decoded.lengths, decoded.log_probs, decoded.ended)
    for row, ids, length, log_prob, ended in zip(*(value.tolist() for value in values), strict=True):
        captions[row].append(Caption(words.decode(ids[:length]), log_prob, length, ended))
    return captions


@torch.no_grad()
def log_likelihood(
    model: Blip2,
    words: LanguageTokenizer,
    memory: ImageMemory,
    texts: Sequence[Sequence[str]],
    *,
    prompts: Sequence[str],
    questions: TokenBatch | None = None,
    max_rows: int = 128,
) -> tuple[Tensor, Tensor]:
    """How likely each of C texts is after each of R prompts; an image, and an encoder's prompt, are read once.

    Args:
        texts: [R][C], the end token is scored with each.

    Returns:
        float32 [R, C] log-likelihoods and int64 [R, C] scored tokens, on the CPU.
    """
    soft = _soft(model, memory, len(prompts), questions)
    device = soft.device
    states: Any = None
    if model.llm.is_encoder_decoder:
        read = words.prompts(prompts, side="right", end=True).to(device)
        states = model.llm.encode(soft, read.input_ids, read.attention_mask)
    number = len(texts[0])
    rows = torch.arange(len(prompts)).repeat_interleave(number)
    flat = [text for row in texts for text in row]
    assert len(flat) == len(rows), "every prompt has equally many texts"
    sums, counts = torch.empty(len(flat)), torch.empty(len(flat), dtype=torch.int64)
    for chunk in torch.arange(len(flat)).split(max_rows):
        own, part = rows[chunk].to(device), [flat[i] for i in chunk.tolist()]
        if states is not None:
            batch = words.texts(part).to(device)
            logits = model.llm.target_logits(states[0][own], states[1][own], batch.input_ids)
            scored = batch.attention_mask
        else:
            batch = words.texts(part, prompts=[prompts[i] for i in rows[chunk].tolist()]).to(device)
            logits = model.llm.decoder_logits(soft[own], batch.input_ids, batch.attention_mask)[:, :-1]
            scored = batch.scored & batch.attention_mask
        picked = logits.float().log_softmax(-1).gather(-1, batch.input_ids[..., None])[..., 0]
        sums[chunk] = picked.masked_fill(~scored, 0.0).sum(1).cpu()
        counts[chunk] = scored.sum(1).cpu()
    return sums.view(-1, number), counts.view(-1, number)


@torch.no_grad()
def itg_log_likelihood(model: Blip2, text: TokenBatch, memory: ImageMemory, dec_id: int) -> tuple[Tensor, Tensor]:
    """Log-likelihood [R] of texts under the Q-Former's own head, one for each image, and how many tokens count."""
    cache = KVCache()
    model.read_image(memory, cache)
    ids = text.input_ids.clone()
    ids[:, 0] = dec_id
    targets = language_targets(ids, text.attention_mask)
    logits = model.write(ids, text.attention_mask, cache)
    scores = -language_loss(logits, targets, label_smoothing=0.0, per_text=True)
    return scores, text.attention_mask[:, 1:].sum(1)
