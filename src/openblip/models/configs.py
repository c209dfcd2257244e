"""What the parts of a model are made of: sizes, sources and dtypes, read without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from openblip.core.errors import UserError

__all__ = [
    "QFORMERS",
    "Chat",
    "LanguageConfig",
    "QFormerConfig",
    "QFormerSettings",
    "TextConfig",
    "TowerConfig",
    "VisionConfig",
    "as_language",
    "as_tower",
]


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of the vision tower; the defaults are ViT-B/16's."""

    image_size: int | tuple[int, int] = 224
    """Height and width in pixels; one number for squares."""
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    stem: Literal["patch", "conv"] = "patch"
    """"patch" is one strided convolution, as in the papers; "conv" is a stack of 3x3 convolutions, which learns
    faster from few images (Xiao et al. 2021, arXiv 2106.14881)."""
    drop_path: float = 0.0
    layer_norm_eps: float = 1e-6
    """Epsilon of the LayerNorms, as in the original repository; transformers' BLIP computes with 1e-5 by
    default."""
    final_norm: bool = True
    """Whether the tower ends with a LayerNorm; False where another norm follows, as after BLIP-2's frozen
    towers."""
    registers: int = 0
    """Tokens between [CLS] and the patches that hold no part of the image and are left out of what the tower gives:
    DINOv2's registers (Darcet et al. 2023, arXiv 2309.16588), the distillation token of a DeiT."""
    pretrained: str | None = None
    """The source that the weights were taken from when training started: timm:NAME or hf:NAME."""

    def __post_init__(self) -> None:
        patch = self.patch_size
        for name in ("patch_size", "width", "num_heads"):
            if (size := getattr(self, name)) < 1:
                raise UserError(f"{name} of the vision tower must be at least 1, not {size}")
        for name in ("depth", "registers"):
            if (number := getattr(self, name)) < 0:
                raise UserError(f"{name} of the vision tower cannot be {number}")
        if self.stem == "conv":
            if patch & (patch - 1):
                raise UserError(f"the conv stem needs a patch size that is a power of 2, not {patch}")
            if self.width % 4:
                raise UserError(f"the conv stem needs a width that is a multiple of 4, not {self.width}")
        if wrong := [side for side in self.pixels if side % patch or side < patch]:
            below, above = wrong[0] // patch * patch, max(wrong[0] // patch + 1, 1) * patch
            raise UserError(
                f"image size {self.image_size} is not a multiple of the patch size {patch}: "
                f"take {f'{below} or ' if below > 0 else ''}{above}"
            )
        if self.width % self.num_heads:
            raise UserError(f"vision width {self.width} is not a multiple of {self.num_heads} heads")

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the images."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.pixels[0] // self.patch_size, self.pixels[1] // self.patch_size


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the text transformer; the defaults are BERT-base's."""

    vocab_size: int = 30524
    """BERT's 30,522 pieces, [DEC] and [ENC]."""
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    inner_width: int = 3072
    """Width of the feed-forward layers."""
    max_positions: int = 512
    memory_width: int | None = 768
    """Width of what cross-attention reads (the vision width); None builds no cross-attention."""
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    pad_id: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "num_heads", "inner_width", "max_positions"):
            if (size := getattr(self, name)) < 1:
                raise UserError(f"{name} of the text transformer must be at least 1, not {size}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be from 0 to below 1, not {self.dropout}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise UserError(f"pad_id must be an id of the {self.vocab_size} in the vocabulary, not {self.pad_id}")
        if self.width % self.num_heads:
            raise UserError(f"text width {self.width} is not a multiple of {self.num_heads} heads")


@dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """Sizes of the Q-Former; the defaults are the paper's, over ViT-g/14."""

    num_queries: int = 32
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    inner_width: int = 3072
    """Width of the feed-forward layers."""
    cross_attention_every: int = 2
    """The first of every so many layers reads the image."""
    memory_width: int = 1408
    """Width of the frozen encoder's features."""
    vocab_size: int | None = 30523
    """BERT's 30,522 pieces and [DEC]; None builds no text side, as in published stage-2 models."""
    writes: bool = True
    """Whether the Q-Former has the language head of ITG."""
    max_positions: int = 512
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    pad_id: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "num_heads", "inner_width"):
            if (size := getattr(self, name)) < 1:
                raise UserError(f"{name} of the Q-Former must be at least 1, not {size}")
        if self.width % self.num_heads:
            raise UserError(f"the Q-Former's width {self.width} is not a multiple of {self.num_heads} heads")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout of the Q-Former must be from 0 to below 1, not {self.dropout}")
        if self.vocab_size is not None and not (0 <= self.pad_id < self.vocab_size and self.max_positions > 0):
            raise UserError(
                f"the Q-Former's texts need a vocabulary with pad_id in it and positions, not vocab_size "
                f"{self.vocab_size}, pad_id {self.pad_id} and max_positions {self.max_positions}"
            )
        if self.num_queries < 1 or self.cross_attention_every < 1:
            raise UserError("the Q-Former needs at least one query and a layer that reads the image")

    @property
    def text(self) -> TextConfig:
        """Its text side, in the words of the text transformer."""
        assert self.vocab_size is not None
        return TextConfig(
            vocab_size=self.vocab_size,
            width=self.width,
            num_heads=self.num_heads,
            max_positions=self.max_positions,
            layer_norm_eps=self.layer_norm_eps,
            pad_id=self.pad_id,
        )


