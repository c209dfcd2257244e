"""Decoding and scoring with a frozen language model after soft prompts.

Both kinds of language model behind one interface: a decoder continues from soft prompts and prompt, an
encoder-decoder reads them and writes.

Shapes: R prompts (rows), Q soft prompts of width L, C texts for each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode, recorded
from openblip.generation.types import Decoded, Stepper, Watch
from openblip.models.language import FrozenLanguage
from openblip.models.language_fixed import ReplayableLanguage
from openblip.models.language_stepper import Seq2SeqStepper
from openblip.models.replay import FixedStates

__all__ = ["decode_after", "score_after"]

_ROWS = 64
"""of logits that are in float32 at once"""


@torch.no_grad()
def decode_after(
    llm: FrozenLanguage,
    tokenizer: LanguageTokenizer,
    soft: Tensor,
    config: DecodeConfig,
    *,
    prompts: Sequence[str],
    keys: Tensor | None = None,
    watch: Watch | None = None,
    states: FixedStates | None = None,
) -> Decoded:
    """`config.num_sequences` texts for each of R prompts after soft prompts [R, Q, L]; Q may be 0.

    Args:
        keys: int64 [R], name the rows for sampling.
        watch: sees the tokens as they come.
        states: of recorded steps (see `models.replay`), for a decoder; None records none.
    """
    device = soft.device
    stepper: Stepper
    if llm.is_encoder_decoder:
        read = tokenizer.prompts(prompts, side="right", end=True).to(device)
        stepper = Seq2SeqStepper(llm, *llm.encode(soft, read.input_ids, read.attention_mask))
        assert llm.start_id is not None
        start, mask = torch.full((len(prompts), 1), llm.start_id, device=device), None
    else:
        read = tokenizer.prompts(prompts, side="left").to(device)
        if not read.input_ids.shape[1] or not bool(read.attention_mask.any(1).all()):
            raise UserError("this language model needs a prompt to begin from: its tokenizer has no first token")
        stepper = recorded(ReplayableLanguage(llm, soft, before=read.before), states, config)
        start = read.input_ids
        mask = read.attention_mask
    ends, pad = tokenizer.stop_ids, tokenizer.pad_id
    if read.before is not None:
        ends = [*ends, tokenizer.turn_end_id]
    return decode(stepper, start, mask, config, eos_ids=ends, pad_id=pad, keys=keys, watch=watch)


@torch.no_grad()
def score_after(
    llm: FrozenLanguage,
    tokenizer: LanguageTokenizer,
    soft: Tensor,
    texts: Sequence[Sequence[str]],
    *,
    prompts: Sequence[str],
    max_rows: int = 128,
) -> tuple[Tensor, Tensor]:
    """How likely each of C texts is after each of R prompts; an encoder's prompt is read once.

    Args:
        soft: soft prompts [R, Q, L].
        texts: [R][C], the end token is scored with each.

    Returns:
        float32 [R, C] log-likelihoods and int64 [R, C] scored tokens, on the CPU.
    """
    device = soft.device
    states: Any = None
    if llm.is_encoder_decoder:
        read = tokenizer.prompts(prompts, side="right", end=True).to(device)
        states = llm.encode(soft, read.input_ids, read.attention_mask)
    number = len(texts[0])
    rows = torch.arange(len(prompts)).repeat_interleave(number)
    flat = [text for row in texts for text in row]
    assert len(flat) == len(rows), "every prompt has equally many texts"
    sums, counts = torch.empty(len(flat)), torch.empty(len(flat), dtype=torch.int64)
    for chunk in torch.arange(len(flat)).split(max_rows):
        own, part = rows[chunk].to(device), [flat[i] for i in chunk.tolist()]
        if states is not None:
            assert llm.start_id is not None
            batch = tokenizer.texts(part).targets(llm.start_id).to(device)
            logits = llm.target_logits(states[0][own], states[1][own], batch.input_ids, batch.scored_places)
        else:
            batch = tokenizer.texts(part, prompts=[prompts[i] for i in rows[chunk].tolist()]).to(device)
            ids, real = batch.input_ids, batch.attention_mask
            logits = llm.decoder_logits(soft[own], ids, real, batch.scored_places, before=batch.before)
        places = batch.scored_places
        pairs = zip(logits.split(_ROWS), batch.input_ids.flatten()[places].split(_ROWS), strict=True)
        losses = [F.cross_entropy(some.float(), wanted, reduction="none") for some, wanted in pairs]
        each = torch.zeros(batch.input_ids.numel(), device=device).index_copy(0, places, torch.cat(losses))
        sums[chunk] = -each.view_as(batch.input_ids).sum(1).cpu()
        counts[chunk] = (batch.scored & batch.attention_mask).sum(1).cpu()
    return sums.view(-1, number), counts.view(-1, number)
