"""Similarity by a CLIP-like model: that of transformers itself, whatever the batch."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from openblip.checkpoints.clip import ClipLike, open_clip_like
from openblip.core.errors import UserError

TEXTS = (("a red bus", "two dogs"), (), ("a cat",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two narrow layers that reads letters."""
    place = tmp_path_factory.mktemp("clip")
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (place / "vocab.json").write_text(json.dumps(words))
    (place / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**text, "max_position_embeddings": 40, "projection_dim": 16},
            vision_config={**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 16},
            projection_dim=16,
        )
    )
    model.save_pretrained(place)
    size = {"shortest_edge": 32}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=32), tokenizer).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipLike:
    return open_clip_like(folder)


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in TEXTS]


def test_similarities_are_those_of_the_model(folder: Path, clip: ClipLike) -> None:
    found = clip(images(), TEXTS)
    assert [len(own) for own in found] == [2, 0, 1]
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    for image, own, scores in zip(images(), TEXTS, found, strict=True):
        for text, score in zip(own, scores, strict=True):
            inputs = processor(images=image, text=[text], return_tensors="pt")
            with torch.no_grad():
                logit = model(**inputs).logits_per_image
            assert score == pytest.approx(float(logit / model.logit_scale.exp()), abs=1e-5)
    assert clip(images()[1:2], TEXTS[1:2]) == [[]]


def test_its_fingerprint_is_that_of_its_weights(folder: Path, clip: ClipLike) -> None:
    assert open_clip_like(folder).fingerprint == clip.fingerprint
    clip._model.logit_scale.data += 1
    assert ClipLike(clip._model, clip._processor, "cpu").fingerprint != clip.fingerprint


def test_what_is_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be opened as a CLIP-like model"):
        open_clip_like(tmp_path)
