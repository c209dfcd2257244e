"""How a model is measured unless told otherwise: as the papers and their published configurations do.

The originals count a caption's prompt, its first token included, among the 5 to 20 tokens of BLIP and the 8 that
BLIP-2's captions have at least (LAVIS as released, whose decoders began from ids and not from embeddings; an
encoder-decoder's begins from one token). Here only new tokens are counted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from openblip.data.cards import CARDS
from openblip.generation.config import DecodeConfig
from openblip.tasks.config import TaskName
from openblip.tasks.protocols import Adapter

__all__ = [
    "BLIP_PROMPT",
    "LONGEST_TEXT",
    "RERANK",
    "candidates_to_rerank",
    "caption_prompt",
    "measured_decoding",
    "texts_to_retrieve",
]

BLIP_PROMPT = "a picture of "
"""how BLIP's published captioners begin"""
RERANK = 16
"""candidates of each query that ITM reads in data that are not published"""
LONGEST_TEXT = 64
"""tokens of a text that are read where no paper says how many"""
_SHORTEST, _LONGEST = 5, 20
"""tokens of BLIP's captions, the prompt's included"""
_SHORTEST_BLIP2 = 8
"""tokens of BLIP-2's captions, what they begin from included"""
_FEWEST = 10
"""new tokens that a long prompt leaves to a caption at least"""
_NOCAPS_PENALTY = 1.1


def caption_prompt(adapter: Adapter) -> str:
    """How captions begin: as the model was trained, "a picture of " with the published weights of BLIP."""
    published = adapter.family == "blip" and adapter.info.get("source_format") in ("blip", "transformers")
    return BLIP_PROMPT if published and "prompt" not in adapter.info else adapter.prompt


def measured_decoding(adapter: Adapter, task: TaskName, datasets: Collection[str], prompt: str) -> DecodeConfig:
    """How captions or answers are generated.

    Args:
        datasets: names of the published datasets that the model is measured on.
        prompt: of captions.
    """
    if adapter.family == "blip2":
        if task != "answering":
            least = max(0, _SHORTEST_BLIP2 - _start_tokens(adapter, prompt))
            return DecodeConfig(num_beams=5, min_new_tokens=least, max_new_tokens=30)
        # LAVIS' least length of 1 counts the token that an encoder-decoder starts from.
        encodes = adapter.model.language is not None and adapter.model.llm.is_encoder_decoder
        return replace(adapter.answering, min_new_tokens=0 if encodes else 1)
    if task == "answering":
        return DecodeConfig(num_beams=3, max_new_tokens=9)
    if adapter.tokenizer is None:  # of a model that is only predicted; BERT has the words of the papers' prompts
        read = 1 + len(prompt.split())
    else:
        read = adapter.tokenizer.prompts([prompt]).input_ids.shape[1]
    return DecodeConfig(
        num_beams=3,
        min_new_tokens=max(0, _SHORTEST - read),
        max_new_tokens=max(_FEWEST, _LONGEST - read),
        repetition_penalty=_NOCAPS_PENALTY if set(datasets) == {"nocaps"} else 1.0,
    )


def _start_tokens(adapter: Adapter, prompt: str) -> int:
    """Tokens that BLIP-2's writer begins from: one, or a decoder's prompt with its first token."""
    if adapter.model.language is None or adapter.model.llm.is_encoder_decoder:
        return 1
    if adapter.language_tokenizer is None:  # of a model that is only predicted
        return 1 + len(prompt.split())
    return int(adapter.language_tokenizer.prompts([prompt], side="left").input_ids.shape[1])


def candidates_to_rerank(family: str, datasets: Collection[str]) -> int:
    """Candidates of each query that ITM reads: the papers' where they measure retrieval, `RERANK` on other data."""
    if set(datasets) == {"coco"}:
        return 256 if family == "blip" else 128
    return 128 if _measures_retrieval(datasets) else RERANK


def texts_to_retrieve(family: str, datasets: Collection[str]) -> tuple[int | None, int]:
    """Words (None: all) and tokens of a text that retrieval reads: where the papers measure it, theirs.

    BLIP's `pre_caption(caption, 30)`, of videos 40, LAVIS' `BlipCaptionProcessor` with 50, and 35 tokens in both.
    """
    if set(datasets) != {"coco"} and not _measures_retrieval(datasets):
        return None, LONGEST_TEXT
    words = 50 if family == "blip2" else 40 if set(datasets) == {"msrvtt"} else 30
    return words, 35


def _measures_retrieval(datasets: Collection[str]) -> bool:
    """Whether all that is measured on are datasets of retrieval."""
    return bool(datasets) and all(CARDS[name].task == "retrieval" for name in datasets)
