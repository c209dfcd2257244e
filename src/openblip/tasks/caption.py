"""Writing captions: pictures in, texts with their log-probabilities out, and how good they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch
from openblip.data.transforms import normalize
from openblip.generation.decode import decode
from openblip.generation.rank import log_likelihood
from openblip.generation.types import DecodeConfig
from openblip.metrics.caption import caption_scores
from openblip.models.blip import Blip
from openblip.models.layers import ImageMemory
from openblip.models.stepper import DecoderStepper
from openblip.objectives.language import IGNORED, language_loss, language_targets

__all__ = ["Caption", "caption_log_likelihood", "evaluate_captions", "score_captions", "write_captions"]


@dataclass(frozen=True, slots=True)
class Caption:
    """A text written for a picture."""

    text: str
    """without the prompt"""
    log_prob: float
    """natural logarithm of the probability the model gives the tokens after the prompt, the end included"""
    num_tokens: int
    """written tokens, the end token included"""
    complete: bool
    """whether the text came to its end before `max_new_tokens`"""


@torch.no_grad()
def write_captions(
    model: Blip,
    tokenizer: TextTokenizer,
    memory: ImageMemory,
    config: DecodeConfig,
    *,
    prompts: str | Sequence[str] = "",
    keys: Tensor | None = None,
) -> list[list[Caption]]:
    """Write `config.num_sequences` captions for each of the B images in `memory`.

    Args:
        prompts: how captions begin, one for all images or one for each.
        keys: int64 [B], name the images for sampling: a key and seed give the same text in any batch.

    Returns:
        for each image its captions, the best first (beams) or as drawn (sampling).
    """
    texts = [prompts] * memory.batch_size if isinstance(prompts, str) else list(prompts)
    assert len(texts) == memory.batch_size, f"{len(texts)} prompts for {memory.batch_size} images"
    device = memory.keys[0].device
    prompt = tokenizer.encode(texts, first="dec", end=False).to(device)
    decoded = decode(
        DecoderStepper(model.decoder, memory),
        prompt.input_ids,
        prompt.attention_mask,
        config,
        eos_ids=tokenizer.sep_id,
        pad_id=tokenizer.pad_id,
        keys=keys,
    )
    captions: list[list[Caption]] = [[] for _ in texts]
    rows = zip(
        decoded.rows.tolist(),
        decoded.ids.tolist(),
        decoded.lengths.tolist(),
        decoded.log_probs.tolist(),
        decoded.ended.tolist(),
        strict=True,
    )
    for row, ids, length, log_prob, ended in rows:
        captions[row].append(Caption(tokenizer.decode(ids[:length]), log_prob, length, ended))
    return captions


@torch.no_grad()
def caption_log_likelihood(
    model: Blip,
    tokenizer: TextTokenizer,
    memory: ImageMemory,
    texts: Sequence[str],
    *,
    prompt: str = "",
    max_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of R given texts, R a multiple of the images in `memory`, rows of one image together.

    Returns:
        float32 [R] sums over the tokens after the prompt, the end included, and int64 [R] how many these are.
    """
    device = memory.keys[0].device
    prompt_length = tokenizer.encode([prompt], first="dec", end=False).input_ids.shape[1] if prompt else 0
    tokens = tokenizer.encode([prompt + text for text in texts], first="dec", max_length=max_length).to(device)
    logits = model.decoder(tokens.input_ids, tokens.attention_mask, memory=memory)
    targets = language_targets(tokens.input_ids, tokens.attention_mask, prompt_length)
    return -language_loss(logits, targets, label_smoothing=0.0, per_text=True), (targets[:, 1:] != IGNORED).sum(1)


@torch.no_grad()
def score_captions(
    model: Blip, tokenizer: TextTokenizer, memory: ImageMemory, texts: Sequence[str], *, prompt: str = ""
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each of C texts for each of the B images in `memory`, however many texts there are.

    Returns:
        float32 [B, C] and the tokens counted, int64 [C]: those after the prompt, the end included.
    """
    device = memory.keys[0].device
    start = tokenizer.encode([prompt], first="dec", end=False).input_ids.shape[1]
    tokens = tokenizer.encode([prompt + text for text in texts], first="dec").to(device)

    def read(input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
        part = memory if len(rows) == memory.batch_size else memory.select(rows)
        return model.decoder(input_ids, attention_mask, memory=part)

    images = (memory.batch_size, -1, -1)
    scores = log_likelihood(
        read, tokens.input_ids.expand(images), tokens.attention_mask.expand(images), num_prompt_tokens=start
    )
    return scores, tokens.attention_mask.sum(1).cpu() - start


@torch.no_grad()
def evaluate_captions(
    model: Blip,
    tokenizer: TextTokenizer,
    batches: Iterable[Batch],
    config: DecodeConfig,
    *,
    prompt: str = "",
    max_length: int = 40,
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Write a caption for every picture and compare with all its texts.

    Args:
        batches: with every text of every image (`text_mode="all"`).

    Returns:
        numbers by name: BLEU, ROUGE-L, CIDEr, and the perplexity of the reference texts; and one record for each
        picture: key, caption, references.
    """
    device = next(model.parameters()).device
    records: list[dict[str, object]] = []
    written: list[str] = []
    references: list[list[str]] = []
    log_prob, count = 0.0, 0
    for batch in batches:
        memory = model.remember(model.encode_image(normalize(batch.images.to(device))))
        captions = write_captions(model, tokenizer, memory, config, prompts=prompt)
        index = batch.image_index.to(device)
        sums, lengths = caption_log_likelihood(
            model, tokenizer, memory.select(index), batch.texts, prompt=prompt, max_length=max_length
        )
        log_prob, count = log_prob + float(sums.sum()), count + int(lengths.sum())
        own: list[list[str]] = [[] for _ in batch.keys]
        for row, text in zip(batch.image_index.tolist(), batch.texts, strict=True):
            own[row].append(text)
        for key, best, texts in zip(batch.keys, captions, own, strict=True):
            written.append(best[0].text)
            references.append(texts)
            records.append({"key": key, "caption": best[0].text, "log_prob": best[0].log_prob, "references": texts})
    scores = caption_scores(written, references)
    scores["perplexity"] = float(torch.tensor(-log_prob / max(count, 1)).exp())
    return scores, records
