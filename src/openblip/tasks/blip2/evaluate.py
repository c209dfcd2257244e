"""How good a BLIP-2 model is: recall, ITM accuracy and ITG perplexity of stage 1, captions, answers of stage 2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.store import StoredModel
from openblip.core.tokenizer import TextTokenizer
from openblip.data.measured import Measured
from openblip.data.sample import Batch
from openblip.data.sources.open import open_source
from openblip.data.sources.questions import answers_of, open_questions
from openblip.data.transforms import IMAGE_MEAN, IMAGE_STD, clean_question
from openblip.generation.types import DecodeConfig
from openblip.metrics.answers import mean_answer_accuracy
from openblip.metrics.caption import caption_scores
from openblip.models.blip2 import Blip2
from openblip.models.layers import ImageMemory
from openblip.tasks.blip2.config import Blip2RunConfig
from openblip.tasks.blip2.step import encode_pixels
from openblip.tasks.blip2.write import itg_log_likelihood, log_likelihood, write_texts
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.run import evaluation_batches

__all__ = ["Matcher", "evaluate_blip2"]


class Matcher(nn.Module):
    """A BLIP-2 model of stage 1 as what `tasks.retrieval` asks of a BLIP.

    Images have a feature for each query [B, Q, E]; texts to match begin with [CLS] here.
    """

    def __init__(self, model: Blip2, tokenizer: TextTokenizer) -> None:
        super().__init__()
        self.model, self.cls_id, self.config = model, tokenizer.cls_id, model.config
        std, mean = model.vision.std, model.vision.mean
        self.scale = torch.tensor([a / b for a, b in zip(IMAGE_STD, std, strict=True)]).view(3, 1, 1)
        shift = [(a - b) / c for a, b, c in zip(IMAGE_MEAN, mean, std, strict=True)]
        self.shift = torch.tensor(shift).view(3, 1, 1)

    def encode_image(self, images: Tensor) -> Tensor:
        """image_embeds of images normalised as BLIP's; the tower may want them otherwise."""
        if (self.model.vision.mean, self.model.vision.std) != (IMAGE_MEAN, IMAGE_STD):
            images = images * self.scale.to(images) + self.shift.to(images)
        return self.model.encode_image(images)

    def image_features(self, image_embeds: Tensor) -> Tensor:
        """[B, N, Dv] -> normalised [B, Q, E]."""
        return self.model.image_features(self.model.read_image(self.model.remember(image_embeds)))

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Ids [R, T] -> normalised [R, E]."""
        return self.model.text_features(input_ids, attention_mask)

    def remember(self, image_embeds: Tensor) -> ImageMemory:
        """As `Blip2.remember`."""
        return self.model.remember(image_embeds)

    def match(self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory) -> Tensor:
        """ITM logits [R, 2] of ids, whatever they begin with."""
        ids = input_ids.clone()
        ids[:, 0] = self.cls_id
        return self.model.match(ids, attention_mask, memory)


@torch.no_grad()
def evaluate_blip2(
    config: Blip2RunConfig, stored: StoredModel, *, measured: Measured | None = None
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Measure a model on the validation sources; as `tasks.run.evaluate_model`.

    Args:
        measured: where samples that cannot be used are noted; their number is always given.

    Returns:
        stage 1: recall by ITC and after ITM, "itm_accuracy", "itm_auc", "itg_perplexity"; stage 2: the scores of
        captions with "perplexity", or "vqa_accuracy"; and one record for each picture or question written about.
    """
    model: Blip2 = stored.model
    was_training = model.training
    model.eval()
    asks = config.task == "questions"
    used = measured if measured is not None else Measured()

    def batches() -> Iterator[Batch]:
        opener: Any = open_questions if asks else open_source
        return evaluation_batches(
            [opener(source) for source in config.validation],
            model.vision.pixels,
            samples=config.validation_samples,
            clean="none" if asks else config.clean,
            measured=used,
        )

    numbers: dict[str, float] = {}
    records: list[dict[str, object]] = []
    if model.config.matches:
        assert stored.tokenizer is not None
        matcher: Any = Matcher(model, stored.tokenizer)
        numbers |= evaluate_retrieval(
            matcher, stored.tokenizer, batches(), rerank_k=config.rerank_k, max_length=config.max_length
        )
        if model.qformer.head is not None:
            numbers["itg_perplexity"] = _itg_perplexity(model, stored.tokenizer, batches(), config.max_length)
    if model.language is not None:
        found = _answers(config, stored, batches()) if asks else _captions(config, stored, batches())
        numbers, records = numbers | found[0], found[1]
    model.train(was_training)
    return numbers | used.numbers, records


