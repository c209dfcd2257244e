"""A model that serves: reads images once, checks work alone and computes it in batches.

Everything here but `open_image` and `ServedModel.read` runs in the one thread that computes.

Shapes: B pieces of work, N image tokens, Dv vision width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.data.images import decode_image
from openblip.data.transforms import evaluation_transform
from openblip.explain.cam import WordMap, caption_maps, match_maps
from openblip.serving.cache import FeatureCache
from openblip.serving.chat_work import Chatting, Growing, Written, count_tokens, watching
from openblip.serving.engine import (
    Answering,
    Captioning,
    Classifying,
    Counts,
    Embedding,
    Explaining,
    Matching,
    ModelInfo,
    Work,
)
from openblip.tasks.classification import Classifier
from openblip.tasks.predictor import Predictor
from openblip.tasks.results import Answered, Caption, ClassScore, Match
from openblip.tasks.retrieval import embed_texts, match_logits, match_probability

__all__ = ["Dropped", "Explained", "Read", "ServedModel", "open_image"]

_NO_RANDOM = np.random.default_rng(0)
_SERVED = ("caption", "answer", "match", "embed", "classify", "explain")


class Dropped(Exception):
    """Nobody waits for what is being computed."""


class Explained(NamedTuple):
    """Where a model looked for each word of a text."""

    text: str
    by: str
    maps: list[WordMap]


@dataclass(frozen=True)
class Read:
    """A piece of work, ready to be computed."""

    work: Work
    key: bytes = b""
    """hash of the image's bytes"""
    pixels: Tensor | None = None
    """uint8 [3, H, W]; None where the features are at hand, or there is no image"""
    growing: Growing | None = None
    """takes the texts of a `Chatting` as they grow"""

    def question_key(self, question: str) -> bytes:
        """Hash of the image's bytes and a question about it."""
        return hashlib.sha256(self.key + question.encode("utf-8", "surrogatepass")).digest()


def open_image(data: bytes, max_pixels: int, min_side: int | None = None) -> Image.Image:
    """Decode an image; its size is looked at first.

    Raises:
        BrokenSample: it cannot be used.
    """
    return decode_image(data, key="the image", min_side=min_side, max_pixels=max_pixels)