@dataclass(frozen=True, kw_only=True)
class QFormerSettings:
    """What a run sets of a Q-Former that it trains from scratch.

    None takes the value of the BERT that the Q-Former starts from, or else of its size in `QFORMERS`. Tower and
    tokenizer give the widths of features and vocabulary.
    """

    num_queries: int | None = None
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    inner_width: int | None = None
    cross_attention_every: int | None = None
    max_positions: int | None = None
    dropout: float | None = None
    layer_norm_eps: float | None = None


QFORMERS: dict[str, QFormerConfig] = {
    "base": QFormerConfig(),
    "micro": QFormerConfig(num_queries=16, width=256, depth=4, num_heads=4, inner_width=1024, max_positions=128),
    "nano": QFormerConfig(num_queries=8, width=64, depth=2, num_heads=2, inner_width=128, max_positions=64),
}
"""The paper's Q-Former, and two for few images and no GPU."""


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Which frozen vision tower; the default is the paper's EVA-CLIP ViT-g/14 without its last block."""

    source: str = "timm:eva_giant_patch14_clip_224"
    """timm:NAME (or timm:local-dir:FOLDER, timm:ARCHITECTURE@FILE), hf:NAME (a vision model of transformers, by hub
    name or folder), openblip:FOLDER (the vision tower of a BLIP model of ours), or "own": `own` gives the sizes and
    the model's file holds the weights."""
    drop_layers: int | None = None
    """Blocks left out at the end; with 0 the tower's final norm stays. None is 1 for a transformer of timm or
    transformers, as in the paper, and 0 for any other tower."""
    image_size: int | None = None
    """Side of the images in pixels; None is that of the tower's own preprocessor."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """The dtype in which a frozen tower is kept and computes; "auto" becomes bfloat16 where that is fast, else
    float32, when the tower is built."""
    trained: bool = False
    """Whether the tower is fine-tuned with the rest, in float32, in place of frozen."""
    own: VisionConfig | None = None
    """Sizes of the tower where `source` is "own"."""

    def __post_init__(self) -> None:
        kind = self.source.partition(":")[0]
        if kind not in ("timm", "hf", "openblip", "own"):
            raise UserError(
                f'a vision tower comes from timm:NAME, hf:NAME or openblip:FOLDER; "{self.source}" is none of these'
            )
        if (kind == "own") != (self.own is not None):
            raise UserError('the vision tower\'s sizes (own) go with source = "own" and with no other')
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size is the side of images in pixels and cannot be {self.image_size}")
        if self.drop_layers is not None and self.drop_layers < 0:
            raise UserError(f"drop_layers counts blocks and cannot be {self.drop_layers}")

    @property
    def kind(self) -> str:
        """timm, hf, openblip or own."""
        return self.source.partition(":")[0]

    @property
    def name(self) -> str:
        """What stands behind the kind."""
        return self.source.partition(":")[2]

    def at(self, image_size: int) -> TowerConfig:
        """The same tower for images of another side in pixels."""
        if self.own is not None:
            return replace(self, own=replace(self.own, image_size=image_size))
        return replace(self, image_size=image_size)

    @property
    def place(self) -> tuple[str, str]:
        """`source` in two: up to where it names a path or a hub name, and that; timm's own names have none."""
        if self.kind == "timm":
            before, mark, path = self.source.partition("timm:local-dir:")
            if not mark and not self.name.startswith("hf-hub:"):
                before, mark, path = self.source.partition("@")
            return (before + mark, path) if mark else (self.source, "")
        return f"{self.kind}:", self.name


