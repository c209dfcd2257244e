"""What a task asks of a model, whatever its family: `Encodes`, `Matches`, `Composes`, `Generates`, `Answers`,
`Discusses`, `Judges`.

A family gives an adapter for each of its models (`tasks.families`): an `Adapter` with the protocols that its `can`
names. Tasks, predictor and evaluation are written against these and know no family.

Shapes: B images, N image tokens, Dv vision width, R rows (texts, rows of one image together), E joint width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NoReturn, Protocol

import torch
from torch import Tensor

from openblip.checkpoints.recognise import describe
from openblip.checkpoints.store import StoredModel
from openblip.core.errors import UserError
from openblip.core.tokenizer import First, TextTokenizer, TokenBatch
from openblip.data.clean import clean_caption
from openblip.generation.config import DecodeConfig
from openblip.generation.types import Watch
from openblip.models.layers import ImageMemory
from openblip.models.replay import FixedStates
from openblip.tasks.config import FamilyName
from openblip.tasks.results import Answer, Caption

__all__ = ["Adapter", "Answers", "Composes", "Discusses", "Encodes", "Generates", "Judges", "Matches"]

NEEDS = {
    "caption": "captions need a BLIP model with a decoder, or a BLIP-2 model",
    "likelihood": "likelihoods of captions need a BLIP model with a decoder, or a BLIP-2 model of stage 2",
    "match": "matching needs a BLIP pre-training or retrieval model, or a BLIP-2 model of stage 1",
    "embed": "embeddings need a BLIP pre-training or retrieval model, or a BLIP-2 model of stage 1",
    "answer": "answers need a BLIP VQA model (openblip train blip-vqa makes one), or a BLIP-2 model of stage 2",
    "dialog": "dialogs need a BLIP VQA model (openblip train blip-visdial makes one)",
    "judge": "judging pairs of images needs a BLIP NLVR2 model (openblip train blip-nlvr makes one)",
    "features": "query features need a BLIP-2 model",
    "explain": "heat maps need a BLIP pre-training, captioning or retrieval model, or a BLIP-2 model of stage 1",
}


class Encodes(Protocol):
    """Images become features, and these a memory for all that reads them."""

    tokenizer: TextTokenizer

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W], on any device -> image_embeds [B, N, Dv]."""
        ...

    def remember(self, image_embeds: Tensor) -> ImageMemory:
        """Project image_embeds [B, N, Dv] once for all texts that read them."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        ...


class Matches(Encodes, Protocol):
    """Images and texts in one space (ITC), and read together (ITM)."""

    @property
    def first(self) -> First:
        """What texts for ITM begin with."""
        ...

    @property
    def embed_dim(self) -> int:
        """E."""
        ...

    def image_features(self, image_embeds: Tensor) -> Tensor:
        """[B, N, Dv] -> normalised [B, E], or [B, Q, E] with one for each query."""
        ...

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Ids [R, T] that begin with [CLS] -> normalised [R, E]."""
        ...

    def similarities(self, text_features: Tensor, image_features: Tensor) -> Tensor:
        """Cosines of C texts and I images, [C, I]."""
        ...

    @property
    def similarity_scale(self) -> float:
        """What cosines were multiplied with in training before their softmax: 1 / temperature."""
        ...

    def match(self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory) -> Tensor:
        """Ids [R, T] that begin with `first` -> ITM logits [R, 2]; class 1 is "matched"."""
        ...


class Composes(Matches, Protocol):
    """Images and texts are read together into features (BLIP-2's multimodal ones)."""

    def query_features(self, image_embeds: Tensor, texts: Sequence[str] | None = None) -> Tensor:
        """[B, N, Dv] -> query outputs [B, Q, D], which have seen a text each where B texts are given."""
        ...

    def clean(self, text: str) -> str:
        """A text as the model read texts in training."""
        ...


