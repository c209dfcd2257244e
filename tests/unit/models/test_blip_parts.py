"""What is shared, what a part of a model holds, and the vision tower: stems, positions, checkpointing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from plain_text import DEC, ENC, assert_same_gradients, small_blip, small_config, texts
from torch import nn

from openblip.core.errors import UserError
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import SIZES, Blip, BlipConfig, blip_config
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.vision import VisionEncoder, interpolate_positions
from openblip.objectives.configs import ObjectiveConfig
from openblip.objectives.matching import Negatives
from openblip.objectives.pretraining import BlipPretraining

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""the same sums of float32 in another order"""


def test_encoder_and_decoder_share_all_but_self_attention() -> None:
    model = small_blip()
    encoder, decoder = model.encoder, model.decoder.transformer
    assert decoder.embeddings is encoder.embeddings
    assert model.decoder.head.word is encoder.embeddings.word
    for mine, other in zip(encoder.text_blocks, decoder.text_blocks, strict=True):
        assert mine.cross_attention is other.cross_attention
        assert mine.feed_forward is other.feed_forward
        assert mine.self_attention is not other.self_attention
        own = {p.data_ptr() for p in mine.self_attention.parameters()}
        assert own.isdisjoint(p.data_ptr() for p in other.self_attention.parameters())
    shared = sum(p.numel() for p in model.parameters())
    own = sum(p.numel() for block in decoder.text_blocks for p in block.self_attention.parameters())
    head = sum(p.numel() for p in model.decoder.head.parameters()) - encoder.embeddings.word.weight.numel()
    filter_size = sum(p.numel() for p in model.part(encoder=True, decoder=False).parameters())
    assert shared == filter_size + own + head


def test_parameters_of_the_papers_sizes() -> None:
    """Vision (timm's count), BERT with cross-attention, the decoder's self-attention and head, projections."""
    counted = {}
    with torch.device("meta"):
        for size in ("base", "large"):
            counted[size] = sum(p.numel() for p in Blip(blip_config(size)).parameters())
    vision = {"base": 85_798_656, "large": 303_301_632}
    for size, width in (("base", 768), ("large", 1024)):
        attention = 4 * (768 * 768 + 768) + 2 * 768
        cross = 2 * (768 * 768 + 768) + 2 * (width * 768 + 768) + 2 * 768
        feed = 2 * 768 * 3072 + 3072 + 768 + 2 * 768
        embeddings = (30524 + 512) * 768 + 2 * 768
        text = 12 * (2 * attention + cross + feed) + embeddings
        head = 768 * 768 + 768 + 2 * 768 + 30524
        heads = width * 256 + 256 + 768 * 256 + 256 + 768 * 2 + 2 + 1
        assert counted[size] == vision[size] + text + head + heads


@pytest.mark.parametrize("kind", ["captioner", "filter"])
def test_a_part_equals_the_whole(kind: str) -> None:
    whole = small_blip(dropout=0.3).eval()
    part = whole.part(encoder=kind == "filter", decoder=kind == "captioner")
    images = torch.randn(2, 3, 32, 32)
    ids, mask = texts([4, 6])
    assert not part.training, "a part is in the mode of the whole"
    torch.testing.assert_close(part.encode_image(images), whole.encode_image(images), **CLOSE)
    for model in (whole, part):
        model.memory = model.remember(model.encode_image(images))  # type: ignore[assignment]
    if kind == "captioner":
        written = part.decoder(ids, mask, memory=part.memory)
        torch.testing.assert_close(written, whole.decoder(ids, mask, memory=whole.memory), **CLOSE)
        with pytest.raises(UserError, match="only writes captions"):
            part.match(ids, mask, part.memory)
    else:
        matched = part.match(ids, mask, part.memory)
        torch.testing.assert_close(matched, whole.match(ids, mask, whole.memory), **CLOSE)
        torch.testing.assert_close(part.text_features(ids, mask), whole.text_features(ids, mask), **CLOSE)
        with pytest.raises(UserError, match="only matches"):
            _ = part.decoder
    assert not {p.data_ptr() for p in part.parameters()} & {p.data_ptr() for p in whole.parameters()}


def test_a_part_keeps_the_dtype_and_a_missing_part_is_reported() -> None:
    whole = small_blip().bfloat16()
    captioner = whole.part(encoder=False, decoder=True)
    assert {p.dtype for p in captioner.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match="only writes captions"):
        captioner.part(encoder=True, decoder=False)


def test_batch_of_one_equals_its_row_of_a_larger_batch() -> None:
    model = small_blip().eval()
    images = torch.randn(3, 3, 32, 32)
    ids, mask = texts([5, 5, 5])
    embeds = model.encode_image(images)
    many = (
        embeds,
        model.image_features(embeds),
        model.text_features(ids, mask),
        model.match(ids, mask, model.remember(embeds)),
        model.decoder(ids, mask, memory=model.remember(embeds)),
    )
    one_image = model.encode_image(images[1:2])
    one = (
        one_image,
        model.image_features(one_image),
        model.text_features(ids[1:2], mask[1:2]),
        model.match(ids[1:2], mask[1:2], model.remember(one_image)),
        model.decoder(ids[1:2], mask[1:2], memory=model.remember(one_image)),
    )
    for whole, row in zip(many, one, strict=True):
        assert row.shape == (1, *whole.shape[1:])
        torch.testing.assert_close(row[0], whole[1], **CLOSE)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(dropout: float) -> None:
    """Dropout too: the recomputed forward pass draws the same masks."""
    ids, mask = texts([4, 7])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    negatives = Negatives(torch.tensor([1, 0]), torch.tensor([1, 0]), torch.ones(2, dtype=torch.bool))
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        step = BlipPretraining(small_blip(dropout=dropout), ObjectiveConfig(queue_size=4), enc_id=ENC, dec_id=DEC)
        step.train().gradient_checkpointing_enable(enabled)
        torch.manual_seed(1)
        loss = step(images, TokenBatch(ids, mask), negatives=negatives)["loss"]
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in step.model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0][0], found[1][0], **CLOSE)
    assert_same_gradients(found[0][1], found[1][1])


