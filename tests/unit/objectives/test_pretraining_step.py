"""The whole step: no waiting for the device, batches of one, one image for all, ramps, seeds, any queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openblip.core.errors import UserError
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip, blip_config
from openblip.objectives import pretraining
from openblip.objectives.configs import ObjectiveConfig
from openblip.objectives.contrastive import SoftTargets
from openblip.objectives.matching import Negatives
from openblip.objectives.pretraining import BlipPretraining

DEC, ENC = 38, 39


def make_step(seed: int = 0, **config: Any) -> BlipPretraining:
    torch.manual_seed(seed)
    model = Blip(blip_config("nano", vocab_size=40))
    return BlipPretraining(model, ObjectiveConfig(**{"queue_size": 6, **config}), enc_id=ENC, dec_id=DEC).train()


def make_batch(size: int, seed: int = 0) -> tuple[Tensor, TokenBatch]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (size,), generator=generator)
    mask = torch.arange(8) < lengths[:, None]
    ids = torch.randint(5, 38, (size, 8), generator=generator).masked_fill(~mask, 0)
    return torch.randn(size, 3, 64, 64, generator=generator), TokenBatch(ids, mask)


def assert_finite(step: BlipPretraining, losses: dict[str, Tensor]) -> None:
    for name, value in losses.items():
        assert value.isfinite(), name
    losses["loss"].backward()
    grads = [p.grad for p in step.model.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


class NoWaiting(TorchDispatchMode):
    """Fails on every operation whose result the host would have to wait for on an accelerator."""

    WAITING = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"the step waits for the device in {name}"
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            devices = {t.device for t in (*args, result) if isinstance(t, Tensor)}
            assert len(devices) == 1, f"the step copies between {devices}"
        if name in ("index", "index_put_", "index_put"):
            indices = [i for i in args[1] if isinstance(i, Tensor)]
            assert not any(i.dtype == torch.bool for i in indices), "a boolean index waits for its count"
        return result


@pytest.mark.parametrize("use_image_ids", [False, True])
def test_a_step_never_waits_for_the_device(use_image_ids: bool) -> None:
    step = make_step(use_image_ids=use_image_ids)
    images, text = make_batch(4)
    ids = torch.tensor([1, 2, 1, 3])
    with NoWaiting():
        step.set_progress(0.5)
        losses = step(images, text, ids)
        losses["loss"].backward()
    assert_waits = [lambda: losses["loss"].item(), lambda: text.attention_mask.nonzero()]
    for wait in assert_waits:
        with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
            wait()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_never_waits_for_a_gpu() -> None:
    step = make_step(use_image_ids=True).cuda()
    images, text = make_batch(4)
    images, text, ids = images.cuda(), text.to("cuda"), torch.tensor([1, 2, 1, 3]).cuda()
    step(images, text, ids)["loss"].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.set_progress(0.5)
        step(images, text, ids)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("batch", "queue"), [(1, 0), (1, 6), (2, 5), (5, 3), (3, 1), (7, 6)])
def test_any_batch_and_any_queue(batch: int, queue: int) -> None:
    step = make_step(queue_size=queue)
    for _ in range(2):
        assert_finite(step, step(*make_batch(batch)))
    assert step.queue is not None
    assert int(step.queue.position) == (2 * batch % queue if queue else 0)


@pytest.mark.parametrize("same_image", [1, 2, 5])
def test_a_batch_of_one_image_is_finite(same_image: int) -> None:
    step = make_step(use_image_ids=True)
    images, text = make_batch(same_image)
    losses = step(images[:1].expand(same_image, -1, -1, -1), text, torch.full((same_image,), 9))
    assert_finite(step, losses)
    assert 0 <= float(losses["itm_accuracy"]) <= 1


def test_alpha_ramps_over_the_first_epoch() -> None:
    step = make_step(alpha=0.4)
    for epoch, wanted in ((0.0, 0.0), (0.25, 0.1), (1.0, 0.4), (3.5, 0.4)):
        step.set_progress(epoch)
        assert float(step.alpha_now) == pytest.approx(wanted)
    at_once = make_step(alpha=0.4, alpha_ramp_epochs=0.0)
    at_once.set_progress(0.0)
    assert float(at_once.alpha_now) == pytest.approx(0.4)
    slow = make_step(alpha=0.4, alpha_ramp_epochs=2.0)
    slow.set_progress(1.0)
    assert float(slow.alpha_now) == pytest.approx(0.2)


def test_alpha_changes_itc_alone() -> None:
    found = []
    for epoch in (0.0, 1.0):
        step = make_step()
        step.set_progress(epoch)
        torch.manual_seed(1)
        found.append(step(*make_batch(4)))
    assert abs(float(found[0]["loss_itc"] - found[1]["loss_itc"])) > 1e-4
    assert found[0]["loss_lm"].equal(found[1]["loss_lm"])
    assert found[0]["loss_itm"].equal(found[1]["loss_itm"])


def moved(step: BlipPretraining, act: Callable[[], Any]) -> bool:
    assert step.momentum_copy is not None
    with torch.no_grad():
        step.model.vision_proj.weight.add_(1.0)
    before = step.momentum_copy.vision_proj.weight.clone()  # type: ignore[union-attr, operator]
    act()
    return not before.equal(step.momentum_copy.vision_proj.weight)  # type: ignore[arg-type]


def test_momentum_moves_once_for_each_optimiser_step_and_never_in_evaluation() -> None:
    step = make_step()
    batch = make_batch(2)
    step.set_progress(0.1, new_step=True)
    assert moved(step, lambda: step(*batch))
    step.set_progress(0.1, new_step=False)
    assert not moved(step, lambda: step(*batch))
    step.set_progress(0.2, new_step=True)
    step.eval()
    assert step.queue is not None
    position = step.queue.position.clone()
    assert not moved(step, lambda: step(*batch))
    assert step.queue.position.equal(position)


def test_temperature_is_kept_within_its_bounds() -> None:
    for value, wanted in ((5.0, 0.5), (-1.0, 0.001)):
        step = make_step()
        with torch.no_grad():
            step.model.temperature.fill_(value)
        assert_finite(step, step(*make_batch(2)))
        assert float(step.model.temperature) == pytest.approx(wanted)


def test_one_seed_gives_one_step_bit_for_bit() -> None:
    runs = []
    for seed in (4, 4, 5):
        step = make_step()
        torch.manual_seed(seed)
        losses = [step(*make_batch(5, i)) for i in range(3)]
        losses[-1]["loss"].backward()
        runs.append((losses[-1]["loss_itm"].detach(), step.model.itm_head.weight.grad, losses[-1]["loss_itc"]))
    assert runs[0][0].equal(runs[1][0])
    assert runs[0][1].equal(runs[1][1])  # type: ignore[union-attr, arg-type]
    assert not runs[0][0].equal(runs[2][0]), "another seed draws other negatives"
    assert runs[0][2].equal(runs[2][2]), "ITC draws nothing"


def test_loss_is_the_weighted_sum_of_the_named() -> None:
    step = make_step(weights=(0.5, 2.0, 3.0))
    losses = step(*make_batch(3))
    wanted = 0.5 * losses["loss_itc"] + 2 * losses["loss_itm"] + 3 * losses["loss_lm"]
    torch.testing.assert_close(losses["loss"], wanted)


@pytest.mark.parametrize("objectives", [("lm",), ("itc",), ("itc", "itm"), ("itc", "lm")])
def test_objectives_that_are_off_cost_and_say_nothing(objectives: tuple[str, ...]) -> None:
    step = make_step(objectives=objectives)
    losses = step(*make_batch(3))
    assert {name for name in losses if name.startswith("loss_")} == {f"loss_{name}" for name in objectives}
    assert (step.momentum_copy is None) == ("itc" not in objectives)
    assert_finite(step, losses)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"objectives": ("itc", "imt")}, 'unknown objective "imt"'),
        ({"objectives": ("itm", "lm")}, "name both"),
        ({"objectives": ()}, "no objective is named"),
        ({"queue_size": -1}, "queue_size cannot be -1"),
    ],
)
def test_configurations_that_cannot_be_are_reported(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ObjectiveConfig(**config)


def test_without_momentum_the_models_own_features_are_compared() -> None:
    """Its loss and gradients are those of copies that have just been made of the model."""
    images, text = make_batch(4)
    found = []
    for momentum in (0.0, 0.5):
        step = make_step(objectives=("itc", "itm"), queue_size=0, alpha=0.0, momentum=momentum)
        if momentum:
            step.update_momentum = False  # copies are equal to the model
        else:
            assert step.momentum_copy is None
        torch.manual_seed(1)
        losses = step(images, text)
        losses["loss"].backward()
        found.append((losses, [p.grad for p in step.model.parameters() if p.grad is not None]))
    for name in ("loss_itc", "loss_itm"):
        torch.testing.assert_close(found[0][0][name], found[1][0][name], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)  # the copies' passes sum in other orders


@pytest.mark.parametrize("settings", [{"queue_size": 8}, {"queue_size": 0, "alpha": 0.4}])
def test_without_momentum_nothing_can_rest_on_copies(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="momentum = 0 keeps no copies"):
        ObjectiveConfig(**{"alpha": 0.0, **settings}, momentum=0.0)


def test_negatives_are_drawn_by_similarities_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast too: differences of a bfloat16 would be divided by the temperature."""
    step, (images, text) = make_step(), make_batch(4)
    features: list[Tensor] = []
    drawn: list[Tensor] = []
    loss, draw = pretraining.contrastive_loss, pretraining.draw_negatives

    def note_features(image: Tensor, texts: Tensor, targets: SoftTargets, *rest: Any) -> Tensor:
        features.extend((image, texts, targets.image_features, targets.text_features))
        return loss(image, texts, targets, *rest)

    def note_similarities(t2i: Tensor, i2t: Tensor, *rest: Any, **options: Any) -> Negatives:
        drawn.extend((t2i, i2t))
        return draw(t2i, i2t, *rest, **options)

    monkeypatch.setattr(pretraining, "contrastive_loss", note_features)
    monkeypatch.setattr(pretraining, "draw_negatives", note_similarities)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(images, text)
    image, texts, momentum_image, momentum_text = (feature.detach().float() for feature in features)
    temperature = step.model.temperature.detach()
    # bfloat16 would be off by 0.004 of it
    torch.testing.assert_close(drawn[0], texts @ momentum_image.T / temperature, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(drawn[1], image @ momentum_text.T / temperature, rtol=1e-5, atol=1e-5)
