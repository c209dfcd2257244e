"""Learning rates against the references' formulas, groups of parameters, and the gradient's length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from training_toy import ToyStep, toy_config

from openblip.core.errors import UserError
from openblip.training.optim import clip_gradient, gradient_norm, hold_back, learning_rate, make_optimizer


def rates(steps: int, per_epoch: int, **changes: object) -> list[float]:
    config = toy_config(**{"warmup_steps": 0, "learning_rate": 3e-4, "min_learning_rate": 1e-6, **changes})
    return [learning_rate(config, step, per_epoch, steps) for step in range(steps)]


def test_pretraining_schedule_is_the_papers() -> None:
    # 3,000 warm-up steps from 1e-6 to 3e-4 in the first epoch, then 0.9 for each epoch, never below 1e-6.
    found = rates(100_000, 5000, schedule="epoch-decay", warmup_steps=3000)
    assert found[0] == 1e-6
    assert found[1500] == pytest.approx((1e-6 + 3e-4) / 2)
    assert found[3000] == found[4999] == 3e-4
    assert found[5000] == pytest.approx(3e-4 * 0.9)
    assert found[99_999] == pytest.approx(3e-4 * 0.9**19)
    assert min(rates(1000, 5, schedule="epoch-decay")) == 1e-6


def test_cosines_in_epochs_and_in_steps() -> None:
    by_epoch = rates(60, 10, schedule="cosine-epoch")
    assert len(set(by_epoch)) == 6
    assert by_epoch[0] == pytest.approx(3e-4)
    assert by_epoch[35] == pytest.approx(1e-6 + (3e-4 - 1e-6) * 0.5 * (1 + math.cos(math.pi * 3 / 6)))
    by_step = rates(60, 10, schedule="cosine")
    assert by_step[30] == pytest.approx((3e-4 + 1e-6) / 2)
    assert by_step == sorted(by_step, reverse=True)
    assert len(set(by_step)) == 60


def test_linear_constant_and_a_warm_up_longer_than_an_epoch() -> None:
    assert rates(10, 5, schedule="linear")[5] == pytest.approx((3e-4 + 1e-6) / 2)
    assert set(rates(10, 5, schedule="constant")) == {3e-4}
    long = rates(200, 10, schedule="epoch-decay", warmup_steps=100)
    top = long.index(max(long))
    assert long[: top + 1] == sorted(long[: top + 1])
    assert max(b / a for a, b in zip(long[top:], long[top + 1 :], strict=False)) <= 1.0


def test_decay_of_all_or_of_matrices() -> None:
    module = ToyStep()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    everything = make_optimizer(module, toy_config()).param_groups
    assert [group["weight_decay"] for group in everything] == [0.05]
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert {names[id(p)] for p in everything[0]["params"]} == trained
    groups = make_optimizer(module, toy_config(weight_decay_on="matrices")).param_groups
    spared = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {"temperature", "entry.bias", "left.0.norm.weight"} <= spared
    assert "entry.weight" not in spared
    assert "out.weight" not in spared


def test_layers_learn_slower_the_deeper_they_lie() -> None:
    module = ToyStep()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = make_optimizer(module, toy_config(layer_decay=0.5)).param_groups
    lr_scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert lr_scale["entry.weight"] == 0.5**3
    assert lr_scale["left.1.linear.bias"] == 0.5
    assert lr_scale["out.weight"] == lr_scale["temperature"] == 1.0
    with pytest.raises(UserError, match="layer_ids"):
        make_optimizer(nn.Linear(2, 2), toy_config(layer_decay=0.5))


def test_norm_and_clipping_are_torchs() -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(size)) for size in ((3, 4), (5,), (), (2, 2))]
    for parameter in parameters[:3]:
        parameter.grad = torch.randn_like(parameter)
    expected = torch.nn.utils.get_total_norm([p.grad for p in parameters[:3]])
    norm = gradient_norm(parameters)
    torch.testing.assert_close(norm, expected)
    clones = [nn.Parameter(p.detach().clone()) for p in parameters[:3]]
    for clone, parameter in zip(clones, parameters, strict=False):
        assert parameter.grad is not None
        clone.grad = parameter.grad.clone()
    torch.nn.utils.clip_grad_norm_(clones, 0.5)
    clip_gradient(parameters, norm, 0.5)
    for clone, parameter in zip(clones, parameters, strict=False):
        torch.testing.assert_close(parameter.grad, clone.grad)
    before = parameters[0].grad
    assert before is not None
    kept = before.clone()
    clip_gradient(parameters, gradient_norm(parameters), 1e3)
    torch.testing.assert_close(parameters[0].grad, kept, rtol=0, atol=0)


def test_muon_takes_hidden_matrices_and_leaves_the_rest() -> None:
    module = nn.ModuleDict({"word": nn.Embedding(40, 32), "hidden": nn.Linear(32, 64), "few": nn.Linear(64, 2)})
    module["tied"] = nn.Linear(32, 40, bias=False)
    module["tied"].weight = module["word"].weight
    optimizer = make_optimizer(module, toy_config(optimizer="muon", weight_decay_on="matrices"))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    taken = {names[id(p)] for group in optimizer.param_groups if group["use_muon"] for p in group["params"]}
    assert taken == {"hidden.weight"}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {"word.weight", "hidden.weight", "few.weight"}


def test_muon_moves_a_matrix_alike_in_all_directions() -> None:
    """Its step is orthogonal whatever the gradient's scale, and as long as AdamW's."""
    module = nn.Linear(32, 32, bias=False)
    optimizer = make_optimizer(module, toy_config(optimizer="muon", learning_rate=1e-3, weight_decay=0.0))
    before = module.weight.detach().clone()
    module.weight.grad = 1e-4 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    lengths = torch.linalg.svdvals(module.weight.detach() - before)
    assert lengths.min() > 0.4 * lengths.max(), "the gradient's own values lie hundreds of times apart"
    assert (module.weight.detach() - before).square().mean().sqrt().item() == pytest.approx(0.2e-3, rel=0.3)


def test_muon_refuses_shards() -> None:
    with pytest.raises(UserError, match=r"needs whole matrices.*\"adamw\""):
        toy_config(optimizer="muon", sharding="fsdp2")


def test_muon_is_held_back_by_the_flag() -> None:
    module = nn.Linear(32, 32)
    optimizer = make_optimizer(module, toy_config(optimizer="muon", weight_decay=0.0))
    before = [p.detach().clone() for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    hold_back(optimizer, torch.ones(()))
    optimizer.step()
    assert all(torch.equal(p, kept) for p, kept in zip(module.parameters(), before, strict=True))


def test_a_step_with_the_flag_up_changes_nothing() -> None:
    module = nn.Linear(3, 2)
    optimizer = make_optimizer(module, toy_config())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    weights = [p.detach().clone() for p in module.parameters()]
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    hold_back(optimizer, torch.ones(()))
    optimizer.step()
    for parameter, weight, moment in zip(module.parameters(), weights, moments, strict=True):
        assert torch.equal(parameter, weight)
        assert all(torch.equal(optimizer.state[parameter][key], moment[key]) for key in moment)


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(UserError, match="nothing to train"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), toy_config())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("epochs", 0, "epochs must be above 0"),
        ("max_steps", 0, "max_steps must be above 0"),
        ("warmup_steps", -1, "cannot be negative"),
        ("betas", (0.9, 1.0), r"betas must lie in"),
        ("min_learning_rate", 1.0, "is above learning_rate"),
        ("layer_decay", 1.5, "take 1 or less"),
    ],
)
def test_a_wrong_number_is_named(field: str, value: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        toy_config(**{field: value})