Chat = Literal["auto", "yes", "no"]
Quantize = Literal["none", "8bit", "4bit"]


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Which frozen language model."""

    source: str = "facebook/opt-2.7b"
    """a transformers folder or hub name; a decoder or an encoder-decoder. With the name of a GGUF file in it
    ("folder/model.gguf", by the extra "gguf"), that one, its matrices in `dtype`"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """that it is kept and computes in; "auto" becomes bfloat16 where that is fast, else float32, when the model
    is opened"""
    quantize: Quantize = "none"
    """keep its blocks' matrices quantized, by bitsandbytes (the extra "quantize"): LLM.int8() or NF4; `dtype`
    is what the rest is kept in, and what NF4 computes in"""
    lora_rank: int = 0
    """above 0: train low-rank matrices beside its projections (by the extra "lora")"""
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ()
    """the projections that LoRA goes to, as ("q_proj", "v_proj"); () are those that peft names for its kind"""
    bos: Literal["auto", "first", "none"] = "auto"
    """where a text's [BOS] stands: before the soft prompts ("first"), or after them with the text ("none", as in
    published models); "auto" is settled by `FrozenLanguage.settle_bos` when stage 2 starts, "none" till then"""
    chat: Chat = "auto"
    """whether prompts stand in the user's turn of its tokenizer's chat template, after the soft prompts; "auto":
    for questions, where there is a template and the model was not trained with a prompt of its own"""
    end: str = ""
    """text that ends what it writes; "" is its end token ("\\n" for the published OPT models)"""
    begin: str = ""
    """the token that stands in place of its tokenizer's [BOS]; "" is [BOS] itself ("</s>" for LAVIS' InstructBLIP
    before Vicuna)"""

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise UserError(f"lora_rank cannot be {self.lora_rank}; 0 is no LoRA")


def as_tower(source: str, like: TowerConfig | None = None) -> TowerConfig:
    """A configuration of the tower `source`, with the dtype and image size of `like`.

    A source may end with how many blocks to leave out: "timm:NAME@1". Digits behind the last @ are always that; a
    file of weights whose name is digits alone is written with a folder, "timm:ARCHITECTURE@./1".
    """
    name, at, count = source.rpartition("@")
    named = bool(at) and count.isdigit()
    like = like or TowerConfig()
    return TowerConfig(
        source=name if named else source,
        drop_layers=int(count) if named else None,
        image_size=like.image_size,
        dtype=like.dtype,
        trained=like.trained,
    )


def as_language(source: str, like: LanguageConfig | None = None) -> LanguageConfig:
    """A configuration of the language model `source`, otherwise as `like`."""
    return replace(like or LanguageConfig(), source=source)
