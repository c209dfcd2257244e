"""The BLIP-2 family: a Q-Former over a frozen tower, and a frozen language model after stage 2.

A model of stage 1 matches, and generates with the Q-Former's own language head (ITG). A language model generates,
scores and answers: a decoder continues from soft prompts and prompt, an encoder-decoder reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.recognise import describe, family_of
from openblip.checkpoints.state import find
from openblip.checkpoints.store import open_model
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.sharing import joint
from openblip.core.text import refuse_broken
from openblip.core.tokenizer import TokenBatch
from openblip.data.clean import clean_question
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.generation.language import decode_after, score_after
from openblip.generation.types import Watch
from openblip.models.blip2 import Blip2, best_query
from openblip.models.layers import ImageMemory, KVCache
from openblip.models.stepper import QFormerStepper
from openblip.objectives.language import language_loss, language_targets
from openblip.tasks.config import CAPTION_PROMPT, QUESTION_PROMPTS
from openblip.tasks.protocols import Adapter
from openblip.tasks.results import Answer, Caption, captions_of, written_answers

__all__ = ["Asked", "Blip2Adapter", "open_blip2"]

CHAT_QUESTION = "{} Answer with a single word or phrase."
"""how a model tuned on conversations is asked"""
INSTRUCTION = "A short image caption."
"""for captions of a model that was tuned on instructions, as LAVIS measures InstructBLIP on NoCaps"""


@dataclass(frozen=True)
class Asked:
    """Questions as a language model reads them."""

    soft: Tensor
    """soft prompts [R, Q, L]"""
    prompts: list[str]


class Blip2Adapter(Adapter):
    """A `Blip2` of either stage; texts to match begin with [CLS]."""

    family = "blip2"
    captioning = DecodeConfig(num_beams=5, max_new_tokens=30)
    model: Blip2

    @property
    def can(self) -> frozenset[str]:
        """Query features; matching with stage 1's heads; captions with a language model or ITG's head; answers and
        likelihoods with a language model."""
        able = {"features"}
        if self.model.config.matches:
            able |= {"match", "embed", "explain"}
        if self.model.language is not None:
            able |= {"caption", "likelihood", "answer"}
        elif self.model.qformer.head is not None:
            able |= {"caption"}
        return frozenset(able)

    @property
    def records_steps(self) -> bool:
        """As `Adapter.records_steps`: what a decoder writes that is not quantized."""
        llm = self.model.language
        return llm is not None and not llm.is_encoder_decoder and llm.config.quantize == "none"

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.vision_norm.weight.device

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Pixels that the vision tower reads."""
        return self.model.vision.pixels

    @property
    def max_positions(self) -> int:
        """Tokens of a text that the Q-Former reads."""
        return self.model.config.qformer.max_positions

    @property
    def prompt(self) -> str:
        """How captions begin: as the model was trained, "a photo of" for published ones; or its instruction."""
        usual = INSTRUCTION if self.reads_prompts else CAPTION_PROMPT
        prompt = str(self.info.get("prompt", usual))
        return usual if "{}" in prompt else prompt

    @property
    def question_prompt(self) -> str:
        """How the language model is asked, the question in place of {}; "" without one."""
        if self.model.language is None:
            return ""
        prompt = str(self.info.get("prompt", ""))
        if "{}" not in prompt and self._chats(asks=True):
            return CHAT_QUESTION
        if "{}" in prompt:
            return prompt
        return QUESTION_PROMPTS[self.model.llm.is_encoder_decoder or self.reads_prompts]

    @property
    def answering(self) -> DecodeConfig:
        """As `Adapter.answering`: encoder-decoders and InstructBLIP are to give short answers, others any."""
        encodes = self.model.language is not None and self.model.llm.is_encoder_decoder
        short = encodes or self.reads_prompts
        return DecodeConfig(num_beams=5, max_new_tokens=10, length_penalty=-1.0 if short else 0.0)

    def move(self, device: torch.device, dtype: torch.dtype) -> None:
        """As `Adapter.move`; a frozen part that has a dtype of its own keeps it."""
        model = self.model
        for part in model.children():
            if part is model.language or any(p.dtype != torch.float32 for p in part.parameters()):
                continue
            if part is model.vision:
                model.vision.to_dtype(dtype)
            else:
                part.to(dtype)
        if model.language is not None and model.language.may_change_dtype:
            model.language.to_dtype(dtype)
        model.to(device).eval()

    def extra_metrics(self, batches: Callable[[], Iterable[Any]], *, max_length: int) -> dict[str, float]:
        """Perplexity of the own texts under the Q-Former's language head ("itg_perplexity")."""
        if self.model.qformer.head is None:
            return {}
        found = [(0.0, 0)]
        for batch in batches():
            memory = self.remember(self.encode(batch.images))
            text = self.tokens(batch.texts, max_length=max_length)
            own = memory.select(batch.image_index.to(self.device))
            sums, counts = itg_log_likelihood(self.model, text, own, self.tokenizer.dec_id)
            found.append((float(sums.sum()), int(counts.sum())))
        total, count = (sum(values) for values in zip(*joint(found), strict=True))
        return {"itg_perplexity": math.exp(-total / max(count, 1))}

    @torch.no_grad()
    def tower_features(self, pixels: Tensor) -> Tensor:
        """As `Adapter.tower_features`, before the LayerNorm that is trained."""
        return self.model.vision(self.model.vision.normalize(pixels.to(self.device)))

    @torch.no_grad()
    def embeds_of(self, tower_features: Tensor) -> Tensor:
        """As `Adapter.embeds_of`."""
        return self.model.normalize_features(tower_features)

    # Matching ---------------------------------------------------------------------------------------------

    @property
    def embed_dim(self) -> int:
        """E."""
        return self.model.config.embed_dim

    def image_features(self, image_embeds: Tensor) -> Tensor:
        """As `Matches.image_features`: normalised [B, Q, E], one for each query."""
        return self.model.image_features(self.model.read_image(self.model.remember(image_embeds)))

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """As `Matches.text_features`."""
        return self.model.text_features(input_ids, attention_mask)

    def similarities(self, text_features: Tensor, image_features: Tensor) -> Tensor:
        """As `Matches.similarities`: that of the query which fits the text best."""
        return best_query(image_features, text_features).T

    @property
    def similarity_scale(self) -> float:
        """As `Matches.similarity_scale`."""
        return 1 / self.model.temperature.item()

    def match(self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory) -> Tensor:
        """As `Matches.match`."""
        return self.model.match(input_ids, attention_mask, memory)

    @torch.no_grad()
    def query_features(self, image_embeds: Tensor, texts: Sequence[str] | None = None) -> Tensor:
        """Query outputs [B, Q, D]; with B `texts`, which the queries then see too, multimodal ones."""
        memory = self.remember(image_embeds)
        if texts is None:
            return self.model.read_image(memory)
        if self.tokenizer is None:
            raise UserError("multimodal features need a model of stage 1, which reads texts")
        tokens = self.tokens([self.clean(text) for text in texts])
        return self.model.qformer.read_pair(tokens.input_ids, tokens.attention_mask, memory)

    # Generating -------------------------------------------------------------------------------------------

    @property
    def llm_tokenizer(self) -> LanguageTokenizer:
        """The tokenizer of the language model, or one sentence when there is none."""
        if self.language_tokenizer is None:
            raise UserError(f"this is {describe(self.model.config)}; it needs a language model, as after stage 2")
        return self.language_tokenizer

    def _chats(self, *, asks: bool) -> bool:
        """Whether prompts are put into a user's turn: see `LanguageConfig.chat`."""
        chat = self.model.llm.config.chat
        own = "{}" in str(self.info.get("prompt", ""))
        free = chat == "auto" and asks and not own and not self.model.llm.is_encoder_decoder
        known = self.language_tokenizer  # None where a model is only predicted
        return chat == "yes" or (free and known is not None and known.has_chat)

    def _placed(self, prompts: Sequence[str], *, asks: bool = False) -> list[str]:
        """Prompts as the language model reads them."""
        chat = self._chats(asks=asks)
        return [self.llm_tokenizer.placed(text, chat=chat) for text in prompts]

    def generate(
        self,
        memory: ImageMemory,
        config: DecodeConfig,
        prompts: Sequence[str],
        keys: Tensor | None = None,
        watch: Watch | None = None,
    ) -> list[list[Caption]]:
        """As `Generates.generate`; without a language model the Q-Former generates, without prompts."""
        if self.model.language is None:
            return self._generate_with_qformer(memory, config, keys, watch)
        soft, placed = self._soft(memory, len(prompts), self._prompt_tokens(prompts)), self._placed(prompts)
        llm, words = self.model.llm, self.llm_tokenizer
        how: dict[str, Any] = {"keys": keys, "watch": watch, "states": self.states}
        decoded = decode_after(llm, words, soft, config, prompts=placed, **how)
        return captions_of(decoded, len(prompts), words)

    @torch.no_grad()
    def _generate_with_qformer(
        self, memory: ImageMemory, config: DecodeConfig, keys: Tensor | None, watch: Watch | None
    ) -> list[list[Caption]]:
        if self.model.qformer.head is None:
            raise UserError(
                "this model has neither a language model nor the language head of stage 1; it cannot write"
            )
        start = torch.full((memory.batch_size, 1), self.tokenizer.dec_id, device=self.device)
        stepper, ends = QFormerStepper(self.model.qformer, memory), self.tokenizer.sep_id
        pad = self.tokenizer.pad_id
        decoded = decode(stepper, start, None, config, eos_ids=ends, pad_id=pad, keys=keys, watch=watch)
        return captions_of(decoded, memory.batch_size, self.tokenizer)

    def tokens(self, texts: Sequence[str], **options: Any) -> TokenBatch:
        """As `Adapter.tokens`.

        Raises:
            UserError: a text has a token that the Q-Former has no embedding of: LAVIS' files have none of [ENC].
        """
        read, known = self.tokenizer.encode(texts, **options), self.model.config.qformer.vocab_size
        if known is not None and len(unknown := read.input_ids[read.input_ids >= known]):
            (piece,) = self.tokenizer.tokens(unknown[:1])
            raise UserError(f"a text holds {piece}, a token that this model's Q-Former does not know; leave it out")
        return read.to(self.device)

    def _prompt_tokens(self, prompts: Sequence[str]) -> TokenBatch | None:
        """Prompts as the Q-Former reads them, whole; None where it does not."""
        return self.tokens(prompts) if self.reads_prompts else None

    @torch.no_grad()
    def _soft(self, memory: ImageMemory, rows: int, questions: TokenBatch | None = None) -> Tensor:
        """Soft prompts [R, Q, L]: an image is read once for all its rows, unless each has a text of its own."""
        if questions is not None:
            each_frame = self.reads_prompts  # as LAVIS measures InstructBLIP on videos
            ids, mask = questions.input_ids, questions.attention_mask
            return self.model.soft_prompt(memory, ids, mask, each_frame=each_frame)
        return self.model.soft_prompt(memory).repeat_interleave(rows // memory.batch_size, dim=0)

    def score_own(
        self, memory: ImageMemory, texts: Sequence[str], *, prompt: str = "", max_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Generates.score_own`; texts are read whole."""
        each, prompts = [[self.clean(text)] for text in texts], self._placed([prompt]) * len(texts)
        soft = self._soft(memory, len(texts), self._prompt_tokens([prompt] * len(texts)))
        sums, counts = score_after(self.model.llm, self.llm_tokenizer, soft, each, prompts=prompts)
        return sums[:, 0], counts[:, 0]

    def score_all(self, memory: ImageMemory, texts: Sequence[str], *, prompt: str = "") -> tuple[Tensor, Tensor]:
        """As `Generates.score_all`."""
        images = memory.batch_size
        each = [[self.clean(text) for text in texts]] * images
        soft = self._soft(memory, images, self._prompt_tokens([prompt] * images))
        prompts = self._placed([prompt]) * images
        sums, counts = score_after(self.model.llm, self.llm_tokenizer, soft, each, prompts=prompts)
        return sums, counts[0]

    # Answering --------------------------------------------------------------------------------------------

    @property
    def reads_prompts(self) -> bool:
        """Whether the Q-Former reads the whole prompt, as InstructBLIP's does (Dai et al. 2023, section 3.3)."""
        return self.stored.reads_prompts and self.tokenizer is not None

    @property
    def reads_questions(self) -> bool:
        """Whether the Q-Former was trained to read the question alone too."""
        answers = self.info.get("task") == "answering" and self.tokenizer is not None
        return answers and not self.reads_prompts

    def ask(
        self,
        memory: ImageMemory,
        questions: Sequence[str],
        *,
        prompt: str | None = None,
        max_length: int | None = None,
    ) -> Asked:
        """As `Answers.ask`."""
        cleaned = [clean_question(text) for text in questions] if self.reads_questions else list(questions)
        wording = self.question_prompt if prompt is None else prompt
        prompts = [wording.replace("{}", text) for text in cleaned]
        read = self._prompt_tokens(prompts)
        if self.reads_questions:
            read = self.tokens(cleaned, max_length=max_length)
        prompts = self._placed(prompts, asks=wording == self.question_prompt)
        return Asked(self._soft(memory, len(cleaned), read), prompts)

    def answers(
        self, asked: Asked, config: DecodeConfig, *, keys: Tensor | None = None
    ) -> list[tuple[Answer, ...]]:
        """As `Answers.answers`."""
        return [written_answers(row) for row in self.write_answers(asked, config, keys=keys)]

    def write_answers(
        self, asked: Asked, config: DecodeConfig, *, keys: Tensor | None = None, watch: Watch | None = None
    ) -> list[list[Caption]]:
        """As `Answers.write_answers`."""
        llm, words = self.model.llm, self.llm_tokenizer
        how: dict[str, Any] = {"keys": keys, "watch": watch, "states": self.states}
        decoded = decode_after(llm, words, asked.soft, config, prompts=asked.prompts, **how)
        return captions_of(decoded, len(asked.prompts), words)

    def measured_question(self, text: str) -> str:
        """As `Answers.measured_question`: as LAVIS does zero-shot; who was trained on questions reads those."""
        how = self.info.get("clean", "simplify")
        if self.info.get("task") == "answering" or how == "none":
            return text
        return clean_question(text, simplify=how == "simplify")

    def rank(
        self, asked: Asked, candidates: Sequence[str], *, keep: int = 128, label_smoothing: float = 0.0
    ) -> list[tuple[Answer, ...]]:
        """As `Answers.rank`; all candidates are read whole. No language model is trained with label smoothing."""
        assert label_smoothing == 0, "a language model's answers are ranked by likelihood"
        each = [list(candidates)] * len(asked.prompts)
        sums, _ = score_after(self.model.llm, self.llm_tokenizer, asked.soft, each, prompts=asked.prompts)
        return [_ranked(candidates, row) for row in sums.tolist()]

    # What is refused --------------------------------------------------------------------------------------

    def check_captions(self, texts: Iterable[str], *, prompt: str = "") -> None:
        """A language model reads any text that is Unicode."""
        refuse_broken(texts)

    def check_questions(self, questions: Iterable[str], candidates: Sequence[str] = ()) -> None:
        """A language model reads any question that is Unicode; the Q-Former those in its vocabulary."""
        questions = list(questions)
        refuse_broken([*questions, *candidates])
        if self.reads_questions:
            self.check_texts(questions)
        elif self.reads_prompts:
            self.check_texts(questions, wordless=True)

    def check_prompt(self, prompts: Iterable[str], *, remedy: str = "") -> None:
        """A language model begins with any prompt that is Unicode; InstructBLIP's Q-Former reads it too."""
        prompts = list(prompts)
        refuse_broken(prompts)
        if self.reads_prompts:
            self.check_texts(prompts, wordless=True)


@torch.no_grad()
def itg_log_likelihood(model: Blip2, text: TokenBatch, memory: ImageMemory, dec_id: int) -> tuple[Tensor, Tensor]:
    """Log-likelihood [R] of texts under the Q-Former's own head, one for each image, and how many tokens count."""
    cache = KVCache()
    model.read_image(memory, cache)
    ids = text.input_ids.clone()
    ids[:, 0] = dec_id
    targets = language_targets(ids, text.attention_mask)
    logits = model.write(ids, text.attention_mask, cache)
    scores = -language_loss(logits, targets, label_smoothing=0.0, per_text=True)
    return scores, text.attention_mask[:, 1:].sum(1)


def _ranked(texts: Sequence[str], log_probs: Sequence[float]) -> tuple[Answer, ...]:
    """Candidates, the likeliest first, with their shares of probability."""
    shares = torch.tensor(log_probs).softmax(0).tolist()
    found = [Answer(*values) for values in zip(texts, log_probs, shares, strict=True)]
    return tuple(sorted(found, key=lambda answer: -answer.log_prob))


def open_blip2(source: Path | str, tokenizer: str | None = None, **options: Any) -> Blip2Adapter:
    """Open a BLIP-2 model from anywhere; `tokenizer` and `options` as for `open_model`.

    Raises:
        UserError: as `open_model`, or it is a model of another kind.
    """
    other = UserError(f"{source} is no BLIP-2 model; one with a Q-Former is needed")
    if Path(source).is_dir() and family_of(find(str(source))) != "blip2":
        raise other  # before anything is said of its image size
    stored = open_model(source, tokenizer=tokenizer, **options)
    if not isinstance(stored.model, Blip2):
        raise other
    language_tokenizer, ignored = stored.language_tokenizer, stored.ignored
    return Blip2Adapter(
        stored.model, stored.tokenizer, stored.info, language_tokenizer=language_tokenizer, ignored=ignored
    )
