"""Train a small language model on text alone, for BLIP-2 to put in front of images when it is frozen.

    train_language(documents, TextRunConfig(), "runs/language")      # a transformers folder in runs/language/model

A document is lines of (prompt, text). A decoder reads it whole, each line with its begin and end token, so that
soft prompts may later stand where the first lines stood. An encoder-decoder reads the lines so far and a prompt, or
a part of the next text, and writes the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openblip.core.config import to_dict
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.runtime import seed_everything
from openblip.experiments.judges.small_language import LanguageSizes, language_from_scratch, save_language
from openblip.experiments.presets import short_train
from openblip.training.config import TrainConfig
from openblip.training.launch import start
from openblip.training.loop import TrainResult, train

__all__ = ["BETWEEN_LINES", "Document", "TextRunConfig", "small_train", "train_language"]

Document = Sequence[tuple[str, str]]
"""lines: what each is asked with, "" for nothing, and its text"""
BETWEEN_LINES = " . "
"""what an encoder-decoder reads between the lines of a document"""
_IGNORED = -100
_SORTED_TOGETHER = 16
"""batches whose rows are put together by length"""


@dataclass(frozen=True, kw_only=True)
class TextRunConfig:
    """Everything that a run depends on but its documents."""

    language: LanguageSizes = field(default_factory=LanguageSizes)
    batch_size: int = 64
    train: TrainConfig = field(default_factory=lambda: small_train(600))


def small_train(steps: int, **changes: Any) -> TrainConfig:
    """`short_train` in float32: a model as small as these is no faster in bfloat16 on a CPU."""
    return short_train(steps, precision="float32", **changes)


def train_language(
    documents: Sequence[Document],
    config: TextRunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    title: str = "a language model",
    show: bool = True,
) -> TrainResult:
    """Train on `documents`; model and tokenizer (of whole words) go to `out`/model as transformers has them."""
    start(config.train.device)
    seed_everything(config.train.seed)
    reads = config.language.kind == "t5"
    parts = (part for document in documents for line in document for part in line)
    language_tokenizer = LanguageTokenizer.of_words([*parts, BETWEEN_LINES], begins=not reads)
    model = language_from_scratch(
        config.language,
        vocab_size=language_tokenizer.vocab_size,
        pad_id=language_tokenizer.pad_id,
        bos_id=language_tokenizer.hf.bos_token_id,
        eos_id=language_tokenizer.eos_id,
    )
    rng = np.random.default_rng(config.train.seed)
    rows = [
        row for document in documents for row in (_parts if reads else _whole)(document, language_tokenizer, rng)
    ]

    def export(folder: Path) -> None:
        save_language(model, folder)
        language_tokenizer.save(folder)

    return train(
        config.train,
        _TextStep(model),
        _TextLoader(rows, config.batch_size, seed=config.train.seed),
        out,
        prepare=lambda batch: _pad(batch, language_tokenizer.pad_id),
        export=export,
        resume=resume,
        sections={"language": to_dict(config.language), "data": {"documents": len(documents)}},
        title=title,
        unit="lines" if reads else "documents",
        show=show,
    )


Row = tuple[list[int], list[int]]
"""ids that are read, and ids that are to be written"""


def _whole(document: Document, language_tokenizer: LanguageTokenizer, rng: np.random.Generator) -> Iterator[Row]:
    """For a decoder: all lines, each with its begin and end token."""
    ids: list[int] = []
    for prompt, text in document:
        ids += [*language_tokenizer.hf(f"{prompt} {text}".strip())["input_ids"], language_tokenizer.eos_id]
    yield ids, ids


def _parts(document: Document, language_tokenizer: LanguageTokenizer, rng: np.random.Generator) -> Iterator[Row]:
    """For an encoder-decoder: each line after those before it; one without a prompt is split at some word."""
    told: list[str] = []
    for prompt, text in document:
        begun, rest = prompt, text
        if not prompt:
            pieces = text.split()
            cut = int(rng.integers(len(pieces)))
            begun, rest = " ".join(pieces[:cut]), " ".join(pieces[cut:])
        read = BETWEEN_LINES.join([*told, ""]) + begun
        yield language_tokenizer.hf(read)["input_ids"], language_tokenizer.hf(rest)["input_ids"]
        told.append(f"{prompt} {text}".strip())


def _pad(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """A model's inputs [R, T] and labels [R, T'], padded on the right."""
    read, written = ([torch.tensor(row[i]) for row in rows] for i in (0, 1))

    def stack(values: list[Tensor], filler: int) -> Tensor:
        return nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=filler)

    inputs = stack(read, pad_id)
    lengths = torch.tensor([len(row) for row in read])
    mask = torch.arange(inputs.shape[1]) < lengths[:, None]
    return {"input_ids": inputs, "attention_mask": mask.long(), "labels": stack(written, _IGNORED)}


class _TextStep(nn.Module):
    """The model's own loss, in the words of the training loop."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.model(**batch).loss}


class _TextLoader:
    """Batches of rows of about equal length, in an order that seed and epoch decide; see `training.step.Loader`."""

    def __init__(self, rows: Sequence[Row], batch_size: int, *, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.epoch, self._given = 0, 0

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[list[Row]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.rows))[: len(self) * self.batch_size]
        chunk = self.batch_size * _SORTED_TOGETHER
        lengths = np.array([sum(map(len, row)) for row in self.rows])
        parts = [order[i : i + chunk] for i in range(0, len(order), chunk)]
        order = np.concatenate([part[lengths[part].argsort(kind="stable")] for part in parts])
        batches = order.reshape(len(self), self.batch_size)[rng.permutation(len(self))]
        for batch in batches[self._given :]:
            self._given += 1
            yield [self.rows[i] for i in batch]
        self.epoch, self._given = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"epoch": self.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go there."""
        self.epoch, self._given = state["epoch"], state["given"]
