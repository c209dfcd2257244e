"""Linear layers by oneDNN equal torch's own: outputs, gradients, and where they leave it to torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from openblip.core.compute import this_cpu
from openblip.models import products
from openblip.models.flops import FlopCounterMode
from openblip.models.products import Linear, linear, use_onednn

needs_onednn = pytest.mark.skipif(not this_cpu().has_onednn, reason="this build of torch has no oneDNN")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that oneDNN was requested."""
    asked: list[tuple[int, ...]] = []
    product = products._product
    monkeypatch.setattr(products, "_prefers_onednn", lambda: True)  # whatever is fastest on this CPU

    def count(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        asked.append((*x.shape, *weight.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(products, "_product", count)
    return asked


def _pair(bias: bool = True, read: int = 256, given: int = 320) -> tuple[nn.Linear, Linear]:
    torch.manual_seed(0)
    plain, ours = nn.Linear(read, given, bias=bias), Linear(read, given, bias=bias)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "given"),
    [((1, 256), 320), ((5, 256), 320), ((2, 3, 256), 320), ((30, 100, 32), 96), ((3000, 96), 32)],
)
def test_outputs_and_gradients_are_torchs(
    counted: list[tuple[int, ...]], shape: tuple[int, ...], given: int, bias: bool
) -> None:
    """Large layers with any number of rows, small ones with many."""
    plain, ours = _pair(bias, shape[-1], given)
    x = torch.randn(shape)
    read = [x.clone().requires_grad_() for _ in range(2)]
    wanted, found = plain(read[0]), ours(read[1])
    weights = torch.randn_like(wanted)
    (wanted * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(read[1].grad, read[0].grad, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-3)
        assert mine.grad.shape == theirs.grad.shape
    assert len(counted) == 3, "forward, and the gradients of input and weight"


@needs_onednn
def test_rows_of_a_view_and_slices_of_a_weight(counted: list[tuple[int, ...]]) -> None:
    plain, ours = _pair()
    x = torch.randn(4, 6, 512)[:, ::2, 256:]
    with torch.no_grad():
        torch.testing.assert_close(linear(x, ours.weight[40:], ours.bias[40:]), plain(x)[..., 40:])
    assert counted == [(4, 3, 256, 280, 256)]


@needs_onednn
def test_only_what_is_asked_for_gets_a_gradient(counted: list[tuple[int, ...]]) -> None:
    _, ours = _pair()
    ours.requires_grad_(False)
    x = torch.randn(3, 256, requires_grad=True)
    ours(x).sum().backward()
    assert ours.weight.grad is None
    torch.testing.assert_close(x.grad, ours.weight.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)
    assert len(counted) == 2, "forward, and the gradient of the input"


def test_what_is_left_to_torch(counted: list[tuple[int, ...]]) -> None:
    plain, ours = _pair()
    x = torch.randn(3, 256)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert ours(x).dtype == torch.bfloat16
        assert ours(x[:0]).shape == (0, 320)
        assert ours(x[0]).shape == (320,)
        assert torch.equal(ours.bfloat16()(x.bfloat16()), plain.bfloat16()(x.bfloat16()))
        Linear(8, 8)(torch.randn(2, 8))
        Linear(32, 96)(torch.randn(100, 32))
    with torch.device("meta"):
        assert Linear(256, 320)(torch.empty(2, 256)).shape == (2, 320)
    assert not counted


def test_where_torch_is_as_fast_the_layers_are_torchs(
    counted: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_prefers_onednn", lambda: False)
    plain, ours = _pair()
    x = torch.randn(64, 256)
    assert torch.equal(ours(x), plain(x))  # the same call
    assert not counted


def test_a_model_from_elsewhere_keeps_its_weights_and_names() -> None:
    class Other(nn.Linear):
        """A layer that somebody made something else of."""

    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Other(4, 4), nn.Linear(4, 2)), nn.LayerNorm(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_onednn(model)
    assert [type(module) for module in (model[0], model[1][0], model[1][1])] == [Linear, Other, Linear]  # type: ignore[index]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ties_and_shared_layers_stay_one() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False), "a": nn.Linear(4, 4)})
    model["head"].weight, model["b"] = model["embed"].weight, model["a"]
    model.eval().requires_grad_(False)
    before = dict(model.named_parameters())
    use_onednn(model)
    assert model["b"] is model["a"]
    assert model["head"].weight is model["embed"].weight
    assert {name: id(value) for name, value in model.named_parameters()} == {n: id(v) for n, v in before.items()}
    assert [type(model[name]) for name in ("head", "a")] == [Linear, Linear]
    assert not any(module.training for module in model.modules())


def test_arithmetic_is_counted_as_torchs() -> None:
    plain, ours = _pair()
    found = []
    for layer in (plain, ours):
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(2, 3, 256, requires_grad=True)).sum().backward()
        found.append(counter.get_total_flops())
    assert found[0] == found[1] == 3 * 2 * 6 * 256 * 320
