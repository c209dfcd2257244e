"""What kinds of models there are: of which a stored one is, what to call it in messages, and what it can do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from openblip.checkpoints.state import ONNX_FORMAT, Found
from openblip.core.errors import UserError, nearest
from openblip.core.places import nested_model
from openblip.models.blip import Blip, BlipConfig
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.dual import BlipDual, DualConfig
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.models.vqa import BlipVqa, VqaConfig

__all__ = ["INSTRUCT", "KINDS", "AnyConfig", "Kind", "describe", "family_of", "format_of"]

AnyConfig = BlipConfig | VqaConfig | NlvrConfig | DualConfig
"""of a BLIP model; BLIP-2's is another"""

# Others' files that people take for BLIP's; the first pattern that matches a key wins.
_STRANGERS = (
    (r"[Qq]former\.|query_tokens$|qformer\.", "a BLIP-2 model, which has a Q-Former"),
    (r"vit\.|visual\.transformer\.|text_model\.encoder\.layers\.", "a CLIP model"),
    (r"bert\.|embeddings\.word_embeddings", "a BERT"),
    (r"blocks\.\d+\.attn\.qkv|encoder\.layers\.encoder_layer_", "a vision transformer without a text side"),
    (r"model\.layers\.|model\.decoder\.layers\.|transformer\.h\.", "a language model"),
    (r"layer\d\.\d+\.conv\d|features\.\d", "a convolutional network"),
    (r"state$|param_groups$", "an optimiser's state"),
)


def format_of(keys: Iterable[str], source: str) -> Literal["blip", "transformers"]:
    """Whose names the keys are: the original repository's (LAVIS has the same) or those of transformers.

    Raises:
        UserError: they are of another model; says which it looks like.
    """
    names = list(keys)
    stranger = next((what for pattern, what in _STRANGERS if any(re.match(pattern, key) for key in names)), None)
    if any(key.startswith("visual_encoder.") for key in names) and not any("former." in key for key in names):
        return "blip"
    text = ("text_decoder.", "text_encoder.", "text_model.embeddings.word_embeddings")
    if any(key.startswith("vision_model.") for key in names) and any(key.startswith(text) for key in names):
        return "transformers"
    if stranger is None and names:
        stranger = f"something with keys like {', '.join(names[:3])}"
    raise UserError(f"{source} is no BLIP checkpoint; it looks like {stranger or 'an empty file'}")


def family_of(found: Found) -> str:
    """Which family of models it is of: "blip" or "blip2".

    Raises:
        UserError: it is of none, or a file of tensors that needs the folder around it.
    """
    if found.file is not None:
        state = found.file.state
        if any(key.startswith("Qformer.") for key in state):
            return "blip2"
        if format_of(state, found.path.name) == "transformers":
            raise UserError(
                f"{found.path} holds the weights of a transformers model; give its folder, with config.json"
            )
        return "blip"
    if found.description.get("format") == ONNX_FORMAT:
        raise UserError(
            f"{found.name} holds ONNX graphs, which onnxruntime runs; give the model they were made from"
        )
    kind = str(found.description.get("model_type", "unknown"))
    if found.own:
        families = {known.name: known.family for known in KINDS.values()}
        if kind not in families:
            raise UserError(f'{found.path} holds a model of the unknown type "{kind}"{nearest(kind, families)}')
        return families[kind]
    if kind not in _OF_TRANSFORMERS:
        *first, last = map(json.dumps, _OF_TRANSFORMERS)
        message = f'its config.json says "{kind}", not {", ".join(first)} or {last}'
        raise UserError(f"{found.name} is a model of another kind: {message}{nested_model(found.path)}")
    return _OF_TRANSFORMERS[kind]


def describe(config: AnyConfig | Blip2Config) -> str:
    """What a model is, in a few words: "a BLIP captioning model (vision 768 wide, 12 deep, 384 x 384 px)"."""
    return KINDS[type(config)].describe(config)


def _with_vision(title: Callable[[Any], str]) -> Callable[[Any], str]:
    def describe_kind(config: Any) -> str:
        vision = config.vision
        height, width = vision.pixels
        return f"a {title(config)} (vision {vision.width} wide, {vision.depth} deep, {height} x {width} px)"

    return describe_kind


def _blip_title(config: BlipConfig) -> str:
    if config.encoder and config.decoder:
        return "BLIP pre-training model"
    return "BLIP matching model" if config.encoder else "BLIP captioning model"


def _describe_blip2(config: Blip2Config) -> str:
    language = "" if config.language is None else f" and {config.language.source}"
    stage = "BLIP-2 stage 1 model" if config.language is None else "BLIP-2 model"
    return f"a {stage} ({config.qformer.num_queries} queries between {config.vision.source}{language})"


def _blip_can(config: BlipConfig) -> list[str]:
    return [
        *(["caption"] if config.decoder else []),
        *(_MATCHING if config.encoder else []),
        *("score", "explain"),  # of a captioner: likelihoods, and maps of the words it writes
    ]


def _blip2_can(config: Blip2Config) -> list[str]:
    writes = config.language is None and config.qformer.writes and config.qformer.vocab_size is not None
    return [
        *(["caption", "ask"] if config.language is not None else []),
        *(_MATCHING if config.matches else []),
        *(["caption"] if writes else []),  # with the Q-Former's own head (ITG)
        *(["score"] if config.matches or config.language is not None else []),
        *(["explain"] if config.matches else []),
    ]


_DUAL = "two-tower BLIP model (transformers' BlipModel)"
_MATCHING = ["match", "embed", "retrieve", "classify"]


@dataclass(frozen=True)
class Kind:
    """One kind of models: those of one class."""

    name: str
    """"model_type" in our config.json"""
    family: str
    model: type[nn.Module]
    describe: Callable[[Any], str]
    can: Callable[[Any], list[str]]
    """the commands for a model of a configuration, what it is mainly for first"""


KINDS: dict[type, Kind] = {
    BlipConfig: Kind("blip", "blip", Blip, _with_vision(_blip_title), _blip_can),
    VqaConfig: Kind(
        "blip-vqa", "blip", BlipVqa, _with_vision(lambda _: "BLIP VQA model"), lambda _: ["ask", "score"]
    ),
    NlvrConfig: Kind(
        "blip-nlvr", "blip", BlipNlvr, _with_vision(lambda _: "BLIP NLVR2 model"), lambda _: ["judge"]
    ),
    DualConfig: Kind(
        "blip-dual", "blip", BlipDual, _with_vision(lambda _: _DUAL), lambda _: ["embed", "classify", "score"]
    ),
    Blip2Config: Kind("blip2", "blip2", Blip2, _describe_blip2, _blip2_can),
}
"""every kind by its class of configuration"""
INSTRUCT = "instructblip"
_OF_TRANSFORMERS = {"blip": "blip", "blip-2": "blip2", INSTRUCT: "blip2"}
"""families by transformers' "model_type" """