class Generates(Encodes, Protocol):
    """Texts are generated for images, and given texts are scored."""

    def generate(
        self,
        memory: ImageMemory,
        config: DecodeConfig,
        prompts: Sequence[str],
        keys: Tensor | None = None,
        watch: Watch | None = None,
    ) -> list[list[Caption]]:
        """`config.num_sequences` captions for each of B images, the best first.

        Args:
            prompts: how each begins.
            keys: int64 [B], name the images for sampling: a key and seed give the same text in any batch.
            watch: sees the tokens as they come.
        """
        ...

    def score_own(
        self, memory: ImageMemory, texts: Sequence[str], *, prompt: str = "", max_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihood [R] of one text for each row of `memory`, and how many tokens count, int64 [R].

        Texts are cleaned as those of training were.
        """
        ...

    def score_all(self, memory: ImageMemory, texts: Sequence[str], *, prompt: str = "") -> tuple[Tensor, Tensor]:
        """Log-likelihood [B, C] of each of C texts for each of B images, and how many tokens count, int64 [C].

        Texts are cleaned as those of training were.
        """
        ...


class Answers(Encodes, Protocol):
    """Questions are read with their images once; answers are then generated or ranked."""

    def ask(
        self,
        memory: ImageMemory,
        questions: Sequence[str],
        *,
        prompt: str | None = None,
        max_length: int | None = None,
    ) -> Any:
        """Read R questions with their images; what comes back goes to `answers` and `rank`.

        Args:
            prompt: how a language model is asked, with {} in place of the question; None is the model's own.
            max_length: tokens of a question, longer ones are cut; None reads them whole.
        """
        ...

    def answers(self, asked: Any, config: DecodeConfig, *, keys: Tensor | None = None) -> list[tuple[Answer, ...]]:
        """Generate answers to each question, the best first.

        Args:
            keys: int64 [R], name the questions for sampling, as those of `Generates.generate`.
        """
        ...

    def write_answers(
        self, asked: Any, config: DecodeConfig, *, keys: Tensor | None = None, watch: Watch | None = None
    ) -> list[list[Caption]]:
        """`answers` with their lengths, in the order in which they were found.

        Args:
            watch: sees the tokens as they come.
        """
        ...

    def rank(
        self, asked: Any, candidates: Sequence[str], *, keep: int = 128, label_smoothing: float = 0.0
    ) -> list[tuple[Answer, ...]]:
        """The likeliest of `candidates` for each question, the best first.

        Args:
            label_smoothing: above 0 ranks by the loss of a training with it, in place of the likelihood.
        """
        ...

    def measured_question(self, text: str) -> str:
        """A question as the papers' programs ask it when they measure; it goes to `ask`."""
        ...


class Discusses(Encodes, Protocol):
    """Dialogs are read with their images; each has candidates of its own, which are ranked."""

    def read(self, memory: ImageMemory, questions: TokenBatch) -> ImageMemory:
        """The states of R dialogs, ids [R, T] that begin with [ENC], as a memory for their candidates."""
        ...

    def likelihoods(self, asked: ImageMemory, candidates: Sequence[Sequence[str]]) -> Tensor:
        """Log-likelihood [R, C] of the own candidates of each of R rows, C of the most; 0 beyond those of a row."""
        ...


class Judges(Encodes, Protocol):
    """A text is true or false of several images."""

    def judge(self, image_embeds: Tensor, texts: Sequence[str]) -> Tensor:
        """image_embeds [B, 2, N, Dv] and B texts -> probability [B] that each is true."""
        ...


class Adapter(ABC):
    """What all adapters share: the model with its tokenizer, and what its folder says of it.

    Args:
        model: an `nn.Module` of the family.
        info: "prompt", "clean", "task", "label_smoothing", "like".
        language_tokenizer: of BLIP-2's language model.
        ignored: keys of the file that were not needed.
    """

    family: ClassVar[FamilyName]
    captioning: DecodeConfig = DecodeConfig(num_beams=3, min_new_tokens=5, max_new_tokens=20)
    """How captions are generated unless requested otherwise, as the papers do."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        info: dict[str, Any] | None = None,
        *,
        language_tokenizer: Any = None,
        ignored: Sequence[str] = (),
    ) -> None:
        self.model, self.tokenizer, self.language_tokenizer = model, tokenizer, language_tokenizer
        self.info, self.ignored = info or {}, list(ignored)
        self.states: FixedStates | None = None
        """of decoding steps that are recorded as CUDA graphs, which read the weights where they are now; None
        computes each step as it is written"""
        self.begun: list[str] = []
        """for each pretrained part of a newly built model a line: what was taken over, what was drawn"""

    @property
    def records_steps(self) -> bool:
        """Whether what it writes can be recorded as CUDA graphs, as far as its kind tells."""
        return False

    @property
    def stored(self) -> StoredModel:
        """The model as `save_model` takes it."""
        return StoredModel(
            self.model, self.tokenizer, self.info, self.ignored, language_tokenizer=self.language_tokenizer
        )

    @property
    def first(self) -> First:
        """What texts for ITM, and questions, begin with."""
        return "cls"

    @property
    @abstractmethod
    def can(self) -> frozenset[str]:
        """What the model can do: names of `NEEDS`."""

    def need(self, what: str) -> Any:
        """This adapter, or one sentence that refuses.

        Raises:
            UserError: the model cannot do `what`.
        """
        return self if what in self.can else self.refuse(what)

    def refuse(self, what: str) -> NoReturn:
        """Say in one sentence what the model is and what is needed.

        Raises:
            UserError: always.
        """
        raise UserError(f"this is {describe(self.model.config)}; {NEEDS[what]}")

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Pixels that the vision tower reads."""
        return self.model.config.vision.image_size

    @property
    def max_positions(self) -> int:
        """Tokens of a text that the model reads."""
        return self.model.config.text.max_positions

    @property
    def prompt(self) -> str:
        """How the model was trained to begin its captions."""
        return str(self.info.get("prompt", ""))

    @property
    def question_prompt(self) -> str:
        """How a language model is asked, with {} for the question; "" where questions are read as they are."""
        return ""

    @property
    def answering(self) -> DecodeConfig:
        """How answers are generated unless requested otherwise, as the papers do."""
        return DecodeConfig(num_beams=3, min_new_tokens=1, max_new_tokens=10)

    def move(self, device: torch.device, dtype: torch.dtype) -> None:
        """Put the model on a device, in a dtype, in evaluation mode."""
        self.model.to(device, dtype).eval()

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """As `Encodes.encode`."""
        return self.model.encode_pixels(pixels.to(self.device))

    @torch.no_grad()
    def tower_features(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W], on any device -> what the vision tower alone gives, [B, N, Dv].

        It is the same for all models over one tower; `embeds_of` makes image_embeds of it.
        """
        return self.encode(pixels)

    @torch.no_grad()
    def embeds_of(self, tower_features: Tensor) -> Tensor:
        """Of `tower_features` [B, N, Dv], image_embeds [B, N, Dv] by what the model has behind its tower."""
        return tower_features

    def remember(self, image_embeds: Tensor) -> ImageMemory:
        """As `Encodes.remember`."""
        return self.model.remember(image_embeds)

    def extra_metrics(self, batches: Callable[[], Iterable[Any]], *, max_length: int) -> dict[str, float]:
        """Further metrics of pre-training that this family alone has, by name.

        Args:
            batches: the evaluation data, from the beginning each time.
            max_length: tokens of a text that are read.
        """
        return {}

    # Texts ------------------------------------------------------------------------------------------------

    def clean(self, text: str, clean: Callable[..., str] = clean_caption) -> str:
        """A text as the model read texts in training."""
        how = self.info.get("clean", "simplify")
        return text if how == "none" else clean(text, None, simplify=how == "simplify")

    def tokens(self, texts: Sequence[str], **options: Any) -> TokenBatch:
        """Texts as ids on the model's device."""
        return self.tokenizer.encode(texts, **options).to(self.device)

    def check_texts(self, texts: Iterable[str], *, wordless: bool = False, prompt: str = "") -> None:
        """Refuse texts that the text encoder cannot read: too long, all unknown to it, or without a word.

        Args:
            wordless: accept texts without a word.
            prompt: what is read before each.

        Raises:
            UserError: names the text and what is wrong with it.
        """
        limit, unknown = self.max_positions, self.tokenizer.unk_id
        for text in texts:
            tokens, start = self.tokenizer.encode_after(prompt, [self.clean(text)])
            ids, words = tokens.input_ids[0], tokens.input_ids[0, start:-1]  # the last is [SEP]
            if not len(words) and not wordless:
                raise UserError(f'the text {short(text)} holds no word; give one such as "a red bus"')
            if len(ids) > limit:
                whole = f"{len(ids)} tokens{' with its prompt' if start > 1 else ''}"
                raise UserError(f"the text {short(text)} has {whole}, and the model takes {limit}; shorten it")
            if unknown is not None and len(words) and bool((words == unknown).all()):
                raise UserError(
                    f"the model's vocabulary has no word of {short(text)}; is it in the language it learned?"
                )

    def check_captions(self, texts: Iterable[str], *, prompt: str = "") -> None:
        """Refuse captions to score that the model cannot read after their prompt.

        Raises:
            UserError: names the caption.
        """
        self.check_texts(texts, wordless=True, prompt=prompt)

    def check_questions(self, questions: Iterable[str], candidates: Sequence[str] = ()) -> None:
        """Refuse questions, and answers to choose from, that the model cannot read.

        Raises:
            UserError: names the text.
        """
        self.check_texts(questions)
        self.check_texts(candidates, wordless=True)

    def check_prompt(self, prompts: Iterable[str], *, remedy: str = "") -> None:
        """Refuse prompts that the tokenizer does not know.

        Args:
            remedy: what else may be done than to write the prompt in the model's language.

        Raises:
            UserError: names the prompt.
        """
        unknown = self.tokenizer.unk_id
        for text in set(prompts):
            pieces = self.tokenizer.encode([text], end=False).input_ids[0, 1:]
            if unknown is not None and bool((pieces == unknown).any()):
                raise UserError(
                    f"the model cannot begin with {short(text)}: its vocabulary lacks part of it; write the "
                    f"prompt in the language that the model learned{remedy}"
                )


def short(text: str) -> str:
    """A text in quotes, cut for a message."""
    return f'"{text[:40]}..."' if len(text) > 43 else f'"{text}"'
