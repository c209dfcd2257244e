"""From a batch of pictures (or their features) and texts to the losses of either stage: the loop's steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openblip.core.language_tokenizer import LanguageBatch, LanguageTokenizer
from openblip.core.runtime import average
from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.data.sample import Batch
from openblip.data.sources.questions import answers_of
from openblip.data.transforms import clean_question, normalize
from openblip.models.blip2 import Blip2
from openblip.objectives.blip2 import Blip2Stage1, Blip2Stage2, split_prefix
from openblip.tasks.blip2.features import FeatureCache
from openblip.tasks.step import depth_of_layers

__all__ = ["Blip2Batch", "Blip2Step", "encode_pixels", "prepare_answers", "prepare_captions", "prepare_stage1"]

Pictures = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Blip2Batch:
    """What BLIP-2 trains on: B pictures and the texts of R rows, R a multiple of B."""

    pictures: Tensor
    """uint8 [B, 3, H, W], or features [B, N, D] of the frozen tower"""
    text: TokenBatch | LanguageBatch
    """of the Q-Former (stage 1), or what the language model writes (stage 2)"""
    image_ids: Tensor
    """int64 [B]"""
    questions: TokenBatch | None = None
    """for the Q-Former to read with the pictures"""
    prefix: LanguageBatch | None = None
    """what an encoder-decoder's encoder reads"""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Blip2Batch:
        """Move all tensors."""
        return Blip2Batch(
            self.pictures.to(device, non_blocking=non_blocking),
            self.text.to(device, non_blocking=non_blocking),
            self.image_ids.to(device, non_blocking=non_blocking),
            None if self.questions is None else self.questions.to(device, non_blocking=non_blocking),
            None if self.prefix is None else self.prefix.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def num_scored(self) -> int:
        """Tokens that language modelling scores."""
        mask = self.text.attention_mask
        if isinstance(self.text, TokenBatch):
            return int(mask[:, 1:].sum())
        return int((mask if self.prefix is not None else mask & self.text.scored).sum())


def pictures_of(cache: FeatureCache | None) -> Pictures:
    """What a step is given of a batch's pictures."""
    return (lambda batch: batch.images) if cache is None else (lambda batch: cache.read(batch.meta))


def prepare_stage1(
    tokenizer: TextTokenizer, *, max_length: int, cache: FeatureCache | None = None
) -> Callable[[Batch], Blip2Batch]:
    """A function from the loader's batches to those of stage 1."""
    pictures = pictures_of(cache)

    def prepare(batch: Batch) -> Blip2Batch:
        text = tokenizer.encode(batch.texts, max_length=max_length)
        return Blip2Batch(pictures(batch), text, batch.image_ids)

    return prepare


def prepare_captions(
    words: LanguageTokenizer,
    *,
    encoder_decoder: bool,
    max_length: int,
    prompt: str = "",
    cache: FeatureCache | None = None,
) -> Callable[[Batch], Blip2Batch]:
    """A function from the loader's batches to those of stage 2.

    An encoder-decoder reads the prompt; without one, each caption is split at a word drawn at random.
    """
    pictures = pictures_of(cache)

    def prepare(batch: Batch) -> Blip2Batch:
        count = len(batch.texts)
        if not encoder_decoder:
            text = words.texts(batch.texts, prompts=[prompt] * count, max_length=max_length)
            return Blip2Batch(pictures(batch), text, batch.image_ids)
        text = words.texts(batch.texts, max_length=max_length)
        if prompt:
            prefix = words.prompts([prompt] * count, side="right", end=True)
        else:
            prefix, text = split_prefix(text, eos_id=words.eos_id)
        return Blip2Batch(pictures(batch), text, batch.image_ids, prefix=prefix)

    return prepare


def prepare_answers(
    tokenizer: TextTokenizer,
    words: LanguageTokenizer,
    *,
    encoder_decoder: bool,
    max_length: int,
    prompt: str,
    cache: FeatureCache | None = None,
) -> Callable[[Batch], Blip2Batch]:
    """A function from batches with one question a picture to those of fine-tuning for questions.

    Of the answers given to a question one is drawn by their weights, as in the reference.
    """
    pictures = pictures_of(cache)

    def prepare(batch: Batch) -> Blip2Batch:
        questions = [clean_question(text) for text in batch.texts]
        answers = [_draw(answers_of(meta)[text].merged) for meta, text in zip(batch.meta, batch.texts, strict=True)]
        prompts = [prompt.replace("{}", question) for question in questions]
        read = tokenizer.encode(questions, max_length=max_length)
        if encoder_decoder:
            prefix = words.prompts(prompts, side="right", end=True)
            return Blip2Batch(pictures(batch), words.texts(answers), batch.image_ids, read, prefix)
        text = words.texts(answers, prompts=prompts)
        return Blip2Batch(pictures(batch), text, batch.image_ids, read)

    return prepare


def _draw(weights: dict[str, float]) -> str:
    answers, shares = list(weights), torch.tensor(list(weights.values()))
    return answers[int(torch.multinomial(shares, 1))]


def encode_pixels(model: Blip2, pictures: Tensor) -> Tensor:
    """image_embeds [B, N, Dv] of uint8 pictures [B, 3, H, W], or of the tower's features [B, N, Dv]."""
    if pictures.dtype == torch.uint8:
        return model.encode_image(normalize(pictures, mean=model.vision.mean, std=model.vision.std))
    return model.normalize_features(pictures)


class Blip2Step(nn.Module):
    """Either stage over `Blip2Batch`es."""

    num_tokens: Tensor

    def __init__(self, objective: Blip2Stage1 | Blip2Stage2) -> None:
        super().__init__()
        self.objective = objective
        self.register_buffer("num_tokens", torch.zeros(()), persistent=False)
        self._counted = False

    @property
    def model(self) -> Blip2:
        """What is trained."""
        return self.objective.model

    def count_step(self, batches: Sequence[Blip2Batch]) -> None:
        """Take note of how many tokens are scored in a step: on average in a micro-batch of a process."""
        self.num_tokens.fill_(sum(batch.num_scored for batch in batches) / len(batches))
        self.num_tokens.copy_(average(self.num_tokens))
        self._counted = True

    def gradient_checkpointing_enable(self) -> None:
        """As `Blip2.gradient_checkpointing_enable`."""
        self.model.gradient_checkpointing_enable()

    def frozen_parameter_names(self) -> set[str]:
        """Names of the parameters that no checkpoint holds."""
        return {f"objective.model.{name}" for name in self.model.frozen_parameter_names()}

    def layer_ids(self) -> dict[str, int]:
        """Depth of each parameter for layer-wise decay, see `depth_of_layers`."""
        return depth_of_layers(self, self.model.vision.depth, self.model.config.qformer.depth)

    def forward(self, batch: Blip2Batch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        embeds = encode_pixels(self.model, batch.pictures)
        num_tokens = self.num_tokens if self._counted else None
        if isinstance(self.objective, Blip2Stage1):
            return self.objective(embeds, batch.text, batch.image_ids, num_tokens=num_tokens)
        return self.objective(
            embeds, batch.text, questions=batch.questions, prefix=batch.prefix, num_tokens=num_tokens
        )