class ServedModel:
    """A predictor that batches and remembers.

    Args:
        name: the id that clients call it by.
        predictor: the model; its layers get hooks.
        cache: shared by all models of a service.
        counts: of the service.
        max_pixels: largest image that is decoded, width x height.
    """

    def __init__(
        self, name: str, predictor: Predictor, cache: FeatureCache, counts: Counts, *, max_pixels: int
    ) -> None:
        self.name, self.predictor, self.adapter = name, predictor, predictor.adapter
        self.max_pixels = max_pixels
        self._cache, self._counts = cache, counts
        self._transform = evaluation_transform(self.adapter.image_size)
        self._wanted: Callable[[], bool] | None = None
        self._classifier: tuple[tuple[Any, ...], Classifier] | None = None
        """that of the last batch, for the next one of its kind"""
        for module in self.adapter.model.modules():
            if isinstance(module, nn.ModuleList | nn.Sequential):
                for block in module:
                    block.register_forward_pre_hook(self._drop_unwanted)

    @property
    def info(self) -> ModelInfo:
        """The model as clients see it."""
        able = set(self.predictor.can)
        able |= {"classify"} if able & {"match", "embed"} else set()
        can = tuple(name for name in _SERVED if name in able)
        adapter, size = self.adapter, self._transform.config.pixels
        usual, language = (adapter.captioning, adapter.answering), bool(adapter.question_prompt)
        return ModelInfo(self.name, adapter.family, can, size, *usual, language=language)

    def _drop_unwanted(self, module: nn.Module, inputs: Any) -> None:
        if self._wanted is not None and not self._wanted():
            raise Dropped

    @contextmanager
    def wanted(self, still: Callable[[], bool]) -> Iterator[None]:
        """Within, the model stops between two layers when `still` says that nobody waits.

        Raises:
            Dropped: then.
        """
        self._wanted = still
        try:
            yield
        finally:
            self._wanted = None

    # Before the queue, in any thread ----------------------------------------------------------------------

    def read(self, work: Work) -> Read:
        """Check texts and decode the image, so that what is wrong with one piece of work concerns no other.

        Raises:
            UserError: see `Engine.run`.
            BrokenSample: likewise.
        """
        self._check(work)
        if work.image is None:
            return Read(work)
        key = hashlib.sha256(work.image).digest()
        if (self.name, key) in self._cache:
            return Read(work, key)
        return Read(work, key, self._pixels(work.image))

    def _pixels(self, image: bytes) -> Tensor:
        """uint8 [3, H, W] of an encoded image."""
        return self._transform(open_image(image, self.max_pixels, self._transform.min_side), _NO_RANDOM)

    def _check(self, work: Work) -> None:
        if isinstance(work, Captioning):
            self._check_prompt(work.prompt)
        elif isinstance(work, Answering):
            self._check_questions(work.questions, work.prompt, work.candidates or ())
        elif isinstance(work, Chatting) and work.question is not None:
            self._check_questions([work.question], work.prompt)
        elif isinstance(work, Chatting):
            self._check_prompt(work.prompt)
        elif isinstance(work, Matching):
            self.adapter.need("match").check_texts(work.texts)
        elif isinstance(work, Embedding):
            self.adapter.need("embed").check_texts(work.texts)
        elif isinstance(work, Classifying):
            self.adapter.need("embed" if work.by == "itc" else "match")
        elif isinstance(work, Explaining):
            self.adapter.need("explain")
            if work.by is not None:
                self.adapter.need(work.by)
            if work.text is None:
                self.adapter.need("caption")
            else:
                self.adapter.check_texts([work.text])

    def _check_prompt(self, prompt: str | None) -> None:
        self.adapter.need("caption").check_prompt([prompt or self.adapter.prompt])
        if prompt and self.adapter.family == "blip2" and not self.adapter.question_prompt:
            raise UserError("BLIP-2 without a language model begins its captions with no text; leave it out")

    def _check_questions(
        self, questions: Sequence[str], prompt: str | None, candidates: Sequence[str] = ()
    ) -> None:
        self.adapter.need("answer").check_questions(questions, candidates)
        if prompt is not None and not (self.adapter.question_prompt and "{}" in prompt):
            raise UserError("a prompt of a question is for BLIP-2, with {} in place of the question")

    # In the thread that computes --------------------------------------------------------------------------

    def compute(self, batch: Sequence[Read]) -> list[Any]:
        """What each piece of work gives; all are of one kind.

        Raises:
            Dropped: nobody waits for it any more, see `wanted`.
            UserError: a text cannot be explained as asked, or classes cannot be told apart.
            BrokenSample: an image that had to be decoded again cannot be used.
        """
        first = batch[0].work
        if isinstance(first, Explaining):
            return [self._explain(one, one.work) for one in batch if isinstance(one.work, Explaining)]
        how: dict[type[Work], Callable[[Sequence[Any], Sequence[Read]], list[Any]]] = {
            Captioning: self._caption,
            Answering: self._answer,
            Matching: self._match,
            Embedding: self._embed,
            Classifying: self._classify,
            Chatting: self._chat,
        }
        with torch.no_grad():
            return how[type(first)]([one.work for one in batch], batch)

    def embeds(self, batch: Sequence[Read]) -> Tensor:
        """Features [B, N, Dv] of the images, those that are not kept encoded together."""
        found: dict[bytes, Tensor] = {}
        missing: dict[bytes, Tensor] = {}
        for one in batch:
            if one.key in found or one.key in missing:
                continue
            if (kept := self._cache.get((self.name, one.key))) is not None:
                found[one.key] = kept
            elif one.pixels is not None:
                missing[one.key] = one.pixels
            else:  # the features have gone from the cache since the work was read
                assert one.work.image is not None
                missing[one.key] = self._pixels(one.work.image)
        self._counts.remembered += len(batch) - len(missing)
        self._counts.encoded += len(missing)
        if missing:
            for key, row in zip(missing, self.adapter.encode(torch.stack(list(missing.values()))), strict=True):
                found[key] = row.clone()
                self._cache.put((self.name, key), found[key])
        self._counts.cache_bytes = self._cache.nbytes
        return torch.stack([found[one.key] for one in batch])

    def keys(self, hashes: Sequence[bytes]) -> Tensor:
        """int64 [R], names rows for sampling by content: the same request gives the same text in any batch."""
        return torch.tensor([int.from_bytes(one[:7]) for one in hashes], device=self.adapter.device)

    def _caption(self, works: Sequence[Captioning], batch: Sequence[Read]) -> list[list[Caption]]:
        prompts = [self.adapter.prompt if work.prompt is None else work.prompt for work in works]
        keys = self.keys([one.key for one in batch])
        model = self.adapter.need("caption")
        memory = model.remember(self.embeds(batch))
        return model.generate(memory, works[0].config or model.captioning, prompts, keys)

    def _answer(self, works: Sequence[Answering], batch: Sequence[Read]) -> list[list[Answered]]:
        model, first = self.adapter.need("answer"), works[0]
        questions = [question for work in works for question in work.questions]
        asked = model.ask(model.remember(self.embeds(batch)), questions, prompt=first.prompt)
        if first.candidates is None:
            keys = [
                one.question_key(text) for one, work in zip(batch, works, strict=True) for text in work.questions
            ]
            found = model.answers(asked, first.config or model.answering, keys=self.keys(keys))
        else:
            found = model.rank(asked, first.candidates)
        answered = [Answered(question, one) for question, one in zip(questions, found, strict=True)]
        each = len(first.questions)
        return [answered[i : i + each] for i in range(0, len(answered), each)]

    def _match(self, works: Sequence[Matching], batch: Sequence[Read]) -> list[list[Match]]:
        model = self.adapter.need("match")
        embeds = self.embeds(batch)
        texts = list(dict.fromkeys(text for work in works for text in work.texts))
        tokens, features = embed_texts(model, [self.adapter.clean(text) for text in texts])
        place = {text: row for row, text in enumerate(texts)}
        pairs = torch.tensor([(place[text], row) for row, work in enumerate(works) for text in work.texts])
        cosine = model.similarities(features, model.image_features(embeds).float()).cpu()
        probabilities = iter(match_probability(match_logits(model, embeds, tokens, pairs)).tolist())
        return [
            [Match(text, next(probabilities), float(cosine[place[text], row])) for text in work.texts]
            for row, work in enumerate(works)
        ]

    def _embed(self, works: Sequence[Embedding], batch: Sequence[Read]) -> list[tuple[Any, Any]]:
        model = self.adapter.need("embed")
        shown = [one for one in batch if one.work.image is not None]
        images = iter(model.image_features(self.embeds(shown)).float().cpu() if shown else ())
        texts = [self.adapter.clean(text) for work in works for text in work.texts]
        rows = iter(embed_texts(model, texts)[1].cpu() if texts else ())
        return [
            (
                None if work.image is None else next(images),
                torch.stack([next(rows) for _ in work.texts]) if work.texts else None,
            )
            for work in works
        ]

    def _classify(self, works: Sequence[Classifying], batch: Sequence[Read]) -> list[list[ClassScore]]:
        first = works[0]
        if self._classifier is None or self._classifier[0] != first.kind:
            made = Classifier(self.adapter, first.classes, templates=first.templates, by=first.by)
            self._classifier = (first.kind, made)
        return self._classifier[1](self.embeds(batch))

    def _chat(self, works: Sequence[Chatting], batch: Sequence[Read]) -> list[Written]:
        """All of them captions, or all answers by one prompt."""
        first, read = works[0], None
        questions = [work.question for work in works if work.question is not None]
        asks = bool(questions)
        model = self.adapter.need("answer" if asks else "caption")
        memory = model.remember(self.embeds(batch))
        words = self.adapter.language_tokenizer or self.adapter.tokenizer
        watch = None
        if any(one.growing for one in batch):
            watch = watching([one.growing for one in batch], first.config.num_sequences, words.decode)
        if asks:
            asked = model.ask(memory, questions, prompt=first.prompt)
            keys = self.keys([one.question_key(text) for one, text in zip(batch, questions, strict=True)])
            written = model.write_answers(asked, first.config, keys=keys, watch=watch)
            read = getattr(asked, "prompts", questions)
        else:
            read = [self.adapter.prompt if work.prompt is None else work.prompt for work in works]
            written = model.generate(memory, first.config, read, self.keys([one.key for one in batch]), watch)
        return [Written(tuple(texts), count_tokens(words, text)) for texts, text in zip(written, read, strict=True)]

    def _explain(self, one: Read, work: Explaining) -> Explained:
        model = self.adapter.model
        with torch.no_grad():
            memory = self.adapter.remember(self.embeds([one]))
            text = work.text
            if text is None:
                captioner = self.adapter.need("caption")
                text = captioner.generate(memory, captioner.captioning, [self.adapter.prompt])[0][0].text
        of_blip2 = self.adapter.family == "blip2"
        matches = "match" in self.adapter.can and (work.text is not None or of_blip2)
        by = work.by or ("match" if matches else "caption")
        if by == "caption" and of_blip2:
            raise UserError("a BLIP-2 model shows what makes a text match; leave by=caption out")
        cleaned, tokenizer = self.adapter.clean(text), self.adapter.tokenizer
        if by == "match":
            maps = match_maps(model, tokenizer, memory, cleaned, layer=work.layer)
        else:
            prompt = self.adapter.prompt
            maps = caption_maps(model, tokenizer, memory, cleaned, prompt=prompt, layer=work.layer)
        return Explained(text, by, maps)
