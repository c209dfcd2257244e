"""Captions: BLIP's decoder by LM, BLIP-2's stage 2 in front of a language model, and how good captions are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageBatch, LanguageTokenizer
from openblip.core.sharing import is_first, joint
from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.data.clean import CleanText, cleaned
from openblip.data.sample import Batch
from openblip.generation.config import DecodeConfig
from openblip.metrics.caption import caption_scores
from openblip.metrics.java import JavaMetric, check_java, java_scores
from openblip.objectives.blip2 import Blip2Stage2, split_prefix
from openblip.objectives.selfcritical import CaptionRewards
from openblip.tasks.config import RunConfig
from openblip.tasks.feature_cache import FeatureCache
from openblip.tasks.pairs import train_blip
from openblip.tasks.protocols import Adapter, Generates
from openblip.tasks.selfcritical import SelfCritical, SelfCriticalStep
from openblip.tasks.soft_prompts import fit_projection
from openblip.tasks.step import PairBatch, Training, TrainingStep, images_of
from openblip.tasks.task import Batches, Evaluation, RunData, Task
from openblip.tasks.vocabulary import texts_of_images

__all__ = [
    "CAPTIONING",
    "LanguagePairBatch",
    "Stage2Step",
    "evaluate_captions",
    "prepare_captions",
    "train_captions",
    "train_stage2",
]


@dataclass(frozen=True)
class LanguagePairBatch(PairBatch):
    """What a language model trains on: B images with a text each."""

    text: LanguageBatch
    questions: TokenBatch | None = None
    """for the Q-Former to read with the images"""
    prefix: LanguageBatch | None = None
    """what an encoder-decoder's encoder reads"""

    @property
    def num_scored(self) -> int:
        """Tokens that language modelling scores; a prompt is not scored."""
        return len(self.text.scored_places)


