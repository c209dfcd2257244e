"""BLIP with its vision tower from a DINOv2 and its text from a BERT, of sizes that no preset has."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from openblip.checkpoints.store import open_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sources.open import open_source
from openblip.models.pixels import normalize
from openblip.recipes.blip import blip_pretrain, caption_finetune
from openblip.recipes.small import small_pretrain
from openblip.tasks.config import FROM_PARTS, RunConfig
from openblip.tasks.families.blip import build
from openblip.tasks.sketch import sketch

CLOSE = {"rtol": 1e-4, "atol": 2e-4}
"""the same sums of float32 in another order, and folded weights in place of factors"""
DATA = "world:train?n=8&size=32"
TEXTS = ("a red circle left of a blue square", "two green triangles", "a large yellow star")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders as transformers writes them: a DINOv2 of 42 pixels, and a BERT without a language head."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(1)
    vit = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=24, num_hidden_layers=3, num_attention_heads=3, image_size=42, patch_size=14,
            layerscale_value=0.5,
        )
    )  # fmt: skip
    vit.save_pretrained(folder / "dino")
    vocabulary = TextTokenizer.train(TEXTS, vocab_size=80)._tokenizer.get_vocab()
    pieces = [piece for piece in sorted(vocabulary, key=vocabulary.__getitem__) if piece not in ("[DEC]", "[ENC]")]
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text("\n".join(pieces) + "\n")
    transformers.BertTokenizer(str(folder / "bert" / "vocab.txt")).save_pretrained(folder / "bert")
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(pieces), hidden_size=40, num_hidden_layers=2, num_attention_heads=5,
            intermediate_size=56, max_position_embeddings=70, layer_norm_eps=1e-6,
        )
    )  # fmt: skip
    bert.save_pretrained(folder / "bert")
    return f"hf:{folder / 'dino'}", str(folder / "bert")


def config(parts: tuple[str, str], **changes: Any) -> RunConfig:
    made = small_pretrain((DATA,), model=FROM_PARTS, vision=parts[0], text=parts[1])
    return replace(made, image_size=28, **changes)


def built(config: RunConfig, out: Path) -> Any:
    return build(config, [open_source(source) for source in config.sources], out)


@torch.no_grad()
def test_both_sides_give_what_the_parts_give(parts: tuple[str, str], tmp_path: Path) -> None:
    adapter = built(config(parts), tmp_path)
    model, tokenizer = adapter.model.eval(), adapter.tokenizer
    vision, text = model.config.vision, model.config.text
    assert (vision.image_size, vision.patch_size) == (28, 14)
    assert (vision.width, vision.depth, vision.num_heads) == (24, 3, 3)
    assert (text.width, text.depth, text.num_heads, text.inner_width) == (40, 2, 5, 56)
    assert (text.max_positions, text.layer_norm_eps, text.memory_width) == (70, 1e-6, 24)
    bert = transformers.BertModel.from_pretrained(parts[1]).eval()
    assert text.vocab_size == tokenizer.vocab_size == bert.config.vocab_size + 2

    tokens = tokenizer.encode(TEXTS)
    expected = bert(tokens.input_ids, attention_mask=tokens.attention_mask.long()).last_hidden_state
    found = model.encoder(tokens.input_ids, tokens.attention_mask)
    torch.testing.assert_close(found[tokens.attention_mask], expected[tokens.attention_mask], **CLOSE)

    dino = transformers.Dinov2Model.from_pretrained(parts[0].removeprefix("hf:")).eval()
    images = torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8)
    theirs = normalize(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    torch.testing.assert_close(model.encode_pixels(images), dino(theirs).last_hidden_state, **CLOSE)
    assert adapter.begun == [
        "Vision tower from dino: 3 layers, 24 wide, patches of 14; taken: all weights with positions interpolated "
        "from 3 x 3 to 2 x 2, its normalisation of images folded into the patch embedding",
        f"Text transformer from bert: 2 layers, 40 wide, vocabulary {bert.config.vocab_size}; taken: embeddings, "
        "self-attention, feed-forward; drawn: cross-attention, the language head's transform, projections of ITC, "
        "the ITM head",
    ]


def test_it_is_trained_by_the_command(
    parts: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "small-pretrain", DATA, "--model", FROM_PARTS, "--vision", parts[0], "--text", parts[1]]
    settings = ["image_size=28", "batch_size=4", "num_workers=0", "train.device=cpu"]
    command += ["--steps", "2", "--out", str(out), *(word for one in settings for word in ("--set", one))]
    assert main(command) == 0
    said = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said[:2]] == ["Vision tower from dino", "Text transformer from bert"]
    stored = open_model(out / "model")
    assert stored.model.config.vision.width == 24
    assert (stored.model.config.vision.pretrained, stored.model.config.text.width) == (parts[0], 40)


def test_a_captioner_has_the_sizes_too(parts: tuple[str, str], tmp_path: Path) -> None:
    made = caption_finetune((DATA,), model=FROM_PARTS)
    made = replace(made, vision_pretrained=parts[0], text_pretrained=parts[1], image_size=None)
    model = built(made, tmp_path).model
    assert model.text_encoder is None
    # Its own size, which is below the 224 pixels of pre-training.
    assert (model.config.vision.image_size, model.config.text.width) == ((42, 42), 40)


def test_a_run_is_predicted_by_what_describes_its_parts(parts: tuple[str, str], tmp_path: Path) -> None:
    """Without their weights; timm's parts by their names."""
    folders = [shutil.copytree(part.removeprefix("hf:"), tmp_path / Path(part).name) for part in parts]
    for folder in folders:
        (folder / "model.safetensors").unlink()
    bare = (f"hf:{folders[0]}", str(folders[1]))
    step, _ = sketch(config(bare))
    wanted = {name: value.shape for name, value in built(config(parts), tmp_path / "out").model.named_parameters()}
    assert {name: value.shape for name, value in step.model.named_parameters()} == wanted
    step, _ = sketch(replace(config(("timm:vit_tiny_patch16_224", bare[1])), image_size=32))
    assert step.model.config.vision.width == 192
    with pytest.raises(UserError, match='model = "from-parts" takes its sizes from a vision tower and a BERT'):
        sketch(config(("", bare[1])))


def test_what_is_missing_or_does_not_fit_is_refused(parts: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match='model = "from-parts" takes its sizes from a vision tower and a BERT: name'
    ):
        built(config((parts[0], "")), tmp_path)
    with pytest.raises(UserError, match=r'dino" does not fit this vision tower: .*--model from-parts'):
        built(replace(config((parts[0], "")), model="nano", image_size=None), tmp_path)
    with pytest.raises(UserError, match=r"does not fit this text transformer: width 40 against 64.*from-parts"):
        built(replace(config(("", parts[1])), model="nano", image_size=None), tmp_path)
    with pytest.raises(UserError, match="image size 30 is not a multiple of the patch size 14: take 28 or 42"):
        built(replace(config(parts), image_size=30), tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        built(config((f"hf:{tmp_path / 'nowhere'}", parts[1])), tmp_path)
    with pytest.raises(UserError, match=r"keeps them; leave .*dino out"):
        built(replace(config(parts), model="some/model"), tmp_path)


def test_the_papers_run_takes_parts_too(parts: tuple[str, str]) -> None:
    made = blip_pretrain((DATA,), model=FROM_PARTS, vision=parts[0], text=parts[1])
    assert (made.vision_pretrained, made.text_pretrained) == parts
    assert made.train.learning_rate == config(parts).train.learning_rate == 3e-4
    assert blip_pretrain((DATA,), model="runs/x/model").vision_pretrained == ""
