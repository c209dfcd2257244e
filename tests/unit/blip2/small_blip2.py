"""Small BLIP-2 models with random weights, and small language models written as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import LanguageConfig, QFormerConfig, TowerConfig, VisionConfig
from openblip.models.language import make_language
from openblip.models.tower import make_tower

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
Kind = Literal["opt", "llama", "t5"]


def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS * 3, vocab_size=90)


def write_bert_words(folder: Path) -> int:
    """Write the tokenizer of a BERT as transformers does, without [DEC] and [ENC]; gives its number of pieces."""
    import transformers

    vocab = sorted(tokenizer()._tokenizer.get_vocab().items(), key=lambda item: item[1])
    pieces = [piece for piece, _ in vocab if piece not in ("[DEC]", "[ENC]")]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return len(pieces)


def make_image(number: int, side: int = PIXELS) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8))


def images(count: int = 3, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))


def write_language(folder: Path, kind: Kind = "opt", *, width: int = 32, scale: float = 0.3) -> Path:
    """A folder with a small language model of random weights and a tokenizer of words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted(
        {word for text in TEXTS for word in text.split()} | {"photo", "of", "question", "answer", "what", "is", ":"}
    )
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *words]
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    single = "$A </s>" if kind == "t5" else "<s> $A"
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes: dict[str, Any] = {"vocab_size": len(pieces) + 4, **ids}  # rows to spare, as published models have
    torch.manual_seed(5)
    if kind == "opt":
        model: Any = transformers.OPTForCausalLM(
            transformers.OPTConfig(
                hidden_size=width, ffn_dim=2 * width, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=64, word_embed_proj_dim=width, **sizes,
            )
        )  # fmt: skip
    elif kind == "llama":
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64, **sizes,
            )
        )  # fmt: skip
    else:
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                d_model=width, d_kv=width // 4, d_ff=2 * width, num_layers=2, num_heads=4,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, **sizes,
            )
        )  # fmt: skip
    spread(model, scale)
    model.eval().save_pretrained(folder)
    return folder


@torch.no_grad()
def spread(module: nn.Module, scale: float) -> None:
    """Draw weights wide enough that every text and image gives other numbers."""
    for name, parameter in module.named_parameters():
        noise = torch.randn_like(parameter)
        parameter.copy_(1 + 0.1 * noise if "norm" in name.lower() and name.endswith("weight") else scale * noise)


def config(*, language: LanguageConfig | None = None, **changes: Any) -> Blip2Config:
    vision = VisionConfig(image_size=PIXELS, patch_size=8, width=32, depth=2, num_heads=2, final_norm=False)
    qformer: dict[str, Any] = {
        "num_queries": 4, "width": 32, "depth": 4, "num_heads": 4, "inner_width": 64, "memory_width": 32,
        "vocab_size": tokenizer().vocab_size, "max_positions": 32,
    }  # fmt: skip
    settings = {"embed_dim": 16, "matches": True, **changes}
    return Blip2Config(
        vision=TowerConfig(source="own", own=vision),
        qformer=QFormerConfig(**{**qformer, **settings.pop("qformer", {})}),
        language=language,
        **settings,
    )


def model(*, language: Path | None = None, seed: int = 0, **changes: Any) -> Blip2:
    """A model in evaluation mode; with `language`, one of stage 2 over that folder's language model."""
    llm = None if language is None else LanguageConfig(source=str(language))
    made = config(language=llm, **changes)
    torch.manual_seed(seed)
    whole = Blip2(made, make_tower(made.vision), None if llm is None else make_language(llm))
    for name, part in whole.named_children():
        if name != "language":
            spread(part, 0.2)
    with torch.no_grad():
        whole.qformer.queries.normal_()
    return whole.eval()