class Stage2Step(TrainingStep[LanguagePairBatch]):
    """`Blip2Stage2` over `LanguagePairBatch`es."""

    def forward(self, batch: LanguagePairBatch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        image_embeds = self.model.encode_pixels(batch.images)
        return self.objective(
            image_embeds, batch.text, questions=batch.questions, prefix=batch.prefix, num_tokens=self.divisor
        )


def prepare_captions(
    tokenizer: LanguageTokenizer,
    *,
    start_id: int | None,
    max_length: int,
    prompt: str = "",
    reader: TextTokenizer | None = None,
    chat: bool = False,
    cache: FeatureCache | None = None,
) -> Callable[[Batch], LanguagePairBatch]:
    """A function from the loader's batches to those of stage 2.

    An encoder-decoder reads the prompt; without one, each caption is split at a word drawn at random.

    Args:
        start_id: with which an encoder-decoder's decoder starts; None for a decoder.
        max_length: tokens of a caption, a decoder's prompt among them.
        reader: of a Q-Former that reads the prompt, as InstructBLIP's does.
    """
    images, read = images_of(cache), None if reader is None else reader.encode([prompt])
    prompt = tokenizer.placed(prompt, chat=chat)
    if start_id is None and not tokenizer.texts(["a"], prompts=[prompt], max_length=max_length).scored.any():
        raise UserError(
            f"the prompt fills the {max_length} tokens of max_length and leaves none for captions; raise it"
        )

    def prepare(batch: Batch) -> LanguagePairBatch:
        count = len(batch.texts)
        if start_id is None:
            text = tokenizer.texts(batch.texts, prompts=[prompt] * count, max_length=max_length)
            return LanguagePairBatch(images(batch), text, batch.image_ids, questions=repeated(count))
        text = tokenizer.texts(batch.texts, max_length=max_length).targets(start_id)
        if prompt:
            prefix = tokenizer.prompts([prompt] * count, side="right", end=True)
        else:
            prefix, text = split_prefix(text, eos_id=tokenizer.eos_id)
        return LanguagePairBatch(images(batch), text, batch.image_ids, questions=repeated(count), prefix=prefix)

    def repeated(rows: int) -> TokenBatch | None:
        if read is None:
            return None
        return TokenBatch(read.input_ids.expand(rows, -1), read.attention_mask.expand(rows, -1))

    return prepare


def train_stage2(config: RunConfig, adapter: Adapter, data: RunData) -> Training:
    """BLIP-2's stage 2: a frozen language model continues from the queries."""
    tokenizer = adapter.language_tokenizer
    prepare = prepare_captions(
        tokenizer,
        start_id=adapter.model.llm.start_id,
        max_length=config.max_length,
        prompt=config.prompt,
        reader=adapter.tokenizer if adapter.stored.reads_prompts else None,
        chat=adapter.model.llm.config.chat == "yes",
        cache=data.cache,
    )
    step = Stage2Step(Blip2Stage2(adapter.model, eos_id=tokenizer.eos_id, each_frame=adapter.stored.reads_prompts))
    fit = partial(fit_projection, adapter.model, tokenizer, images_of(data.cache))
    begin = fit if config.fit_soft_prompts else None
    return Training(step, prepare, config.clean, config.max_words, begin=begin)


def train_captions(config: RunConfig, adapter: Adapter, data: RunData) -> Training:
    """BLIP's captioner: by LM, or by CIDEr-D of its own captions (`config.scst`)."""
    training = train_blip(config, adapter, data, objectives=("lm",))
    if not config.scst.samples:
        return training
    references = {
        image: [CaptionRewards.words_of(text) for text in texts]
        for image, texts in texts_of_images(data.sources, clean=config.clean).items()
    }
    if len(references) < 2:
        raise UserError("self-critical training weighs words by the images they are said of; name at least two")
    rewards = CaptionRewards(references)
    objective = SelfCritical(adapter.model, config.scst, adapter.tokenizer, rewards, prompt=config.prompt)
    return replace(training, step=SelfCriticalStep(objective))


@torch.no_grad()
def evaluate_captions(
    model: Generates,
    batches: Iterable[Batch],
    config: DecodeConfig,
    *,
    prompt: str = "",
    clean: CleanText = "none",
    max_length: int | None = 40,
    perplexity: bool = True,
    java_metrics: Sequence[JavaMetric] = (),
) -> Evaluation:
    """Generate a caption for every image and compare it with all its texts.

    Images whose record says "domain", as those of NoCaps do, are measured for each domain too.

    Args:
        batches: with every text of every image (`text_mode="all"`), as it was written: the measures' references are
            tokenized by the official rules, which cleaning would change.
        clean: how a text is cleaned before its perplexity is measured, as in training.
        max_length: tokens of a reference text that its perplexity reads.
        perplexity: False leaves it out, and takes a model that gives no likelihoods.

    Returns:
        metrics by name: BLEU, ROUGE-L, CIDEr, the perplexity of the reference texts, METEOR and SPICE where asked
        for, and "CIDEr_in", "CIDEr_near" and "CIDEr_out" (and others) of domains, over the images that have
        references; "num_without_captions" where some have none; and one record for each image: key, caption,
        references, and its domain.
    """
    check_java(java_metrics)
    records: list[dict[str, Any]] = []
    likelihoods: list[tuple[float, int]] = []
    for batch in batches:
        memory = model.remember(model.encode(batch.images))
        captions = model.generate(memory, config, [prompt] * len(batch))
        read = [(text, row) for row, raw in enumerate(batch.texts) if (text := cleaned(raw, clean))]
        if perplexity and read:
            texts, rows = [list(part) for part in zip(*read, strict=True)]
            own_memory = memory.select(batch.image_index[rows].to(model.device))
            sums, lengths = model.score_own(own_memory, texts, prompt=prompt, max_length=max_length)
            likelihoods.append((float(sums.sum()), int(lengths.sum())))
        for key, best, texts, meta in zip(batch.keys, captions, batch.texts_of_images, batch.meta, strict=True):
            record = {"key": key, "caption": best[0].text, "log_prob": best[0].log_prob, "references": texts}
            records.append(record | ({"domain": meta["domain"]} if meta.get("domain") else {}))
    records = joint(records)
    scored = [record for record in records if record["references"]]
    without = {"num_without_captions": float(len(records) - len(scored))} if len(scored) < len(records) else {}
    if not scored:
        return without, records
    written, references = ([record[name] for record in scored] for name in ("caption", "references"))
    scores = caption_scores(written, references)
    scores |= joint([java_scores(written, references, java_metrics)] if is_first() else [])[0]
    scores |= _scores_of_domains(written, references, [str(record.get("domain", "")) for record in scored])
    if perplexity:
        log_prob, count = (sum(values) for values in zip(*joint(likelihoods), strict=True))
        scores["perplexity"] = float(torch.tensor(-log_prob / max(count, 1)).exp())
    return scores | without, records


def _scores_of_domains(
    captions: Sequence[str], references: Sequence[Sequence[str]], domains: Sequence[str]
) -> dict[str, float]:
    """Scores of each domain's images alone, "CIDEr_near" of the domain "near-domain".

    A domain is a collection of its own: CIDEr weighs its words by the references of its own images. NoCaps' server
    was not at hand to compare with.
    """
    scores: dict[str, float] = {}
    for domain in sorted({domain for domain in domains if domain}):
        rows = [row for row, own in enumerate(domains) if own == domain]
        found = caption_scores([captions[row] for row in rows], [references[row] for row in rows])
        scores |= {f"{name}_{domain.removesuffix('-domain')}": value for name, value in found.items()}
    return scores


def evaluate(config: RunConfig, adapter: Adapter, batches: Batches, answers: Sequence[str]) -> Evaluation:
    """Metrics of generated captions, and the perplexity of the given ones."""
    return evaluate_captions(
        adapter.need("likelihood"),
        batches(as_written=True),
        config.decode,
        prompt=config.prompt,
        clean=config.clean,
        java_metrics=config.java_metrics,
    )


CAPTIONING = Task(train={"blip": train_captions, "blip2": train_stage2}, evaluate=evaluate)
