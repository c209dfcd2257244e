"""The reference's values: small random weights, inputs, and what the reference code made of them.

`OPENBLIP_GOLDEN` names another folder of the same layout, with other sizes and seeds.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from openblip.checkpoints.blip import config_from_state, load_blip_state
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.models.vqa import BlipVqa, VqaConfig

ROOT = Path(os.environ.get("OPENBLIP_GOLDEN", Path(__file__).parent))

MODELS: dict[type, Any] = {BlipConfig: Blip, VqaConfig: BlipVqa, NlvrConfig: BlipNlvr}


@dataclass
class GoldenBlip:
    """Access to one folder of numbers."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return json.loads((self.folder / "meta.json").read_text())

    @cached_property
    def io(self) -> dict[str, Tensor]:
        return load_file(self.folder / "io.safetensors")

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return TextTokenizer.from_vocab(self.folder / "tokenizer" / "vocab.txt")

    def state(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def model(self, name: str) -> Any:
        """A model of ours with the weights of the reference's class `name`, without dropout."""
        state = self.state(name)
        text = json.loads((self.folder / "med_config.json").read_text())
        config = config_from_state(
            state, num_vision_heads=self.meta["vision_heads"], num_text_heads=text["num_attention_heads"]
        )
        config = replace(config, text=replace(config.text, dropout=0.0))
        model = MODELS[type(config)](config)
        load_blip_state(model, state, source=f"{name}.safetensors")
        return model.eval()
