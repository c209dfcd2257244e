"""The BLIP family: `Blip` captions and matches, `BlipVqa` answers, `BlipNlvr` judges, `BlipDual` embeds.

`BLIP` says how its models are built for training, saved and adapted to what tasks ask of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.bert import bert_config, load_bert
from openblip.checkpoints.blip import published_drop_path
from openblip.checkpoints.store import StoredModel, open_model
from openblip.checkpoints.stored import PUBLISHED_TOKENIZER
from openblip.checkpoints.vit import PretrainedVit, read_vit, start_vision
from openblip.core.errors import UserError
from openblip.core.tokenizer import First, TokenBatch
from openblip.data.clean import clean_question
from openblip.data.sources.base import Source
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode, recorded
from openblip.generation.prefixes import ReadTree
from openblip.generation.rank import ReadLogits, log_likelihood, rank_two_step
from openblip.generation.types import Watch
from openblip.models.blip import SIZES, Blip, BlipConfig, blip_config
from openblip.models.dual import BlipDual
from openblip.models.layers import ImageMemory
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.models.stepper import DecoderStepper
from openblip.models.stepper_fixed import ReplayableDecoder
from openblip.models.vqa import BlipVqa, VqaConfig
from openblip.objectives.language import IGNORED, language_loss, language_targets
from openblip.tasks.config import FROM_PARTS, RunConfig
from openblip.tasks.families.family import Family
from openblip.tasks.protocols import Adapter
from openblip.tasks.results import Answer, Caption, captions_of, written_answers
from openblip.tasks.vocabulary import tokenizer_from_scratch, tokenizer_of_start

__all__ = [
    "BLIP",
    "BlipAdapter",
    "NlvrAdapter",
    "VqaAdapter",
    "default_tokenizer",
    "nlvr_sizes",
    "parts_of",
    "refuse_unnamed_parts",
    "sizes_from_scratch",
    "vqa_sizes",
]


class _BlipBase(Adapter):
    """What BLIP's adapters share."""

    family = "blip"

    @property
    def like_transformers(self) -> bool:
        """Whether the weights were trained by transformers' classes, which treat special tokens otherwise."""
        return self.info.get("like") == "transformers"

    @property
    def first(self) -> First:
        """transformers begins texts to match and questions with [CLS]."""
        return "cls" if self.like_transformers else "enc"


class _Embeds(_BlipBase):
    @property
    def embed_dim(self) -> int:
        """E."""
        return self.model.config.embed_dim

    def image_features(self, image_embeds: Tensor) -> Tensor:
        """As `Matches.image_features`, [B, E]."""
        return self.model.image_features(image_embeds)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """As `Matches.text_features`."""
        return self.model.text_features(input_ids, attention_mask)

    def similarities(self, text_features: Tensor, image_features: Tensor) -> Tensor:
        """As `Matches.similarities`."""
        return text_features @ image_features.T

    @property
    def similarity_scale(self) -> float:
        """As `Matches.similarity_scale`."""
        return 1 / self.model.temperature.item()


