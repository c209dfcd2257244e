"""A trained model in a few words: caption, match, embed, ask, judge, search.

    model = openblip.load("runs/demo/captioner/model")
    model.caption(["a.jpg", "b.jpg"])                    # [[Caption], [Caption]]
    model.match("a.jpg", ["a red bus", "two dogs"])      # [[Match, Match]]
    model.answer("a.jpg", "what color is the bus?")      # [[Answered]]

Pictures are whatever `openblip.data.pictures.Pictures` names, one or many; they are decoded in threads beside the
model. What is asked is asked of every picture; a list of lists has texts of its own for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from openblip.checkpoints.recognise import describe
from openblip.checkpoints.store import open_model
from openblip.core.compute import choose_dtype
from openblip.core.errors import UserError
from openblip.core.runtime import choose_device
from openblip.core.tokenizer import First, TextTokenizer, TokenBatch
from openblip.data.pictures import Picture, PictureBatch, Pictures, as_pictures, decoded, find_images
from openblip.data.sample import BrokenSample, stable_id
from openblip.data.transforms import clean_caption, clean_question, evaluation_transform, normalize
from openblip.generation.types import DecodeConfig
from openblip.models.blip import Blip
from openblip.models.blip2 import Blip2
from openblip.models.dual import BlipDual
from openblip.models.layers import ImageMemory
from openblip.models.nlvr import BlipNlvr
from openblip.models.vqa import BlipVqa
from openblip.tasks import answering, finding
from openblip.tasks.answering import Answered
from openblip.tasks.caption import Caption, score_captions, write_captions
from openblip.tasks.results import Found, Judgement, Likelihood, Match
from openblip.tasks.retrieval import embed_texts, match_logits, match_probability
from openblip.tasks.texts import OwnTexts, Texts

__all__ = ["Found", "Judgement", "Likelihood", "Match", "Predictor", "Texts", "find_images"]

CAPTIONS = DecodeConfig(num_beams=3, min_new_tokens=5, max_new_tokens=20)
"""how captions are written unless told otherwise, as the papers do"""
ANSWERS = DecodeConfig(num_beams=3, min_new_tokens=1, max_new_tokens=10)
"""how answers are written unless told otherwise, as the original does"""

_Kind = TypeVar("_Kind", Blip, BlipVqa, BlipNlvr, BlipDual)


class Predictor:
    """A model with what it needs to be used: tokenizer, image transform, device and dtype.

    Args:
        info: what the model's folder tells of it ("prompt", "clean", "like").
        ignored: keys of its file that were not needed.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: TextTokenizer,
        info: dict[str, Any] | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
        ignored: Sequence[str] = (),
    ) -> None:
        self.device, self.dtype, self.batch_size = torch.device(device), dtype, batch_size
        self.model = model.to(self.device, dtype).eval()
        self.tokenizer = tokenizer
        self.info = info or {}
        self.ignored = list(ignored)
        self._transform = evaluation_transform(model.config.vision.image_size)
        # transformers begins texts to match and questions with [CLS], and reads the padding of questions.
        self._like_transformers = self.info.get("like") == "transformers"
        self.first: First = "cls" if self._like_transformers else "enc"
        self._last_texts: tuple[tuple[str, ...], TokenBatch, Tensor] | None = None

    @classmethod
    def load(
        cls,
        source: Path | str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
        image_size: int | tuple[int, int] | None = None,
        tokenizer: str | None = None,
        like: Any = "reference",
        vision: str | None = None,
        language: str | None = None,
    ) -> Predictor:
        """Open a model from anywhere; see `checkpoints.store.open_model` for `source` and the last five.

        Args:
            device: "auto", "cpu", "cuda", "cuda:1" or "mps".
            dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 where the device computes it fast.
            batch_size: pictures at a time.
        """
        place = choose_device(device)
        numbers = choose_dtype(dtype, place)
        stored = open_model(
            source, tokenizer=tokenizer, image_size=image_size, like=like, vision=vision, language=language
        )
        if isinstance(stored.model, Blip2):
            from openblip.tasks.blip2.predictor import Blip2Predictor  # which is one of these

            return Blip2Predictor(cast(Any, stored), device=place, dtype=numbers, batch_size=batch_size)
        return cls(
            stored.model,
            stored.tokenizer,
            stored.info,
            device=place,
            dtype=numbers,
            batch_size=batch_size,
            ignored=stored.ignored,
        )

    @property
    def blip(self) -> Blip:
        """The model, where it is one that captions or matches; others are refused in one sentence."""
        return self._need(Blip, "captions and matching")

    @property
    def matcher(self) -> Any:
        """What `tasks.retrieval` matches with."""
        return self.model

    def similarities(self, texts: Tensor, images: Tensor) -> Tensor:
        """Of text embeddings [C, E] with those of images [I, E], [C, I]."""
        return texts @ images.T

    @property
    def prompt(self) -> str:
        """How the model was trained to begin its captions."""
        return str(self.info.get("prompt", ""))

    @property
    def computing(self) -> str:
        """Where and in what numbers it computes, in a few words."""
        numbers = str(self.dtype).removeprefix("torch.")
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' * (count != 1)}" if self.device.type == "cpu" else ""
        return f"{self.device}, {numbers}{threads}"

    # Pictures ---------------------------------------------------------------------------------------------

    def batches(self, pictures: Pictures | Iterable[Picture] | PictureBatch) -> Iterator[PictureBatch]:
        """Decoded batches of pictures, some ahead of their use; what cannot be read is in `broken`."""
        if isinstance(pictures, PictureBatch):
            yield pictures
            return
        yield from decoded(as_pictures(cast(Pictures, pictures)), self._transform, batch_size=self.batch_size)

    def whole(self, pictures: Pictures | PictureBatch) -> Iterator[PictureBatch]:
        """`batches`, where a picture that cannot be read is an error, unless a batch was handed over."""
        for batch in self.batches(pictures):
            if batch.broken and batch is not pictures:
                broken = batch.broken[0]
                name = "a picture" if broken.key.startswith("#") else broken.key
                raise UserError(f"{name} cannot be used ({broken.cause}): {broken.detail}")
            yield batch

    def pixels(self, pictures: Pictures) -> Tensor:
        """Decoded and resized pictures, uint8 [B, 3, H, W].

        Raises:
            UserError: one cannot be read; names it.
        """
        return torch.cat([batch.pixels for batch in self.whole(pictures)])

    @torch.no_grad()
    def encode(self, batch: PictureBatch) -> Tensor:
        """image_embeds [B, N, Dv] of a batch."""
        return self.model.encode_image(normalize(batch.pixels.to(self.device), self.dtype))

    @torch.no_grad()
    def remember(self, pictures: Pictures | PictureBatch) -> ImageMemory:
        """The memory of pictures that fit into one batch."""
        (batch,) = self.whole(pictures)
        return self.model.remember(self.encode(batch))

    # Captions ---------------------------------------------------------------------------------------------

    def caption(
        self,
        pictures: Pictures | PictureBatch,
        config: DecodeConfig | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
    ) -> list[list[Caption]]:
        """Write captions: for each picture `config.num_sequences` of them.

        Args:
            config: None is beam search with 3 beams, 5 to 20 new tokens.
            prompt: how captions begin, one for all or one for each picture; None is what it was trained with.
        """
        model = self._need(Blip, "captions")
        begin = self.prompt if prompt is None else prompt
        self._check_prompt(begin)
        captions: list[list[Caption]] = []
        for batch in self.whole(pictures):
            # Sampling is keyed by the picture's name, so that a picture's texts do not depend on its batch.
            keys = torch.tensor([stable_id(Path(name).name) for name in batch.names], device=self.device)
            start = [begin] * len(batch) if isinstance(begin, str) else list(begin[len(captions) :])[: len(batch)]
            if len(start) < len(batch):
                raise UserError(
                    f"there are {len(begin)} prompts, but more pictures; give one for each, or one for all"
                )
            memory = model.remember(self.encode(batch))
            captions += write_captions(model, self.tokenizer, memory, config or CAPTIONS, prompts=start, keys=keys)
        return captions

    def log_likelihood(
        self, pictures: Pictures | PictureBatch, texts: Texts, *, prompt: str | None = None
    ) -> list[list[Likelihood]]:
        """How likely the model finds given captions, in the order given; a picture's memory is projected once."""
        model = self._need(Blip, "likelihoods of captions")
        begin = self.prompt if prompt is None else prompt
        own = OwnTexts.of(texts)
        self.check_texts((text for group in own.groups for text in group), wordless=True)
        results: list[list[Likelihood]] = []
        for batch in self.whole(pictures):
            memory = model.remember(self.encode(batch))
            for rows, group in own.share(len(results), len(batch)):
                part = memory if len(rows) == len(batch) else memory.select(torch.tensor(rows, device=self.device))
                scores, lengths = score_captions(model, self.tokenizer, part, group, prompt=begin)
                for row, shares in zip(scores.tolist(), scores.softmax(1).tolist(), strict=True):
                    parts = zip(group, row, lengths.tolist(), shares, strict=True)
                    results.append([Likelihood(*values) for values in parts])
        own.check(len(results))
        return results

    def rank_captions(
        self, pictures: Pictures | PictureBatch, texts: Texts, *, prompt: str | None = None
    ) -> list[list[Likelihood]]:
        """`log_likelihood`, the likeliest text first."""
        scored = self.log_likelihood(pictures, texts, prompt=prompt)
        return [sorted(row, key=lambda likelihood: -likelihood.log_prob) for row in scored]

    # Matching ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def match(self, pictures: Pictures | PictureBatch, texts: Texts) -> list[list[Match]]:
        """Match pictures with texts; a picture is encoded and its memory projected once."""
        model = self._need(Blip, "matching")
        self._embeds()  # refuses a model that only writes
        own = OwnTexts.of(texts)
        results: list[list[Match]] = []
        for batch in self.whole(pictures):
            embeds = self.encode(batch)
            image_features = model.image_features(embeds).float()
            for rows, group in own.share(len(results), len(batch)):
                tokens, features = self.embedded_texts(group)
                cosine = (image_features[rows] @ features.T).cpu().tolist()
                pairs = torch.tensor([(text, row) for row in rows for text in range(len(group))]).view(-1, 2)
                logits = match_logits(model, self.tokenizer, embeds, tokens, pairs, first=self.first)
                probability = match_probability(logits).view(len(rows), len(group)).tolist()
                for row, similar in zip(probability, cosine, strict=True):
                    results.append([Match(*values) for values in zip(group, row, similar, strict=True)])
        own.check(len(results))
        return results

    @torch.no_grad()
    def embed_images(self, pictures: Pictures | PictureBatch) -> Tensor:
        """Normalised embeddings for ITC, float32 [B, E] on the CPU."""
        model = self._embeds()
        rows = [model.image_features(self.encode(batch)).float().cpu() for batch in self.whole(pictures)]
        return torch.cat(rows) if rows else torch.empty(0, model.config.embed_dim)

    @torch.no_grad()
    def embed_texts(self, texts: str | Sequence[str]) -> Tensor:
        """Normalised embeddings for ITC, float32 [C, E] on the CPU."""
        many = [texts] if isinstance(texts, str) else list(texts)
        return self.embedded_texts(many)[1].cpu() if many else torch.empty(0, self._embeds().config.embed_dim)

    def _embeds(self) -> Blip | BlipDual:
        if isinstance(self.model, BlipDual):
            return self.model
        model = self._need(Blip, "embeddings")
        assert model.encoder is not None
        return model

    def embedded_texts(self, texts: Sequence[str]) -> tuple[TokenBatch, Tensor]:
        """Ids and normalised features of texts; those of the last call are kept, for the next batch of pictures."""
        if self._last_texts is None or self._last_texts[0] != tuple(texts):
            self.check_texts(texts)
            cleaned = [self.clean(text) for text in texts]
            read = embed_texts(self._embeds(), self.tokenizer, cleaned)
            self._last_texts = (tuple(texts), *read)
        return self._last_texts[1:]

    # Questions --------------------------------------------------------------------------------------------

    def answer(
        self,
        pictures: Pictures | PictureBatch,
        questions: Texts,
        candidates: Sequence[str] | None = None,
        *,
        config: DecodeConfig | None = None,
        keep: int = 128,
    ) -> list[list[Answered]]:
        """Answer questions about pictures; a picture is read once for all questions about it.

        Args:
            candidates: the answers to choose from, ranked by likelihood; None writes answers freely.
            config: how answers are written; None is beam search with 3 beams, up to 10 new tokens.
            keep: candidates that are read whole, chosen by their first token.
        """
        model = self._need(BlipVqa, "answers")
        own = OwnTexts.of(questions)
        self.check_texts(text for group in own.groups for text in group)
        if candidates is not None:
            if not candidates:
                raise UserError("there are no answers to choose from; name some, or none at all to write freely")
            self.check_texts(candidates, wordless=True)
        results: list[list[Answered]] = []
        for batch in self.whole(pictures):
            memory = model.remember(self.encode(batch))
            for rows, group in own.share(len(results), len(batch)):
                part = memory if len(rows) == len(batch) else memory.select(torch.tensor(rows, device=self.device))
                cleaned = [self.clean(text, clean_question) for text in group] * len(rows)
                asked = self.tokenizer.encode(cleaned, first=self.first).to(self.device)
                read = answering.ask(model, part, asked, read_padding=self._like_transformers)
                if candidates is None:
                    found = answering.write_answers(model, self.tokenizer, read, config or ANSWERS)
                else:
                    found = answering.rank_answers(model, self.tokenizer, read, candidates, keep=keep)
                answered = [Answered(text, one) for text, one in zip([*group] * len(rows), found, strict=True)]
                results += [answered[i : i + len(group)] for i in range(0, len(answered), len(group))]
        own.check(len(results))
        return results

    @torch.no_grad()
    def judge(self, first: Pictures, second: Pictures, texts: str | Sequence[str]) -> list[Judgement]:
        """Whether a sentence is true of two pictures, for each pair; one sentence for all pairs or one for each."""
        model = self._need(BlipNlvr, "judging pairs of pictures")
        results: list[Judgement] = []
        for left, right in zip_longest(self.whole(first), self.whole(second), fillvalue=PictureBatch()):
            count = len(left)
            own = [texts] * count if isinstance(texts, str) else list(texts)[len(results) : len(results) + count]
            if len(right) != count or len(own) != count:
                raise UserError("judge takes as many second pictures as first ones, and one text for each pair")
            self.check_texts(own)
            pairs = torch.stack((self.encode(left), self.encode(right)), dim=1)
            tokens = self.tokenizer.encode([self.clean(text) for text in own], first=self.first).to(self.device)
            logits = model.classify(tokens.input_ids, tokens.attention_mask, model.remember(pairs)).float()
            results += [Judgement(*values) for values in zip(own, logits.softmax(1)[:, 1].tolist(), strict=True)]
        return results

    # Search -----------------------------------------------------------------------------------------------

    def retrieve_images(
        self,
        pictures: Pictures,
        queries: Sequence[str],
        *,
        top: int = 5,
        rerank_k: int = 32,
        broken: list[BrokenSample] | None = None,
    ) -> list[list[Found]]:
        """The `top` pictures for each text: ITC over all, then ITM over the best `rerank_k` (0: ITC alone).

        Args:
            broken: receives the pictures that cannot be read, which are then left out; None makes them an error.
        """
        many = as_pictures(pictures)
        return finding.retrieve_images(self, many, queries, top=top, rerank_k=rerank_k, broken=broken)

    def retrieve_texts(
        self, picture: Pictures, texts: Sequence[str], *, top: int = 5, rerank_k: int = 32
    ) -> list[Found]:
        """The `top` texts for a picture, likewise."""
        return finding.retrieve_texts(self, picture, texts, top=top, rerank_k=rerank_k)

    # What is refused --------------------------------------------------------------------------------------

    def _need(self, kind: type[_Kind], what: str) -> _Kind:
        if not isinstance(self.model, kind):
            raise UserError(f"this is {describe(self.model.config)}; {what} need {_NEEDED[kind]}")
        return self.model

    def clean(self, text: str, clean: Callable[..., str] = clean_caption) -> str:
        """A text as the model saw texts in training."""
        how = self.info.get("clean", "simplify")
        return text if how == "none" else clean(text, None, simplify=how == "simplify")

    def check_texts(self, texts: Iterable[str], *, wordless: bool = False) -> None:
        """Refuse texts that the model cannot read: longer than it takes, all unknown to it, or without a word.

        Args:
            wordless: accept texts without a word.
        """
        limit, unknown = self.model.config.text.max_positions, self.tokenizer.unk_id
        for text in texts:
            ids = self.tokenizer.encode([self.clean(text)]).input_ids[0]
            if len(ids) <= 2 and not wordless:  # [CLS] and [SEP]
                raise UserError(f'the text {_short(text)} holds no word; give one such as "a red bus"')
            if len(ids) > limit:
                raise UserError(
                    f"the text {_short(text)} has {len(ids)} tokens, and the model takes {limit}; shorten it"
                )
            if unknown is not None and len(ids) > 2 and bool((ids[1:-1] == unknown).all()):
                raise UserError(
                    f"the model's vocabulary has no word of {_short(text)}; is it in the language it learned?"
                )

    def _check_prompt(self, prompt: str | Sequence[str]) -> None:
        unknown = self.tokenizer.unk_id
        for text in {prompt} if isinstance(prompt, str) else set(prompt):
            pieces = self.tokenizer.encode([text], end=False).input_ids[0, 1:]
            if unknown is not None and bool((pieces == unknown).any()):
                raise UserError(
                    f"the model cannot begin with {_short(text)}: its vocabulary lacks part of it; write the "
                    "prompt in the language that the model learned"
                )


_NEEDED: dict[type, str] = {
    Blip: "a BLIP pre-training, captioning or matching model",
    BlipVqa: "a BLIP VQA model (openblip finetune vqa makes one)",
    BlipNlvr: "a BLIP NLVR2 model",
    BlipDual: "a two-tower model",
}


def _short(text: str) -> str:
    return f'"{text[:40]}..."' if len(text) > 43 else f'"{text}"'