def _memory(model: Blip2, batch: Batch) -> ImageMemory:
    device = model.vision_norm.weight.device
    return model.remember(encode_pixels(model, batch.images.to(device)))


def _itg_perplexity(model: Blip2, tokenizer: TextTokenizer, batches: Iterable[Batch], max_length: int) -> float:
    total, count = 0.0, 0
    for batch in batches:
        memory = _memory(model, batch)
        device = memory.keys[0].device
        text = tokenizer.encode(batch.texts, max_length=max_length).to(device)
        sums, counts = itg_log_likelihood(
            model, text, memory.select(batch.image_index.to(device)), tokenizer.dec_id
        )
        total, count = total + float(sums.sum()), count + int(counts.sum())
    return math.exp(-total / max(count, 1))


def _captions(
    config: Blip2RunConfig, stored: StoredModel, batches: Iterable[Batch]
) -> tuple[dict[str, float], list[dict[str, object]]]:
    model, words = stored.model, stored.language_tokenizer
    assert words is not None
    records: list[dict[str, object]] = []
    written: list[str] = []
    references: list[list[str]] = []
    total, count = 0.0, 0
    for batch in batches:
        memory = _memory(model, batch)
        captions = write_texts(model, words, memory, config.decode, prompts=[config.prompt] * len(batch))
        own: list[list[str]] = [[] for _ in batch.keys]
        for row, text in zip(batch.image_index.tolist(), batch.texts, strict=True):
            own[row].append(text)
        index = batch.image_index.to(memory.keys[0].device)
        sums, counts = log_likelihood(
            model,
            words,
            memory.select(index),
            [[text] for text in batch.texts],
            prompts=[config.prompt] * len(batch.texts),
        )
        total, count = total + float(sums.sum()), count + int(counts.sum())
        for key, best, texts in zip(batch.keys, captions, own, strict=True):
            written.append(best[0].text)
            references.append(texts)
            records.append({"key": key, "caption": best[0].text, "log_prob": best[0].log_prob, "references": texts})
    scores = caption_scores(written, references)
    return {**scores, "perplexity": math.exp(-total / max(count, 1))}, records


def _answers(
    config: Blip2RunConfig, stored: StoredModel, batches: Iterable[Batch]
) -> tuple[dict[str, float], list[dict[str, object]]]:
    records: list[dict[str, object]] = []
    given: list[list[str]] = []
    answers: list[str] = []
    for batch in batches:
        owners = batch.image_index
        memory = _memory(stored.model, batch)
        memory = memory.select(owners.to(memory.keys[0].device))
        written = answer(stored, memory, batch.texts, config.decode, prompt=config.prompt)
        rows = zip(batch.texts, owners.tolist(), written, strict=True)
        for question, row, text in rows:
            known = list(answers_of(batch.meta[row])[question].texts)
            answers.append(text)
            given.append(known)
            records.append({"key": batch.keys[row], "question": question, "answer": text, "given": known})
    return {"vqa_accuracy": mean_answer_accuracy(answers, given)}, records


def answer(
    stored: StoredModel, memory: ImageMemory, questions: list[str], config: DecodeConfig, *, prompt: str
) -> list[str]:
    """The likeliest answer to each of R questions about the images in `memory`, R rows of them."""
    words = stored.language_tokenizer
    assert words is not None
    cleaned = [clean_question(question) for question in questions]
    read = None
    if stored.tokenizer is not None:
        read = stored.tokenizer.encode(cleaned).to(memory.keys[0].device)
    prompts = [prompt.replace("{}", question) for question in cleaned]
    written = write_texts(stored.model, words, memory, config, prompts=prompts, questions=read)
    return [best[0].text for best in written]