class BlipAdapter(_Embeds):
    """A `Blip`: matches where it has an encoder, generates where it has a decoder."""

    @property
    def can(self) -> frozenset[str]:
        """Matching with the encoder, captions with the decoder, heat maps of either."""
        reads = {"match", "embed"} if self.model.text_encoder is not None else set()
        writes = {"caption", "likelihood"} if self.model.text_decoder is not None else set()
        return frozenset({"explain"} | reads | writes)

    @property
    def records_steps(self) -> bool:
        """As `Adapter.records_steps`: captions."""
        return self.model.text_decoder is not None

    def match(self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory) -> Tensor:
        """As `Matches.match`."""
        return self.model.match(input_ids, attention_mask, memory)

    @torch.no_grad()
    def generate(
        self,
        memory: ImageMemory,
        config: DecodeConfig,
        prompts: Sequence[str],
        keys: Tensor | None = None,
        watch: Watch | None = None,
    ) -> list[list[Caption]]:
        """As `Generates.generate`."""
        assert len(prompts) == memory.batch_size, f"{len(prompts)} prompts for {memory.batch_size} images"
        prompt = self.tokenizer.prompts(prompts).to(self.device)
        decoded = decode(
            recorded(ReplayableDecoder(self.model.decoder, memory), self.states, config),
            prompt.input_ids,
            prompt.attention_mask,
            config,
            eos_ids=self.tokenizer.sep_id,
            pad_id=self.tokenizer.pad_id,
            keys=keys,
            watch=watch,
        )
        return captions_of(decoded, len(prompts), self.tokenizer)

    @torch.no_grad()
    def score_own(
        self, memory: ImageMemory, texts: Sequence[str], *, prompt: str = "", max_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Generates.score_own`; the tokens after the prompt count, the end included."""
        tokens, prompt_length = self._captions(texts, prompt, max_length)
        logits = self.model.decoder(tokens.input_ids, tokens.attention_mask, memory=memory)
        targets = language_targets(tokens.input_ids, tokens.attention_mask, prompt_length)
        scores = -language_loss(logits, targets, label_smoothing=0.0, per_text=True)
        return scores, (targets[:, 1:] != IGNORED).sum(1)

    @torch.no_grad()
    def score_all(self, memory: ImageMemory, texts: Sequence[str], *, prompt: str = "") -> tuple[Tensor, Tensor]:
        """As `Generates.score_all`; an image's memory is read by all texts."""
        tokens, start = self._captions(texts, prompt)

        def read(input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
            part = memory if len(rows) == memory.batch_size else memory.select(rows)
            return self.model.decoder(input_ids, attention_mask, memory=part)

        images = (memory.batch_size, -1, -1)
        scores = log_likelihood(
            read, tokens.input_ids.expand(images), tokens.attention_mask.expand(images), num_prompt_tokens=start
        )
        return scores, tokens.attention_mask.sum(1).cpu() - start

    def _captions(self, texts: Sequence[str], prompt: str, max_length: int | None = None) -> tuple[TokenBatch, int]:
        """Captions as training reads them, and how many of their first tokens are the prompt's."""
        read = [self.clean(text) for text in texts]
        tokens, start = self.tokenizer.encode_after(prompt, read, max_length=max_length)
        return tokens.to(self.device), start


class VqaAdapter(_BlipBase):
    """A `BlipVqa`: a question is read with its image once; all beams and all candidates read its states."""

    @property
    def can(self) -> frozenset[str]:
        """Answers, also in dialogs, and nothing else: a VQA model has no captioning or matching head."""
        return frozenset({"answer", "dialog"})

    @torch.no_grad()
    def ask(
        self,
        memory: ImageMemory,
        questions: Sequence[str],
        *,
        prompt: str | None = None,
        max_length: int | None = None,
    ) -> ImageMemory:
        """As `Answers.ask`; gives the memory of the questions' states."""
        if prompt is not None:
            raise UserError("a BLIP VQA model reads questions as they are; a prompt is for BLIP-2")
        cleaned = [self.clean(question, clean_question) for question in questions]
        return self.read(memory, self.tokens(cleaned, first=self.first, max_length=max_length))

    def read(self, memory: ImageMemory, questions: TokenBatch) -> ImageMemory:
        """States of R questions, ids [R, T] that begin with `first`, R a multiple of the images."""
        states = self.model.read_question(questions.input_ids, questions.attention_mask, memory)
        # transformers lets answers read padded states, as generation in the original does.
        mask = None if self.like_transformers else questions.attention_mask
        return self.model.remember_question(states, mask)

    @torch.no_grad()
    def answers(
        self, asked: ImageMemory, config: DecodeConfig, *, keys: Tensor | None = None
    ) -> list[tuple[Answer, ...]]:
        """As `Answers.answers`."""
        return [written_answers(row) for row in self.write_answers(asked, config, keys=keys)]

    @torch.no_grad()
    def write_answers(
        self, asked: ImageMemory, config: DecodeConfig, *, keys: Tensor | None = None, watch: Watch | None = None
    ) -> list[list[Caption]]:
        """As `Answers.write_answers`."""
        rows = asked.batch_size
        decoded = decode(
            DecoderStepper(self.model.text_decoder, asked),
            torch.full((rows, 1), self.tokenizer.dec_id, device=self.device),
            None,
            config,
            eos_ids=self.tokenizer.sep_id,
            pad_id=self.tokenizer.pad_id,
            keys=keys,
            watch=watch,
        )
        return captions_of(decoded, rows, self.tokenizer)

    def measured_question(self, text: str) -> str:
        """As `Answers.measured_question`: `ask` reads all questions as in training."""
        return text

    @torch.no_grad()
    def rank(
        self, asked: ImageMemory, candidates: Sequence[str], *, keep: int = 128, label_smoothing: float = 0.0
    ) -> list[tuple[Answer, ...]]:
        """As `Answers.rank`.

        Args:
            keep: candidates that are read whole, chosen by their first token (the paper: 128).
            label_smoothing: 0.1 ranks by the training loss, as the original does when it measures; 0 by likelihood.
        """
        tokens = self.tokens(candidates, first="dec")
        ranking = rank_two_step(
            self._reader(asked),
            tokens.input_ids,
            tokens.attention_mask,
            num_rows=asked.batch_size,
            keep=min(keep, len(candidates)),
            label_smoothing=label_smoothing,
            read_tree=self._tree_reader(asked),
        )
        rows = zip(
            ranking.indices.tolist(), ranking.log_probs.tolist(), ranking.probabilities.tolist(), strict=True
        )
        return [tuple(Answer(candidates[i], p, share) for i, p, share in zip(*row, strict=True)) for row in rows]

    @torch.no_grad()
    def likelihoods(self, asked: ImageMemory, candidates: Sequence[Sequence[str]]) -> Tensor:
        """As `Discusses.likelihoods`."""
        flat = self.tokens([text for own in candidates for text in own], first="dec")
        counts = torch.tensor([len(own) for own in candidates], device=self.device)
        column = torch.arange(int(counts.max()), device=self.device)
        there = column < counts[:, None]  # [R, C]
        places = ((counts.cumsum(0) - counts)[:, None] + column).where(there, 0)
        mask = flat.attention_mask[places] & there[:, :, None]
        trees = self._tree_reader(asked)
        return log_likelihood(self._reader(asked), flat.input_ids[places], mask, read_tree=trees)

    def _reader(self, asked: ImageMemory) -> ReadLogits:
        def read(input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
            return self.model.text_decoder(input_ids, attention_mask, memory=asked.select(rows))

        return read

    def _tree_reader(self, asked: ImageMemory) -> ReadTree:
        def read(input_ids: Tensor, positions: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
            return self.model.text_decoder(input_ids, memory=asked.select(rows), tree=(positions, mask))

        return read


class NlvrAdapter(_BlipBase):
    """A `BlipNlvr`: whether a sentence is true of two images."""

    @property
    def can(self) -> frozenset[str]:
        """Judgements, and nothing else: both cross-attentions of a layer read images of a pair."""
        return frozenset({"judge"})

    @torch.no_grad()
    def judge(self, image_embeds: Tensor, texts: Sequence[str]) -> Tensor:
        """As `Judges.judge`."""
        tokens = self.tokens([self.clean(text) for text in texts], first=self.first)
        memory = self.model.remember(image_embeds)
        return self.model.classify(tokens.input_ids, tokens.attention_mask, memory).float().softmax(1)[:, 1]


class DualAdapter(_Embeds):
    """A `BlipDual`: embeddings alone."""

    @property
    def can(self) -> frozenset[str]:
        """Embeddings, and nothing else: no layer reads image and text together."""
        return frozenset({"embed"})

    @property
    def similarity_scale(self) -> float:
        """As `Matches.similarity_scale`."""
        return self.model.logit_scale.exp().item()


def build(config: RunConfig, sources: Sequence[Source], out: Path) -> Adapter:
    """The model that a run trains: of a size, from a pre-trained one, or from one of another kind.

    Args:
        out: the run's folder, where a tokenizer that is learned is kept.

    Raises:
        UserError: the model or a tokenizer cannot be had, or the starting model is of another kind.
    """
    if config.task in _ON_BLIP:
        return _build_on_blip(config, sources, out)
    size = config.model or "base"
    if size in (*SIZES, FROM_PARTS):
        return _from_scratch(config, size, sources, out, **parts_of(config))
    stored = _stored(config)
    model = stored.blip if config.task == "pretraining" else stored.blip.part(**parts_of(config))
    return BlipAdapter(model, stored.tokenizer)


def parts_of(config: RunConfig) -> dict[str, bool]:
    """Which of `Blip`'s encoder and decoder a run from scratch has."""
    if config.task == "pretraining":
        wanted = config.objective.objectives
        return {"encoder": "itc" in wanted, "decoder": "lm" in wanted}
    return {"encoder": config.task != "captioning", "decoder": config.task != "retrieval"}


def _build_on_blip(config: RunConfig, sources: Sequence[Source], out: Path) -> Adapter:
    """A model of another kind that starts from a `Blip`."""
    kind, adapter, sizes = _ON_BLIP[config.task]
    size = config.model or "base"
    if size in (*SIZES, FROM_PARTS):
        start = _from_scratch(config, size, sources, out, encoder=True, decoder=True)
        blip, tokenizer = start.model, start.tokenizer
    else:
        stored = _stored(config)
        tokenizer = stored.tokenizer
        if isinstance(stored.model, kind):
            return adapter(stored.model, tokenizer)
        blip = stored.blip
    model = kind(sizes(blip.config))
    model.start_from(blip)
    return adapter(model, tokenizer)


def vqa_sizes(blip: BlipConfig) -> VqaConfig:
    """Those of the VQA model that starts from a `Blip`: as published a deep tower has stochastic depth."""
    return VqaConfig(vision=replace(blip.vision, drop_path=_tuned_drop_path(blip)), text=blip.text)


def nlvr_sizes(blip: BlipConfig) -> NlvrConfig:
    """As published: the upper half of the layers merges by a linear layer, a deep tower has stochastic depth."""
    vision = replace(blip.vision, drop_path=_tuned_drop_path(blip))
    return NlvrConfig(vision=vision, text=blip.text, merge_from=blip.text.depth // 2)


def _tuned_drop_path(blip: BlipConfig) -> float:
    """Of the towers of VQA and NLVR2: the reference's for its sizes, that of the model for small ones."""
    return published_drop_path(blip.vision, tuned=True) or blip.vision.drop_path


_ON_BLIP: dict[str, tuple[type, type[Adapter], Callable[[BlipConfig], Any]]] = {
    "answering": (BlipVqa, VqaAdapter, vqa_sizes),
    "dialog": (BlipVqa, VqaAdapter, vqa_sizes),
    "nlvr": (BlipNlvr, NlvrAdapter, nlvr_sizes),
}
"""For each task with a model of its own: its class, its adapter, and its sizes."""


def _stored(config: RunConfig) -> StoredModel:
    if named := config.vision_pretrained or config.text_pretrained:
        raise UserError(f"{config.model} has its vision tower and its text side and keeps them; leave {named} out")
    return open_model(config.model, tokenizer=tokenizer_of_start(config), image_size=config.image_size)


def _from_scratch(
    config: RunConfig, size: str, sources: Sequence[Source], out: Path, *, encoder: bool, decoder: bool
) -> Adapter:
    refuse_unnamed_parts(config)
    donor = read_vit(config.vision_pretrained) if config.vision_pretrained else None
    tokenizer = tokenizer_from_scratch(config, sources, out, default=default_tokenizer(size))
    sizes = sizes_from_scratch(config, size, donor, vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id)
    model = Blip(replace(sizes, encoder=encoder, decoder=decoder))
    adapter = BlipAdapter(model, tokenizer)
    if donor is not None:
        adapter.begun.append(start_vision(model.vision, donor))
    if config.text_pretrained:
        adapter.begun.append(load_bert(model, config.text_pretrained))
    return adapter


def refuse_unnamed_parts(config: RunConfig) -> None:
    """Refuse "from-parts" where a part is not named.

    Raises:
        UserError: says how both are named.
    """
    if config.model == FROM_PARTS and not (config.vision_pretrained and config.text_pretrained):
        raise UserError(
            f'model = "{FROM_PARTS}" takes its sizes from a vision tower and a BERT: name both, '
            "--vision hf:NAME (or timm:NAME) and --text NAME"
        )


def default_tokenizer(size: str) -> str:
    """Of a model from scratch: learned from the captions for the small presets, else the published one."""
    return "train" if size in ("nano", "micro") else PUBLISHED_TOKENIZER


def sizes_from_scratch(
    config: RunConfig, size: str, donor: PretrainedVit | None, *, vocab_size: int, pad_id: int = 0
) -> BlipConfig:
    """Those of a preset, or those of the pretrained parts, over a tokenizer of `vocab_size` ids."""
    if size == FROM_PARTS and donor is not None:
        vision = donor.sizes(config.image_size)
        text = replace(
            bert_config(config.text_pretrained),
            vocab_size=vocab_size,
            memory_width=vision.width,
            pad_id=pad_id,
        )
        return BlipConfig(vision=vision, text=text)
    sizes = blip_config(size, vocab_size=vocab_size, image_size=config.image_size)
    if donor is None:
        return sizes
    # What the sizes of a preset do not say.
    own = {name: getattr(donor.config, name) for name in ("layer_norm_eps", "registers", "pretrained")}
    return replace(sizes, vision=replace(sizes.vision, **own))


BLIP = Family(
    name="blip",
    build=build,
    adapters={Blip: BlipAdapter, BlipVqa: VqaAdapter, BlipNlvr: NlvrAdapter, BlipDual: DualAdapter},
)
