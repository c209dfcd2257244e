"""NLVR2's loss: the reference's logits give it, both images are trained, statements share a pair's memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.layers import PairCrossAttention
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.objectives.nlvr import NlvrObjective

VISION = VisionConfig(image_size=16, patch_size=8, width=16, depth=2, num_heads=2)
TEXT = TextConfig(
    vocab_size=30, width=16, depth=4, num_heads=2, inner_width=32, max_positions=16, memory_width=16, dropout=0.0
)
ENC = 29


@pytest.fixture
def objective() -> NlvrObjective:
    torch.manual_seed(0)
    return NlvrObjective(BlipNlvr(NlvrConfig(vision=VISION, text=TEXT, merge_from=2)), enc_id=ENC)


def tokens(rows: int) -> TokenBatch:
    ids = torch.randint(4, 28, (rows, 7), generator=torch.Generator().manual_seed(1))
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))


def pairs(count: int) -> Tensor:
    return torch.randn(count, 2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_the_loss_is_the_cross_entropy_of_the_logits(objective: NlvrObjective) -> None:
    images, text, labels = pairs(3), tokens(3), torch.tensor([1, 0, 1])
    result = objective(images, text, labels)
    model, ids = objective.model, text.input_ids.clone()
    ids[:, 0] = ENC
    logits = model.classify(ids, None, model.remember(model.encode_pair(images[:, 0], images[:, 1])))
    torch.testing.assert_close(result["loss"], F.cross_entropy(logits, labels))
    assert result["accuracy"] == (logits.argmax(1) == labels).float().mean()


def test_gradients_reach_the_cross_attention_of_both_images(objective: NlvrObjective) -> None:
    images = pairs(4).requires_grad_()
    objective(images, tokens(4), torch.tensor([1, 0, 0, 1]))["loss"].backward()
    assert images.grad is not None
    assert all(float(images.grad[:, image].abs().sum()) > 0 for image in (0, 1))
    for layer, block in enumerate(objective.model.text_encoder.text_blocks):
        attention = block.cross_attention
        assert isinstance(attention, PairCrossAttention)
        for part in (attention, attention.second):
            for linear in (part.query, part.key_value, part.output):
                assert float(linear.weight.grad.abs().sum()) > 0, layer
        assert (attention.merge is None) == (layer < 2)
        if attention.merge is not None:
            assert float(attention.merge.weight.grad[:, :16].abs().sum()) > 0
            assert float(attention.merge.weight.grad[:, 16:].abs().sum()) > 0
    unused = [name for name, p in objective.model.named_parameters() if p.grad is None]
    assert not unused


def test_statements_about_one_pair_share_its_memory(objective: NlvrObjective) -> None:
    """Two statements about the first pair and one about the second are three rows of pairs."""
    images, text, labels = pairs(2), tokens(3), torch.tensor([1, 0, 1])
    owner = torch.tensor([0, 0, 1])
    shared = objective(images, text, labels, pair_of=owner)["loss"]
    torch.testing.assert_close(shared, objective(images[owner], text, labels)["loss"])
    even = objective(images, tokens(4), torch.tensor([1, 0, 1, 1]))["loss"]
    given = objective(images, tokens(4), torch.tensor([1, 0, 1, 1]), pair_of=torch.tensor([0, 0, 1, 1]))["loss"]
    torch.testing.assert_close(even, given)
    halved = objective(images, text, labels, pair_of=owner, num_statements=torch.tensor(6.0))["loss"]
    torch.testing.assert_close(halved, shared / 2)


def test_training_from_a_pretrained_blip_separates_the_images(objective: NlvrObjective) -> None:
    """From a `Blip` both cross-attentions begin alike; a few steps learn which image a label depends on."""
    torch.manual_seed(0)
    blip = Blip(BlipConfig(vision=VISION, text=TEXT, embed_dim=8))
    model = objective.model
    model.start_from(blip)
    for block, source in zip(model.text_encoder.text_blocks, blip.encoder.text_blocks, strict=True):
        for part in (block.cross_attention, block.cross_attention.second):
            torch.testing.assert_close(part.key_value.weight, source.cross_attention.key_value.weight)
    images = pairs(1).expand(2, -1, -1, -1, -1).clone()
    images[1] = images[0].flip(0)  # the same two images in the other order
    text = TokenBatch(tokens(1).input_ids.expand(2, -1), None)
    labels = torch.tensor([1, 0])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(images, text, labels)["loss"]
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.1