@pytest.mark.parametrize(("pixels", "patch", "width"), [(64, 8, 32), (32, 16, 64), (48, 4, 16)])
def test_conv_stem_gives_one_token_for_each_patch(pixels: int, patch: int, width: int) -> None:
    config = VisionConfig(image_size=pixels, patch_size=patch, width=width, depth=1, num_heads=2, stem="conv")
    tower = VisionEncoder(config)
    images = torch.randn(2, 3, pixels, pixels, requires_grad=True)
    tokens = tower(images)
    assert tokens.shape == (2, 1 + (pixels // patch) ** 2, width)
    tokens.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    # Rows of patches one after the other, as the patch stem orders them; convolutions of stride 2 with padding 1
    # centre a token on the first pixel of its patch.
    side = pixels // patch
    for token in (1, side * (side - 1)):
        row, column = divmod(token, side)
        images.grad = None
        tower.vit.patch_embed(images)[:, token].square().sum().backward()
        assert images.grad is not None
        seen = images.grad.square().sum((0, 1))
        place = torch.arange(float(pixels))
        assert abs(float((seen.sum(1) * place).sum() / seen.sum()) - row * patch) <= 0.75 * patch
        assert abs(float((seen.sum(0) * place).sum() / seen.sum()) - column * patch) <= 0.75 * patch


def test_patch_stem_is_a_strided_convolution() -> None:
    tower = VisionEncoder(VisionConfig(image_size=32, patch_size=16, width=16, depth=1, num_heads=2))
    projections = [m for m in tower.vit.patch_embed.modules() if isinstance(m, nn.Conv2d)]
    assert [p.stride for p in projections] == [(16, 16)]


def test_positions_are_kept_when_the_grid_is() -> None:
    positions = torch.randn(1, 1 + 6, 4)
    assert interpolate_positions(positions, (2, 3), (2, 3)) is positions


def test_positions_of_a_grid_that_is_no_square() -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    field = torch.stack((rows, columns), dim=-1).reshape(1, 24, 2)
    positions = torch.cat((torch.full((1, 1, 2), -7.0), field), dim=1)
    resized = interpolate_positions(positions, (8, 3), (4, 6))
    assert resized.shape == (1, 1 + 24, 2)
    assert resized[0, 0].tolist() == [-7.0, -7.0]
    grid = resized[0, 1:].view(8, 3, 2)
    # The first channel depends on the row alone and grows with it, the second on the column alone.
    assert grid[:, :, 0].std(dim=1).max() < 1e-5
    assert (grid[1:, 0, 0] > grid[:-1, 0, 0]).all()
    assert grid[:, :, 1].std(dim=0).max() < 1e-5
    assert (grid[0, 1:, 1] > grid[0, :-1, 1]).all()
    assert abs(float(grid[:, :, 0].mean()) - 1.5) < 1e-4
    assert abs(float(grid[:, :, 1].mean()) - 2.5) < 1e-4


def test_positions_that_fill_no_grid_are_reported() -> None:
    with pytest.raises(UserError, match="6 position embeddings"):
        interpolate_positions(torch.randn(1, 7, 4), (2, 3))


def test_a_text_longer_than_the_model_takes_is_reported() -> None:
    model = small_blip()
    ids, mask = texts([25])
    with pytest.raises(UserError, match="25 tokens is longer than the 24"):
        model.text_features(ids, mask)


def test_configurations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="vision tower is 768 wide"):
        BlipConfig(text=TextConfig(memory_width=512))
    with pytest.raises(ValueError, match="not a multiple of the patch size"):
        VisionConfig(image_size=225)
    with pytest.raises(UserError, match="depth of the text transformer must be at least 1, not 0"):
        TextConfig(depth=0)
    for wrong, message in (
        ({"depth": -1}, "depth of the vision tower cannot be -1"),
        ({"registers": -1}, "registers of the vision tower cannot be -1"),
        ({"stem": "conv", "patch_size": 12, "image_size": 48}, "a power of 2, not 12"),
        ({"stem": "conv", "width": 66, "num_heads": 2}, "a multiple of 4, not 66"),
    ):
        with pytest.raises(UserError, match=message):
            VisionConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an encoder, a decoder, or both"):
        replace(small_config(), encoder=False, decoder=False)
    with pytest.raises(UserError, match='did you mean "base"'):
        blip_config("bass")


@pytest.mark.parametrize("size", [s for s in SIZES if s not in ("base", "large")])
def test_small_sizes_run(size: str) -> None:
    model = Blip(blip_config(size, vocab_size=60)).eval()
    images = torch.randn(1, 3, 64, 64)
    ids, mask = texts([5])
    memory = model.remember(model.encode_image(images))
    assert model.match(ids, mask, memory).shape == (1, 2)
    assert model.decoder(ids, mask, memory=memory).shape == (1, 5, 60)
