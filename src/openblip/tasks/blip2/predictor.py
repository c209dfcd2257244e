"""A BLIP-2 model in a few words, as `tasks.predictor` gives a BLIP: caption, answer, match, embed, search.

    model = openblip.load("runs/stage2/model")
    model.caption("a.jpg")                                            # prompt "a photo of" unless trained otherwise
    model.answer("a.jpg", "what color is the bus?")                   # "Question: {} Answer:"
    model = openblip.load("runs/stage1/model")
    model.match("a.jpg", ["a red bus", "two dogs"])

The embedding of a picture is one vector for each query; its similarity with a text is that of the query which fits
the text best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.recognise import describe
from openblip.checkpoints.store import StoredModel
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.tokenizer import TokenBatch
from openblip.data.pictures import PictureBatch, Pictures
from openblip.data.sample import stable_id
from openblip.data.transforms import clean_question, evaluation_transform, normalize
from openblip.generation.types import DecodeConfig
from openblip.models.blip2 import Blip2, best_query
from openblip.models.layers import ImageMemory
from openblip.tasks.answering import Answer, Answered
from openblip.tasks.blip2.evaluate import Matcher
from openblip.tasks.blip2.recipes import PROMPT
from openblip.tasks.blip2.write import log_likelihood, write_texts, write_with_qformer
from openblip.tasks.caption import Caption
from openblip.tasks.predictor import Predictor
from openblip.tasks.results import Likelihood, Match
from openblip.tasks.retrieval import match_logits, match_probability
from openblip.tasks.texts import OwnTexts, Texts

__all__ = ["Blip2Predictor"]

CAPTIONS = DecodeConfig(num_beams=5, max_new_tokens=30)
ANSWERS = DecodeConfig(num_beams=5, max_new_tokens=10, length_penalty=0.0)
QUESTIONS = {False: "Question: {} Answer:", True: "Question: {} Short answer:"}
"""how a decoder, and an encoder-decoder, is asked"""


class Blip2Predictor(Predictor):
    """A BLIP-2 model with what it needs to be used.

    Args:
        dtype: of what is kept in float32; a frozen part that has a dtype of its own keeps it.
    """

    def __init__(
        self,
        stored: StoredModel,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> None:
        self.stored, self.device, self.dtype, self.batch_size = stored, torch.device(device), dtype, batch_size
        model: Blip2 = stored.model
        for part in model.children():
            if part is not model.language and all(p.dtype == torch.float32 for p in part.parameters()):
                part.to(dtype)
        if model.language is not None and model.language.may_change_dtype:
            model.language.to(dtype)
        self.model = model.to(self.device).eval()
        self.tokenizer: Any = stored.tokenizer
        self.info, self.ignored = stored.info, list(stored.ignored)
        self.first = "cls"
        self._transform = evaluation_transform(model.vision.pixels)
        self._last_texts = None

    @property
    def words(self) -> LanguageTokenizer:
        """The tokenizer of the language model, or a clear word when there is none."""
        if self.stored.language_tokenizer is None:
            raise UserError(
                f"this is {describe(self.model.config)}; answers need a language model, as after stage 2"
            )
        return self.stored.language_tokenizer

    @property
    def prompt(self) -> str:
        """How captions begin: as the model was trained, "a photo of" for published ones."""
        prompt = str(self.info.get("prompt", PROMPT))
        return PROMPT if "{}" in prompt else prompt

    @property
    def question_prompt(self) -> str:
        """How the language model is asked, the question in place of {}."""
        prompt = str(self.info.get("prompt", ""))
        return prompt if "{}" in prompt else QUESTIONS[self.model.llm.is_encoder_decoder]

    @property
    def matcher(self) -> Any:
        """The model as what `tasks.retrieval` asks of one that matches."""
        if not self.model.config.matches:
            raise UserError(f"this is {describe(self.model.config)}; matching needs the heads of stage 1")
        return Matcher(self.model, self.tokenizer)

    def _embeds(self) -> Any:
        return self.matcher

    @torch.no_grad()
    def encode(self, batch: PictureBatch) -> Tensor:
        """image_embeds [B, N, Dv] of a batch."""
        vision = self.model.vision
        return self.model.encode_image(
            normalize(batch.pixels.to(self.device), vision.dtype, mean=vision.mean, std=vision.std)
        )

    # Captions ---------------------------------------------------------------------------------------------

    def caption(
        self,
        pictures: Pictures | PictureBatch,
        config: DecodeConfig | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
    ) -> list[list[Caption]]:
        """Write captions with the language model, after stage 1 with the Q-Former; as `Predictor.caption`.

        Args:
            config: None is beam search with 5 beams, up to 30 new tokens.
        """
        begin = self.prompt if prompt is None else prompt
        captions: list[list[Caption]] = []
        for batch in self.whole(pictures):
            keys = torch.tensor([stable_id(Path(name).name) for name in batch.names], device=self.device)
            memory = self.model.remember(self.encode(batch))
            if self.model.language is None:
                captions += write_with_qformer(self.model, self.tokenizer, memory, config or CAPTIONS, keys=keys)
                continue
            start = [begin] * len(batch) if isinstance(begin, str) else list(begin[len(captions) :])[: len(batch)]
            if len(start) < len(batch):
                raise UserError(
                    f"there are {len(begin)} prompts, but more pictures; give one for each, or one for all"
                )
            captions += write_texts(self.model, self.words, memory, config or CAPTIONS, prompts=start, keys=keys)
        return captions

    def log_likelihood(
        self, pictures: Pictures | PictureBatch, texts: Texts, *, prompt: str | None = None
    ) -> list[list[Likelihood]]:
        """How likely the language model finds given captions, in the order given."""
        begin = self.prompt if prompt is None else prompt
        own = OwnTexts.of(texts)
        results: list[list[Likelihood]] = []
        for batch in self.whole(pictures):
            memory = self.model.remember(self.encode(batch))
            for rows, group in own.share(len(results), len(batch)):
                part = self._part(memory, rows)
                sums, counts = log_likelihood(
                    self.model, self.words, part, [group] * len(rows), prompts=[begin] * len(rows)
                )
                for row, shares, lengths in zip(
                    sums.tolist(), sums.softmax(1).tolist(), counts.tolist(), strict=True
                ):
                    values = zip(group, row, lengths, shares, strict=True)
                    results.append([Likelihood(*value) for value in values])
        own.check(len(results))
        return results

    def _part(self, memory: ImageMemory, rows: Sequence[int]) -> ImageMemory:
        return memory if len(rows) == memory.batch_size else memory.select(torch.tensor(rows, device=self.device))

    # Questions --------------------------------------------------------------------------------------------

    def answer(
        self,
        pictures: Pictures | PictureBatch,
        questions: Texts,
        candidates: Sequence[str] | None = None,
        *,
        config: DecodeConfig | None = None,
        keep: int = 128,
        prompt: str | None = None,
    ) -> list[list[Answered]]:
        """Answer questions; as `Predictor.answer`.

        Args:
            config: None is beam search with 5 beams, up to 10 new tokens, scores divided by no length.
            keep: all candidates are read whole here.
            prompt: how the language model is asked, with {} in place of the question.
        """
        if candidates is not None and not candidates:
            raise UserError("there are no answers to choose from; name some, or none at all to write freely")
        words, own = self.words, OwnTexts.of(questions)
        asked = self.question_prompt if prompt is None else prompt
        results: list[list[Answered]] = []
        for batch in self.whole(pictures):
            memory = self.model.remember(self.encode(batch))
            for rows, group in own.share(len(results), len(batch)):
                part, number = self._part(memory, rows), len(rows)
                cleaned = [clean_question(text) if self._trained_on_questions else text for text in group] * number
                prompts = [asked.replace("{}", text) for text in cleaned]
                read = self._read_by_qformer(cleaned)
                if candidates is None:
                    written = write_texts(
                        self.model, words, part, config or ANSWERS, prompts=prompts, questions=read
                    )
                    found = [_answers([c.text for c in row], [c.log_prob for c in row]) for row in written]
                else:
                    sums, _ = log_likelihood(
                        self.model, words, part, [list(candidates)] * len(prompts), prompts=prompts, questions=read
                    )
                    found = [_answers(list(candidates), row) for row in sums.tolist()]
                answered = [Answered(text, one) for text, one in zip([*group] * number, found, strict=True)]
                results += [answered[i : i + len(group)] for i in range(0, len(answered), len(group))]
        own.check(len(results))
        return results

    @property
    def _trained_on_questions(self) -> bool:
        return self.info.get("task") == "questions" and self.tokenizer is not None

    def _read_by_qformer(self, questions: Sequence[str]) -> TokenBatch | None:
        return self.tokenizer.encode(questions).to(self.device) if self._trained_on_questions else None

    # Matching and features --------------------------------------------------------------------------------

    @torch.no_grad()
    def match(self, pictures: Pictures | PictureBatch, texts: Texts) -> list[list[Match]]:
        """Match pictures with texts by ITM and ITC; a picture is encoded and its memory projected once."""
        matcher, own = self.matcher, OwnTexts.of(texts)
        results: list[list[Match]] = []
        for batch in self.whole(pictures):
            embeds = self.encode(batch)
            image_features = matcher.image_features(embeds).float()
            for rows, group in own.share(len(results), len(batch)):
                tokens, features = self.embedded_texts(group)
                cosine = best_query(image_features[rows], features).cpu().tolist()
                pairs = torch.tensor([(text, row) for row in rows for text in range(len(group))]).view(-1, 2)
                logits = match_logits(matcher, self.tokenizer, embeds, tokens, pairs, first="cls")
                probability = match_probability(logits).view(len(rows), len(group)).tolist()
                for row, similar in zip(probability, cosine, strict=True):
                    results.append([Match(*values) for values in zip(group, row, similar, strict=True)])
        own.check(len(results))
        return results

    @torch.no_grad()
    def embed_images(self, pictures: Pictures | PictureBatch) -> Tensor:
        """Normalised embeddings for ITC, one for each query: float32 [B, Q, E] on the CPU."""
        matcher, qformer = self.matcher, self.model.config.qformer
        rows = [matcher.image_features(self.encode(batch)).float().cpu() for batch in self.whole(pictures)]
        return torch.cat(rows) if rows else torch.empty(0, qformer.num_queries, self.model.config.embed_dim)

    def similarities(self, texts: Tensor, images: Tensor) -> Tensor:
        """Of text embeddings [C, E] with those of images [I, Q, E], [C, I]."""
        return best_query(images, texts).T

    @torch.no_grad()
    def features(self, pictures: Pictures | PictureBatch, texts: Sequence[str] | None = None) -> Tensor:
        """The Q-Former's query outputs, float32 [B, Q, D] on the CPU.

        Args:
            texts: one for each picture, which the queries then see too (multimodal features).
        """
        rows: list[Tensor] = []
        done = 0
        for batch in self.whole(pictures):
            memory = self.model.remember(self.encode(batch))
            if texts is None:
                found = self.model.read_image(memory)
            else:
                own = [self.clean(text) for text in texts[done : done + len(batch)]]
                if len(own) < len(batch) or self.tokenizer is None:
                    raise UserError("multimodal features need one text for each picture, and a model of stage 1")
                tokens = self.tokenizer.encode(own).to(self.device)
                found = self.model.qformer.read_pair(tokens.input_ids, tokens.attention_mask, memory)
            done += len(batch)
            rows.append(found.float().cpu())
        return torch.cat(rows)

    # What is refused --------------------------------------------------------------------------------------

    def check_texts(self, texts: Iterable[str], *, wordless: bool = False) -> None:
        """Refuse texts that the Q-Former cannot read, as `Predictor.check_texts`."""
        assert self.tokenizer is not None
        limit, unknown = self.model.config.qformer.max_positions, self.tokenizer.unk_id
        for text in texts:
            ids = self.tokenizer.encode([self.clean(text)]).input_ids[0]
            if len(ids) <= 2 and not wordless:  # [CLS] and [SEP]
                raise UserError(f'the text "{text[:40]}" holds no word; give one such as "a red bus"')
            if len(ids) > limit:
                raise UserError(f"a text has {len(ids)} tokens, and the Q-Former takes {limit}; shorten it")
            if unknown is not None and len(ids) > 2 and bool((ids[1:-1] == unknown).all()):
                raise UserError(f'the model\'s vocabulary has no word of "{text[:40]}"; is it in its language?')


def _answers(texts: list[str], log_probs: list[float]) -> tuple[Answer, ...]:
    """Answers, the likeliest first, with their shares of certainty."""
    shares = torch.tensor(log_probs).softmax(0).tolist()
    found = [Answer(*values) for values in zip(texts, log_probs, shares, strict=True)]
    return tuple(sorted(found, key=lambda answer: -answer.log_prob))
