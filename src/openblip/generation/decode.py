"""Writing text: greedy, beam search and sampling over anything that can step one token at a time.

What writes is a `Stepper`: BLIP's decoder over an image memory, the VQA decoder over question states, the
Q-Former or a frozen language model. It owns its key-value cache; this module owns the choice of tokens and
never sees an image, so nothing of an image is copied here for beams or samples.

    stepper = ...                                # from the model: memory and cache inside
    config = DecodeConfig(num_beams=3, max_new_tokens=20)
    decoded = decode(stepper, prompt_ids, attention_mask, config, eos_ids=102, pad_id=0)
    decoded.ids, decoded.lengths, decoded.log_probs, decoded.rows

The result for a row does not depend on the other rows: padding is ignored, random numbers belong to the
row's key, and finished rows are only dropped when they can no longer change.

Shapes: R prompts (rows), T prompt tokens, V vocabulary, N new tokens at most, S = R * num_sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.generation import rules
from openblip.generation.beam import beam_search
from openblip.generation.config import DecodeConfig
from openblip.generation.rules import History
from openblip.generation.types import Decoded, Stepper, Watch
from openblip.models.replay import FixedStates, Replayable, ReplayedStepper

__all__ = ["DecodeConfig", "Decoded", "Stepper", "decode", "recorded"]


def recorded(stepper: Replayable, states: FixedStates | None, config: DecodeConfig) -> Stepper:
    """The stepper with its steps recorded in `states` (see `models.replay`), or as it is where these are None."""
    if states is None:
        return stepper
    moves = config.num_beams > 1
    return ReplayedStepper(stepper, states, max_new_tokens=config.max_new_tokens, moves=moves)


@torch.no_grad()
def decode(
    stepper: Stepper,
    prompt_ids: Tensor,
    attention_mask: Tensor | None,
    config: DecodeConfig,
    *,
    eos_ids: int | Sequence[int],
    pad_id: int,
    keys: Tensor | None = None,
    watch: Watch | None = None,
) -> Decoded:
    """Write `config.num_sequences` texts for each prompt.

    prompt_ids int64 [R, T] and attention_mask bool [R, T] (None: all real) may be padded on either side;
    every row needs at least one real token. `eos_ids` are the tokens that end a text, `pad_id` fills what
    lies behind. `keys` int64 [R] name the rows for sampling (default 0, 1, ...): a row with the same key
    and seed is written the same in any batch. `watch` sees the tokens as they come. Raises `UserError` when prompt
    and text do not fit the model.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(prompt_ids, dtype=torch.bool)
    assert prompt_ids.ndim == 2, "prompt_ids must be [R, T]"
    assert attention_mask.shape == prompt_ids.shape, "attention_mask must have the shape of prompt_ids"
    attention_mask = attention_mask.bool()
    eos = torch.as_tensor([eos_ids] if isinstance(eos_ids, int) else list(eos_ids), device=prompt_ids.device)
    if prompt_ids.shape[0] == 0:
        return _nothing(prompt_ids)
    if config.suppress_ids and max(config.suppress_ids) >= stepper.vocab_size:
        raise UserError(
            f"suppress_ids has {max(config.suppress_ids)}, and the model's tokens end at {stepper.vocab_size - 1}"
        )
    prompt_lengths = attention_mask.sum(dim=1)
    # One transfer for both, since each waits for the device.
    shortest, longest = torch.stack([prompt_lengths.min(), prompt_lengths.max()]).tolist()
    assert shortest > 0, "every prompt needs at least one real token"
    _check_room(stepper.max_length, longest, config.max_new_tokens)

    history = History.from_prompts(prompt_ids, attention_mask)
    logits = stepper.start(prompt_ids, attention_mask)
    if config.num_beams > 1:
        decoded = beam_search(stepper, logits, history, config, eos=eos, pad_id=pad_id)
    else:
        if keys is None:
            keys = torch.arange(prompt_ids.shape[0], device=prompt_ids.device)
        decoded = _decode_rows(stepper, logits, history, config, eos=eos, pad_id=pad_id, keys=keys, watch=watch)
    # The choice of tokens does not fail on NaN: it returns an arbitrary text, so the scores are checked.
    if bool(decoded.token_log_probs.isnan().any()):
        raise UserError("the model gave scores that are not numbers; check its weights or use dtype float32")
    return decoded


