"""The momentum copies' formula and what they leave out; the queue as a ring of any size for batches of any size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openblip.models.blip import Blip, blip_config
from openblip.objectives.momentum import FeatureQueue, MomentumCopy


def nano(seed: int = 0) -> Blip:
    torch.manual_seed(seed)
    return Blip(blip_config("nano", vocab_size=40))


def test_update_moves_every_copy_by_the_formula() -> None:
    model = nano()
    momentum_copy = MomentumCopy(model, 0.9)
    before = {name: p.clone() for name, p in momentum_copy.named_parameters()}
    online = dict(model.named_parameters())
    for name, value in before.items():
        assert value.equal(online[name]), "a copy begins as the model is"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    momentum_copy.update(model)
    for name, value in momentum_copy.named_parameters():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * online[name], rtol=1e-5, atol=1e-6)
    assert all(p.data_ptr() != online[n].data_ptr() for n, p in momentum_copy.named_parameters())


def test_momentum_copy_holds_what_features_need_and_nothing_else() -> None:
    model = nano()
    names = {name for name, _ in MomentumCopy(model, 0.995).named_parameters()}
    assert names == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("vision.", "text_encoder.", "vision_proj.", "text_proj."))
        and ".cross_attention." not in name
    }


def test_momentum_copy_gives_the_models_features_without_gradient_or_dropout() -> None:
    torch.manual_seed(0)
    config = blip_config("nano", vocab_size=40)
    model = Blip(replace(config, text=replace(config.text, dropout=0.5))).eval()
    momentum_copy = MomentumCopy(model, 0.995)
    momentum_copy.train()
    assert not any(module.training for module in momentum_copy.modules())
    images, ids = torch.randn(2, 3, 64, 64), torch.randint(5, 40, (2, 6))
    image, text = momentum_copy.features(images, ids, None)
    torch.testing.assert_close(image, model.image_features(model.encode_image(images)))
    torch.testing.assert_close(text, model.text_features(ids, None))
    assert not image.requires_grad
    assert not any(p.requires_grad for p in momentum_copy.parameters())
    assert image.equal(momentum_copy.features(images, ids, None)[0])


def numbered(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, 2)


@pytest.mark.parametrize(
    ("size", "batches"),
    [(4, [2, 2]), (5, [2, 2, 2, 2]), (3, [7]), (3, [3, 3, 4]), (1, [1, 2]), (7, [5, 1, 9, 3]), (6, [6])],
)
def test_queue_keeps_the_last_features_in_a_ring(size: int, batches: list[int]) -> None:
    queue = FeatureQueue(size, 2)
    expected: dict[int, int] = {}  # slot -> number of the sample
    total = 0
    for count in batches:
        features = numbered(total, count)
        queue.enqueue(features, features + 1000, torch.arange(total, total + count))
        for number in range(total, total + count):
            expected[number % size] = number
        total += count
    for slot, number in expected.items():
        assert queue.images[slot].tolist() == [number] * 2
        assert queue.texts[slot].tolist() == [number + 1000] * 2
        assert int(queue.image_ids[slot]) == number
    untouched = sorted(set(range(size)) - set(expected))
    assert queue.image_ids[untouched].eq(-100).all()
    assert int(queue.position) == total % size


def test_queue_without_ids_holds_no_image() -> None:
    queue = FeatureQueue(4, 2)
    queue.enqueue(numbered(0, 2), numbered(0, 2), torch.tensor([8, 9]))
    queue.enqueue(numbered(2, 4), numbered(2, 4))
    assert queue.image_ids.eq(-100).all()


def test_queue_of_no_size_takes_anything() -> None:
    queue = FeatureQueue(0, 2)
    queue.enqueue(numbered(0, 3), numbered(0, 3), torch.arange(3))
    assert queue.images.shape == (0, 2)


def test_queue_is_saved_with_its_position() -> None:
    queue, other = FeatureQueue(5, 2), FeatureQueue(5, 2)
    queue.enqueue(numbered(0, 3), numbered(0, 3), torch.arange(3))
    other.load_state_dict(queue.state_dict())
    other.enqueue(numbered(3, 4), numbered(3, 4), torch.arange(3, 7))
    assert other.image_ids.tolist() == [5, 6, 2, 3, 4]
