"""A model of the published sizes with random weights, as a folder that both we and a peer open.

The parent process writes it once; each side of a comparison opens it as a user would, so that its peak memory is
that of its own library.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from openblip.checkpoints.convert import Format, convert_model
from openblip.checkpoints.store import StoredModel
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig, blip_config
from openblip.models.vqa import BlipVqa, VqaConfig

__all__ = ["DEC", "ENC", "SEP", "VOCABULARY", "both", "captioner", "folder", "matcher", "published", "texts", "vqa"]

FOLDER = "OPENBLIP_BENCHMARK_MODEL"
SEP, DEC, ENC = 102, 30522, 30523
VOCABULARY = 30524

_Model = TypeVar("_Model")


def captioner(quick: bool, size: str = "base") -> Blip:
    """ViT-B/16, or the `size` "large", at 384 px with a text decoder; `quick` takes two narrow layers and 64 px."""
    return _drawn(Blip, replace(_sizes(quick, size), encoder=False), seed=0)


def matcher(quick: bool) -> Blip:
    """The same with a text encoder."""
    return _drawn(Blip, replace(_sizes(quick), decoder=False), seed=1)


def both(quick: bool) -> Blip:
    """The same with both."""
    return _drawn(Blip, _sizes(quick), seed=3)


def vqa(quick: bool) -> BlipVqa:
    """The same with a question encoder and an answer decoder."""
    sizes = _sizes(quick)
    return _drawn(BlipVqa, VqaConfig(vision=sizes.vision, text=sizes.text), seed=2)


def _drawn(kind: Callable[[Any], _Model], config: Any, *, seed: int) -> _Model:
    """A model with the same random weights in every run, so that a comparison can be repeated.

    Each kind has weights of its own: CapFilt would notice one vision tower in captioner and filter.
    """
    torch.manual_seed(seed)
    return kind(config)


def _sizes(quick: bool, size: str = "base") -> BlipConfig:
    config = blip_config(size, image_size=64 if quick else 384)
    if quick:
        narrow: dict[str, Any] = {"width": 192, "depth": 2, "num_heads": 3}
        text = replace(config.text, **narrow, inner_width=768, memory_width=192)
        config = replace(config, vision=replace(config.vision, **narrow), text=text)
    # transformers' BLIP reads this from its own default, which is not the original's (docs/checkpoints.md).
    return replace(config, vision=replace(config.vision, layer_norm_eps=1e-5))


@contextmanager
def published(model: Any, *formats: Format) -> Iterator[None]:
    """Write `model` in `formats` (transformers' alone where none is named), which `folder` names to the sides."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Wide enough for attention and logits to depend on all that they read.
            if parameter.ndim == 2 and "text" in name and "embeddings" not in name:
                parameter.mul_(2.0)
    with tempfile.TemporaryDirectory() as place:
        for to in formats or ("transformers",):
            convert_model(StoredModel(model.eval(), _words()), Path(place) / to, to=to)
        before = os.environ.get(FOLDER)
        os.environ[FOLDER] = place
        try:
            yield
        finally:
            os.environ.pop(FOLDER)
            if before is not None:
                os.environ[FOLDER] = before


def folder(to: Format = "transformers") -> Path:
    """Where the model of this comparison lies."""
    return Path(os.environ[FOLDER]) / to


def texts(rows: int, length: int, first: int) -> torch.Tensor:
    """Random ids [rows, length] between `first` and [SEP]."""
    ids = torch.randint(1000, 30000, (rows, length), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = first, SEP
    return ids


def _words() -> TextTokenizer:
    """A vocabulary as large as BERT's, with its special tokens in their places."""
    vocab = {f"word{i}": i for i in range(30522)}
    for number, name in ((0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (SEP, "[SEP]"), (103, "[MASK]")):
        del vocab[f"word{number}"]
        vocab[name] = number
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return TextTokenizer(tokenizer)
