"""transformers' BLIP classes with random weights, as folders that they wrote themselves.

Weights are drawn wider than at initialisation, so that logits differ from word to word and ids mean something.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.blip import modeling_blip

from openblip.core.tokenizer import TextTokenizer

WORDS = (
    "a the of and two three red blue green dog cat bus man woman sitting standing next to on in front what color "
    "is how many there image photo table beach small large yes no one"
)

TINY = {"width": 32, "depth": 2, "heads": 4, "text_width": 32, "text_depth": 2, "text_heads": 4, "image_size": 32}
ODD = {"width": 48, "depth": 3, "heads": 2, "text_width": 40, "text_depth": 4, "text_heads": 5, "image_size": 48}
DEEP = {**TINY, "depth": 11, "text_depth": 12}
"""layers with numbers of two digits; drawn weights this deep write the same whatever stands before"""
BASE = {"width": 768, "depth": 2, "heads": 12, "text_width": 768, "text_depth": 2, "text_heads": 12}
"""the published widths and heads; more layers would repeat what two compute"""


@dataclass
class Theirs:
    """A model of transformers in a folder."""

    model: Any
    folder: Path
    tokenizer: TextTokenizer
    size: int

    def images(self, count: int = 2) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randn(count, 3, self.size, self.size, generator=generator)


def make_theirs(kind: str, sizes: dict[str, int], folder: Path, tokenizer: TextTokenizer, **text: Any) -> Theirs:
    big = sizes["width"] >= 768
    config = transformers.BlipConfig(
        vision_config={
            "hidden_size": sizes["width"],
            "intermediate_size": 4 * sizes["width"],
            "num_hidden_layers": sizes["depth"],
            "num_attention_heads": sizes["heads"],
            "image_size": sizes["image_size"],
            "patch_size": 16 if big else 8,
        },
        text_config={
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": sizes["text_width"],
            "intermediate_size": 4 * sizes["text_width"],
            "num_hidden_layers": sizes["text_depth"],
            "num_attention_heads": sizes["text_heads"],
            "max_position_embeddings": 64,
            "bos_token_id": tokenizer.dec_id,
            "sep_token_id": tokenizer.sep_id,
            "pad_token_id": tokenizer.pad_id,
            **text,
        },
        image_text_hidden_size=24,
        projection_dim=20,
    )
    torch.manual_seed(1)
    model = getattr(modeling_blip, kind)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.04 if big else 0.3
            noise = torch.randn_like(parameter)
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if norm else scale * noise)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return Theirs(model, folder, tokenizer, sizes["image_size"])
