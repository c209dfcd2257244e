"""A trained model in a few words: caption, match, embed, answer, judge, search.

    model = openblip.load("runs/demo/captioner/model")
    model.caption(["a.jpg", "b.jpg"])                    # [[Caption], [Caption]]
    model.match("a.jpg", ["a red bus", "two dogs"])      # [[Match, Match]]
    model.answer("a.jpg", "what color is the bus?")      # [[Answered]]

Images are whatever `openblip.data.image_inputs.Images` names, one or many; they are decoded in threads beside the
model. Texts are for every image; a list of lists has texts of its own for each. Every family of models is used in
the same way; what a model cannot do is refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.text import counted
from openblip.core.tokenizer import TokenBatch
from openblip.data.clean import clean_caption
from openblip.data.image_inputs import (
    ImageBatch,
    ImageInput,
    ImageInputs,
    as_image_inputs,
    decoded,
    find_images,
    unusable,
)
from openblip.data.sample import BrokenSample, stable_id
from openblip.data.transforms import evaluation_transform
from openblip.generation.config import DecodeConfig
from openblip.models.layers import ImageMemory
from openblip.models.replay import FixedStates
from openblip.tasks.classification import TEMPLATES, By, Classifier
from openblip.tasks.composed import find_composed
from openblip.tasks.protocols import Adapter
from openblip.tasks.results import Answered, Caption, ClassScore, Found, Judgement, Likelihood, Match, Score
from openblip.tasks.retrieval import embed_texts, match_logits, match_probability
from openblip.tasks.scoring import ANSWER, QUESTION, Scorer
from openblip.tasks.search import search_images, search_texts
from openblip.tasks.texts import OwnTexts, Texts

__all__ = ["Predictor", "Texts", "find_images"]


class Predictor:
    """A model ready to be used: in evaluation mode, on a device, in a dtype.

    Args:
        adapter: of any family (`tasks.registry.adapt`).
        batch_size: images at a time.
        cuda_graphs: record the steps of writing once for each shape of a batch (`models.replay`); for BLIP's
            captions, and what BLIP-2's decoders write. Weights are not to be changed in place afterwards.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
        cuda_graphs: bool = False,
    ) -> None:
        self.device, self.dtype, self.batch_size = torch.device(device), dtype, batch_size
        adapter.move(self.device, dtype)
        adapter.states = FixedStates() if cuda_graphs else None
        self.adapter = adapter
        self.model, self.tokenizer, self.info = adapter.model, adapter.tokenizer, adapter.info
        self.ignored = list(adapter.ignored)
        self._transform = evaluation_transform(adapter.image_size)
        self._last_texts: tuple[tuple[str, ...], TokenBatch, Tensor] | None = None

    @property
    def can(self) -> frozenset[str]:
        """What the model can do: names of `protocols.NEEDS`, such as "caption", "match", "answer" and "explain"."""
        return self.adapter.can

    @property
    def prompt(self) -> str:
        """How the model begins its captions unless requested otherwise."""
        return self.adapter.prompt

    @property
    def computing(self) -> str:
        """Device and dtype, in a few words."""
        dtype = str(self.dtype).removeprefix("torch.")
        threads = f", {counted(torch.get_num_threads(), 'thread')}" if self.device.type == "cpu" else ""
        return f"{self.device}, {dtype}{threads}"

    # Images -----------------------------------------------------------------------------------------------

    def batches(self, images: ImageInputs | Iterable[ImageInput] | ImageBatch) -> Iterator[ImageBatch]:
        """Decoded batches of images, some ahead of their use; what cannot be read is in `broken`."""
        if isinstance(images, ImageBatch):
            yield images
            return
        yield from decoded(as_image_inputs(cast(ImageInputs, images)), self._transform, batch_size=self.batch_size)

    def whole(self, images: ImageInputs | ImageBatch) -> Iterator[ImageBatch]:
        """`batches`, where an image that cannot be read is an error, unless a batch was handed over."""
        for batch in self.batches(images):
            if batch.broken and batch is not images:
                raise unusable(batch.broken[0])
            yield batch

    def pixels(self, images: ImageInputs) -> Tensor:
        """Decoded and resized images, uint8 [B, 3, H, W].

        Raises:
            UserError: one cannot be read; names it.
        """
        found = [batch.pixels for batch in self.whole(images)]
        height, width = evaluation_transform(self.adapter.image_size).config.pixels
        return torch.cat(found) if found else torch.empty(0, 3, height, width, dtype=torch.uint8)

    @torch.no_grad()
    def encode(self, batch: ImageBatch) -> Tensor:
        """image_embeds [B, N, Dv] of a batch."""
        return self.adapter.encode(batch.pixels)

    @torch.no_grad()
    def remember(self, images: ImageInputs | ImageBatch) -> ImageMemory:
        """The memory of images that fit into one batch."""
        (batch,) = self.whole(images)
        return self.adapter.remember(self.encode(batch))

    # Captions ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def caption(
        self,
        images: ImageInputs | ImageBatch,
        config: DecodeConfig | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
    ) -> list[list[Caption]]:
        """Generate captions: for each image `config.num_sequences` of them.

        Args:
            config: None is the papers': beam search with 3 beams and 5 to 20 new tokens (BLIP), with 5 beams and up
                to 30 (BLIP-2).
            prompt: how captions begin, one for all or one for each image; None is what the model was trained with.
        """
        model = self.adapter.need("caption")
        begin = self.prompt if prompt is None else prompt
        model.check_prompt([begin] if isinstance(begin, str) else begin)
        captions: list[list[Caption]] = []
        for batch in self.whole(images):
            # Sampling is keyed by the image's name, so that an image's texts do not depend on its batch.
            keys = torch.tensor([stable_id(Path(name).name) for name in batch.names], device=self.device)
            start = [begin] * len(batch) if isinstance(begin, str) else list(begin[len(captions) :])[: len(batch)]
            if len(start) < len(batch):
                raise UserError(
                    f"there are {len(begin)} prompts, but more images; give one for each, or one for all"
                )
            memory = model.remember(self.encode(batch))
            captions += model.generate(memory, config or model.captioning, start, keys)
        return captions

    @torch.no_grad()
    def log_likelihood(
        self, images: ImageInputs | ImageBatch, texts: Texts, *, prompt: str | None = None
    ) -> list[list[Likelihood]]:
        """How likely the model finds given captions, in the order given; an image's memory is projected once."""
        model = self.adapter.need("likelihood")
        begin = self.prompt if prompt is None else prompt
        own = OwnTexts.of(texts)
        model.check_captions((text for group in own.groups for text in group), prompt=begin)
        results: list[list[Likelihood]] = []
        for part, group, _ in self._groups(images, own, results):
            scores, lengths = model.score_all(part, group, prompt=begin)
            for row, shares in zip(scores.tolist(), scores.softmax(1).tolist(), strict=True):
                parts = zip(group, row, lengths.tolist(), shares, strict=True)
                results.append([Likelihood(*values) for values in parts])
        own.check(len(results))
        return results

    def _groups(
        self, images: ImageInputs | ImageBatch, own: OwnTexts, done: list[Any]
    ) -> Iterator[tuple[ImageMemory, list[str], int]]:
        """Memories of images with the texts about them, and how many images these are; `done` grows by as many."""
        for batch in self.whole(images):
            memory = self.adapter.remember(self.encode(batch))
            for rows, group in own.share(len(done), len(batch)):
                part = memory if len(rows) == len(batch) else memory.select(torch.tensor(rows, device=self.device))
                yield part, group, len(rows)

    def rank_captions(
        self, images: ImageInputs | ImageBatch, texts: Texts, *, prompt: str | None = None
    ) -> list[list[Likelihood]]:
        """`log_likelihood`, the likeliest text first."""
        scored = self.log_likelihood(images, texts, prompt=prompt)
        return [sorted(row, key=lambda likelihood: -likelihood.log_prob) for row in scored]

    # Matching ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def match(self, images: ImageInputs | ImageBatch, texts: Texts) -> list[list[Match]]:
        """Match images with texts by ITM and ITC; an image is encoded and its memory projected once."""
        model = self.adapter.need("match")
        own = OwnTexts.of(texts)
        results: list[list[Match]] = []
        for batch in self.whole(images):
            embeds = self.encode(batch)
            image_features = model.image_features(embeds).float()
            for rows, group in own.share(len(results), len(batch)):
                tokens, features = self.embedded_texts(group)
                cosine = model.similarities(features, image_features[rows]).T.cpu().tolist()
                pairs = torch.tensor([(text, row) for row in rows for text in range(len(group))]).view(-1, 2)
                logits = match_logits(model, embeds, tokens, pairs)
                probability = match_probability(logits).view(len(rows), len(group)).tolist()
                for row, similar in zip(probability, cosine, strict=True):
                    results.append([Match(*values) for values in zip(group, row, similar, strict=True)])
        own.check(len(results))
        return results

    def classify(
        self,
        images: ImageInputs | ImageBatch,
        classes: Sequence[str],
        *,
        templates: Sequence[str] = TEMPLATES,
        by: By = "itc",
        top: int | None = None,
    ) -> list[list[ClassScore]]:
        """Zero-shot classification: the `top` classes of each image (None: all), the likeliest first.

        Args:
            templates: texts with {} in place of a class; several are averaged, as embeddings or as ITM logits.
        """
        classifier = Classifier(self.adapter, classes, templates=templates, by=by)
        return [row for batch in self.whole(images) for row in classifier(self.encode(batch), top=top)]

    def score(
        self,
        images: ImageInputs | ImageBatch,
        texts: Texts,
        *,
        by: Sequence[str] = (),
        prompt: str | None = None,
        question: str = QUESTION,
        answer: str = ANSWER,
    ) -> list[list[Score]]:
        """How well texts fit images by several measures; an image is encoded once.

        Args:
            by: "itm", "itc", "likelihood", "vqa"; none is all that the model has.
            prompt: what stands before a text in its likelihood; None is what the model was trained with.
            question: of VQAScore, {} in place of the text.
            answer: whose probability VQAScore is.
        """
        scorer, own = Scorer(self.adapter, by, prompt, question, answer), OwnTexts.of(texts)
        for text in dict.fromkeys(text for group in own.groups for text in group):
            scorer.check(text)
        results: list[list[Score]] = []
        for batch in self.whole(images):
            each = [group for rows, group in own.share(len(results), len(batch)) for _ in rows]
            owners = [row for row, group in enumerate(each) for _ in group]
            found = iter(scorer(self.encode(batch), [text for group in each for text in group], owners))
            results += [[next(found) for _ in group] for group in each]
        own.check(len(results))
        return results

    @torch.no_grad()
    def embed_images(self, images: ImageInputs | ImageBatch) -> Tensor:
        """Normalised embeddings for ITC on the CPU, float32 [B, E]; [B, Q, E] of BLIP-2, one for each query."""
        model = self.adapter.need("embed")
        rows = [model.image_features(self.encode(batch)).float().cpu() for batch in self.whole(images)]
        return torch.cat(rows) if rows else torch.empty(0, model.embed_dim)

    @torch.no_grad()
    def embed_texts(self, texts: str | Sequence[str]) -> Tensor:
        """Normalised embeddings for ITC, float32 [C, E] on the CPU."""
        model = self.adapter.need("embed")
        many = [texts] if isinstance(texts, str) else list(texts)
        return self.embedded_texts(many)[1].cpu() if many else torch.empty(0, model.embed_dim)

    def similarities(self, texts: Tensor, images: Tensor) -> Tensor:
        """Cosines of text embeddings [C, E] with those of images, [C, I]."""
        return self.adapter.need("embed").similarities(texts, images)

    def embedded_texts(self, texts: Sequence[str]) -> tuple[TokenBatch, Tensor]:
        """Ids and normalised features of texts; those of the last call are kept, for the next batch of images."""
        if self._last_texts is None or self._last_texts[0] != tuple(texts):
            self._last_texts = (tuple(texts), *embed_texts(self.adapter.need("embed"), self._cleaned(texts)))
        return self._last_texts[1:]

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        """Texts as the model read them in training; what it cannot read is refused."""
        self.check_texts(texts)
        return [self.clean(text) for text in texts]

    @torch.no_grad()
    def features(self, images: ImageInputs | ImageBatch, texts: Sequence[str] | None = None) -> Tensor:
        """Query outputs of a Q-Former, float32 [B, Q, D] on the CPU.

        Args:
            texts: one for each image, which the queries then see too (multimodal features).
        """
        model = self.adapter.need("features")
        rows: list[Tensor] = []
        done = 0
        for batch in self.whole(images):
            own = None if texts is None else list(texts[done : done + len(batch)])
            if own is not None and len(own) < len(batch):
                raise UserError("multimodal features need one text for each image")
            done += len(batch)
            rows.append(model.query_features(self.encode(batch), own).float().cpu())
        sizes = model.model.config.qformer
        return torch.cat(rows) if rows else torch.empty(0, sizes.num_queries, sizes.width)

    # Questions --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(
        self,
        images: ImageInputs | ImageBatch,
        questions: Texts,
        candidates: Sequence[str] | None = None,
        *,
        config: DecodeConfig | None = None,
        keep: int = 128,
        prompt: str | None = None,
    ) -> list[list[Answered]]:
        """Answer questions about images; an image is read once for all questions about it.

        Args:
            candidates: the answers to choose from, ranked by likelihood; None generates answers.
            config: None is the papers': beam search with 3 beams (BLIP) or 5 (BLIP-2), up to 10 new tokens.
            keep: candidates that BLIP reads whole, chosen by their first token; BLIP-2 reads all.
            prompt: how BLIP-2's language model is asked, with {} in place of the question.
        """
        model = self.adapter.need("answer")
        own = OwnTexts.of(questions)
        if candidates is not None and not candidates:
            raise UserError("there are no answers to choose from; name some, or none at all to write freely")
        model.check_questions((text for group in own.groups for text in group), candidates or ())
        results: list[list[Answered]] = []
        for part, group, number in self._groups(images, own, results):
            texts = [*group] * number
            asked = model.ask(part, texts, prompt=prompt)
            if candidates is None:
                found = model.answers(asked, config or model.answering)
            else:
                found = model.rank(asked, candidates, keep=keep)
            answered = [Answered(text, one) for text, one in zip(texts, found, strict=True)]
            results += [answered[i : i + len(group)] for i in range(0, len(answered), len(group))]
        own.check(len(results))
        return results

    @torch.no_grad()
    def judge(self, first: ImageInputs, second: ImageInputs, texts: str | Sequence[str]) -> list[Judgement]:
        """Whether a sentence is true of two images, for each pair; one sentence for all pairs or one for each."""
        model = self.adapter.need("judge")
        results: list[Judgement] = []
        for left, right in zip_longest(self.whole(first), self.whole(second), fillvalue=ImageBatch()):
            count = len(left)
            own = [texts] * count if isinstance(texts, str) else list(texts)[len(results) : len(results) + count]
            if len(right) != count or len(own) != count:
                raise UserError("judge takes as many second images as first ones, and one text for each pair")
            self.check_texts(own)
            pairs = torch.stack((self.encode(left), self.encode(right)), dim=1)
            results += [Judgement(*values) for values in zip(own, model.judge(pairs, own).tolist(), strict=True)]
        return results

    # Search -----------------------------------------------------------------------------------------------

    def retrieve_images(
        self,
        images: ImageInputs,
        queries: Sequence[str],
        *,
        top: int = 5,
        rerank_k: int = 32,
        broken: list[BrokenSample] | None = None,
    ) -> list[list[Found]]:
        """The `top` images for each text: ITC over all, then ITM over the best `rerank_k` (0: ITC alone).

        Args:
            broken: receives the images that cannot be read, which are then left out; None makes them an error.
        """
        model = self.adapter.need("match" if rerank_k > 0 else "embed")
        asked = self._cleaned(queries)
        return search_images(model, self, as_image_inputs(images), asked, top=top, rerank_k=rerank_k, broken=broken)

    def retrieve_composed(
        self,
        images: ImageInputs,
        reference: ImageInputs,
        text: str,
        *,
        top: int = 5,
        broken: list[BrokenSample] | None = None,
    ) -> list[Found]:
        """The `top` images for one image and a text that says what is to change, by BLIP-2's multimodal features.

        Args:
            broken: as of `retrieve_images`.
        """
        model = self.adapter.need("features")
        self.adapter.need("embed")
        self.check_texts([text])
        start = as_image_inputs(reference)
        if len(start) != 1:
            raise UserError(f"a composed search starts from one image, not {len(start)}")
        (own,) = self.whole(start)

        def gallery() -> Iterator[ImageBatch]:
            for batch in self.whole(images) if broken is None else self.batches(images):
                if broken is not None:
                    broken.extend(batch.broken)
                if len(batch):
                    yield batch

        return find_composed(model, gallery(), self.encode(own), text, top=top)

    def retrieve_texts(
        self, image: ImageInputs, texts: Sequence[str], *, top: int = 5, rerank_k: int = 32
    ) -> list[Found]:
        """The `top` texts for an image, likewise."""
        model = self.adapter.need("match" if rerank_k > 0 else "embed")
        (batch,) = self.whole(image)
        return search_texts(model, batch, texts, self._cleaned(texts), top=top, rerank_k=rerank_k)

    # Texts ------------------------------------------------------------------------------------------------

    def clean(self, text: str, clean: Callable[..., str] = clean_caption) -> str:
        """A text as the model read texts in training."""
        return self.adapter.clean(text, clean)

    def check_texts(self, texts: Iterable[str], *, wordless: bool = False) -> None:
        """Refuse texts that the model cannot read: too long, all unknown to it, or without a word.

        Args:
            wordless: accept texts without a word.
        """
        self.adapter.check_texts(texts, wordless=wordless)
