"""A small BLIP (and one for questions) with tokenizers and images, for the tests of tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from openblip.checkpoints.store import StoredModel
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch
from openblip.models.blip import Blip, blip_config
from openblip.models.vqa import BlipVqa, VqaConfig
from openblip.tasks.predictor import Predictor
from openblip.tasks.registry import adapt

TEXTS = (
    "a red bus on a road",
    "two dogs",
    "a cat on a red chair",
    "a dog beside a bus",
    "the road",
    "a small cat and two red birds on a long road",
    "birds",
    "a long chair",
)
PIXELS = 32


def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS * 3, vocab_size=90)


def model(seed: int = 0) -> Blip:
    """A nano model whose weights are large enough that every text and image gives other numbers."""
    torch.manual_seed(seed)
    blip = Blip(blip_config("nano", vocab_size=tokenizer().vocab_size, image_size=PIXELS))
    with torch.no_grad():
        for name, parameter in blip.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return blip.eval()


def predictor(
    model: Any, tokenizer: TextTokenizer, info: dict[str, Any] | None = None, **options: Any
) -> Predictor:
    """A model ready to be used."""
    return Predictor(adapt(StoredModel(model, tokenizer, info or {})), **options)


def make_image(number: int, side: int = PIXELS) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8))


def batch(owners: list[int], first: int = 0, text: int | None = None) -> Batch:
    """Images `first`, `first + 1`, ... and for each of `owners` a text of that image, `TEXTS[text]` and on."""
    text = first if text is None else text
    count = max(owners) + 1
    pixels = [torch.from_numpy(np.asarray(make_image(first + i)).copy()).permute(2, 0, 1) for i in range(count)]
    return Batch(
        images=torch.stack(pixels),
        texts=[TEXTS[(text + i) % len(TEXTS)] for i in range(len(owners))],
        image_ids=torch.arange(first, first + count),
        keys=[f"image-{first + i}" for i in range(count)],
        meta=[{} for _ in range(count)],
        image_index=torch.tensor(owners),
    )


QUESTIONS = ("what is red?", "how many dogs are there?", "is there a cat on a chair?", "what is on the road?")
ANSWERS = ("a red bus", "two", "no", "yes", "a small cat", "birds")


def vqa_tokenizer() -> TextTokenizer:
    return TextTokenizer.train([*TEXTS, *QUESTIONS, *ANSWERS] * 3, vocab_size=120)


def vqa_model(seed: int = 0) -> BlipVqa:
    """A nano VQA model, its weights spread as those of `model`."""
    torch.manual_seed(seed)
    sizes = blip_config("nano", vocab_size=vqa_tokenizer().vocab_size, image_size=PIXELS)
    vqa = BlipVqa(VqaConfig(vision=sizes.vision, text=sizes.text))
    with torch.no_grad():
        for parameter in vqa.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return vqa.eval()