def _check_room(max_length: int | None, longest: int, max_new_tokens: int) -> None:
    # The last new token is never read, so it needs no position.
    if max_length is not None and longest + max_new_tokens - 1 > max_length:
        raise UserError(
            f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens} do not fit the text model's "
            f"{max_length} positions; shorten the prompt or write at most "
            f"{max(0, max_length - longest + 1)} tokens"
        )


def _nothing(like: Tensor) -> Decoded:
    """The result for no prompts at all."""
    empty = like.new_zeros(0)
    values = torch.zeros(0, device=like.device)
    return Decoded(like.new_zeros(0, 0), empty, values.reshape(0, 0), values, empty, empty.bool())


def _decode_rows(
    stepper: Stepper,
    logits: Tensor,
    history: History,
    config: DecodeConfig,
    *,
    eos: Tensor,
    pad_id: int,
    keys: Tensor,
    watch: Watch | None,
) -> Decoded:
    """Greedy decoding and sampling: each sequence goes its own way until its end token."""
    num_prompts, per_prompt = logits.shape[0], config.num_sequences
    device = logits.device
    rows = torch.arange(num_prompts, device=device).repeat_interleave(per_prompt)
    if per_prompt > 1:
        stepper.reorder(rows)
        logits, history = logits[rows], history.select(rows)
    uniforms = rules.row_uniforms(config.seed, keys, per_prompt, config.max_new_tokens) if config.sample else None

    ids = torch.full((len(rows), config.max_new_tokens), pad_id, dtype=torch.int64, device=device)
    log_probs = torch.zeros(ids.shape, dtype=torch.float32, device=device)
    lengths = torch.zeros(len(rows), dtype=torch.int64, device=device)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    suppressed = rules.suppressed_ids(config, device)

    alive = torch.arange(len(rows), device=device)  # sequences that the stepper still holds
    finished = ended.clone()
    num_alive = num_prompts
    for step in range(config.max_new_tokens):
        logits = logits.float()
        scores = rules.apply_rules(logits, history, step, config, eos, suppressed)
        if uniforms is None:
            token = scores.argmax(dim=-1)
        else:
            token = rules.draw(
                scores,
                uniforms[alive, step],
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
            )
        # Under the model itself: the rules decide which token is written, not its reported likelihood.
        log_prob = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(dim=-1)
        # A finished sequence stays in the batch as padding until all sequences of its prompt are done: the stepper
        # needs equally many rows for each prompt.
        token = token.masked_fill(finished, pad_id)
        ids[alive, step] = token
        log_probs[alive, step] = log_prob.masked_fill(finished, 0.0)
        lengths[alive] += ~finished
        if watch is not None:
            watch(alive[~finished], token[~finished])
        finished = finished | torch.isin(token, eos)
        ended[alive] = finished
        if step + 1 == config.max_new_tokens:
            break

        open_prompts = (~finished).view(num_alive, per_prompt).any(dim=1)
        num_open = int(open_prompts.sum())  # the one host synchronisation of a step
        if num_open == 0:
            break
        history = history.append(token)
        # Dropping copies what is left of cache and memory, so it waits until it halves the work.
        if num_open <= num_alive // 2:
            left = open_prompts.nonzero()[:, 0]
            kept = (left[:, None] * per_prompt + torch.arange(per_prompt, device=device)).reshape(-1)
            stepper.reorder(kept, left)
            alive, finished, token, history = alive[kept], finished[kept], token[kept], history.select(kept)
            num_alive = num_open
        logits = stepper.step(token)

    longest = int(lengths.max())
    log_probs = log_probs[:, :longest]
    return Decoded(
        ids=ids[:, :longest],
        lengths=lengths,
        token_log_probs=log_probs,
        scores=log_probs.sum(dim=1),
        rows=rows,
        ended=ended,
    )
