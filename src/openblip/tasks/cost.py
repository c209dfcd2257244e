"""What a training step takes, computed on any machine: no weight is allocated, nothing is timed.

A step of the real sizes runs on tensors without values (torch's fake tensors). Every storage that it holds is
counted from its birth to its end: weights, the optimizer's moments, gradients, what autograd keeps, what an
operation needs in passing. So are the floating-point operations of its products, forward and backward, what
gradient checkpointing computes twice included. Three things are put in a GPU's place: attention keeps its inputs,
its output and one number a row, as fused kernels do, LayerNorm under autocast gives float32, and dropout keeps a
byte for each element, as CUDA has it. Not in it: the CUDA context and what the allocator loses to fragments, for
which `RESERVE` is set aside, and what several processes add.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from openblip.models import layers, qformer, text, vision
from openblip.models.flops import FlopCounterMode, flop_registry

__all__ = [
    "GIB",
    "RESERVE",
    "Meter",
    "StepCost",
    "counted_flops",
    "give_storage",
    "predicted_cost",
    "without_values",
]

GIB = 2**30
RESERVE = 2.0
"""GiB left to the CUDA context and to fragments"""

_DEVICE = torch.ops.prim.device.default


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Of a training step on one process; sizes in bytes."""

    frozen: int
    """weights that are not trained, such as a frozen tower's"""
    trained: int
    """weights in float32, AdamW's two moments, queues; gradients count as activations: they come in their place"""
    peak: int
    """most that is held at once"""
    trained_parameters: int
    frozen_parameters: int
    flops: int = 0
    """of the step's matrix products"""
    attention_flops: int = 0
    """of attention's own products"""


class Meter(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is on and that are still held, and operations.

    Attributes:
        now: bytes that are held; `peak` the most there were.
        flops: floating-point operations of products, counted here since torch's counter would be a third mode for
            each operation to pass; `attention_flops` those of attention, which stands for a fused kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = self.attention_flops = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two of three operations that come here ask this; nothing is made
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._note(result.untyped_storage())
        elif isinstance(result, (tuple, list)):
            for value in result:
                if isinstance(value, Tensor):
                    self._note(value.untyped_storage())
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        return result

    def hold(self, tensor: Tensor, times: int) -> None:
        """Count the bytes of so many tensors like this one, which are held until the end and not made."""
        self.now += times * _allocated(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            self._held[key] = _allocated(storage)
            self.now += self._held[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._held.pop(key)


def _allocated(storage: torch.UntypedStorage) -> int:
    return math.ceil(storage.nbytes() / 512) * 512  # as torch's allocator rounds


class _Fused(torch.autograd.Function):
    """Attention by what a fused kernel keeps for its backward: inputs, output, and a number for each row."""

    @staticmethod
    def forward(ctx: Any, meter: Meter, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, rows)
        # [.., T, D] by [.., D, S], and [.., T, S] by [.., S, E]; the backward pass has two products for each.
        ctx.meter = meter
        ctx.flops = 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        meter.attention_flops += ctx.flops
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        ctx.meter.attention_flops += 2 * ctx.flops
        return None, torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention(
    meter: Meter, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    return _Fused.apply(meter, query, key, value, attn_mask)


def _layer_norm(inputs: Tensor, *args: Any, normal: Any = F.layer_norm, **kwargs: Any) -> Tensor:
    return normal(inputs.float() if torch.is_autocast_enabled("cpu") else inputs, *args, **kwargs)


class _Dropout(torch.autograd.Function):
    """Dropout by what CUDA keeps of it: which elements stayed, a byte for each."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty(inputs.shape, dtype=torch.bool))
        return torch.empty_like(inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return torch.empty_like(grads[0])


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _Dropout.apply(input) if training and p else input


@contextmanager
def _in_place_of(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


@contextmanager
def without_values() -> Iterator[Meter]:
    """Fake tensors under a meter, with what CUDA does in the place of what a CPU does."""
    meter = Meter()
    with ExitStack() as stack:
        for module in (layers, vision):
            stack.enter_context(_in_place_of(module, "uses_fused_attention", lambda *_: True))
        for module in (layers, qformer, text):
            stack.enter_context(_in_place_of(module, "apply_dropout", _dropout))
        stack.enter_context(_in_place_of(F, "dropout", _dropout))  # of towers and language models
        stack.enter_context(_in_place_of(F, "scaled_dot_product_attention", partial(_attention, meter)))
        stack.enter_context(_in_place_of(F, "layer_norm", _layer_norm))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(meter)
        yield meter


def predicted_cost(step: nn.Module, make_batch: Callable[[], Any]) -> StepCost:
    """The cost of one step under autocast in bfloat16 with AdamW.

    Args:
        step: a step of the training loop on the device "meta".
        make_batch: called where tensors have no values.
    """
    with without_values() as meter:
        give_storage(step)
        batch = make_batch()
        trained = [value for value in step.parameters() if value.requires_grad]
        fixed = [value for value in step.parameters() if not value.requires_grad]
        frozen = sum(value.numel() * value.element_size() for value in fixed)
        for value in trained:
            meter.hold(value, times=2)  # AdamW's moments
        held = meter.peak = meter.now
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = step(batch)
        losses["loss"].backward()
    return StepCost(
        frozen=frozen,
        trained=held - frozen,
        peak=meter.peak,
        trained_parameters=sum(value.numel() for value in trained),
        frozen_parameters=sum(value.numel() for value in fixed),
        flops=meter.flops,
        attention_flops=meter.attention_flops,
    )


def counted_flops(module: nn.Module, run: Callable[[], Any]) -> int:
    """Floating-point operations of the products in `run`, whose module is on "meta"."""
    # Attention as plain products, since what a fused kernel recomputes is no arithmetic of the model.
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        give_storage(module)
        with FlopCounterMode(display=False) as counter, torch.autocast("cpu", dtype=torch.bfloat16):
            run()
    return int(counter.get_total_flops())


def give_storage(module: nn.Module) -> None:
    """Tensors without values, but with a storage, in place of those that have neither."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in made:  # tied ones stay tied
                    new = torch.empty(value.shape, dtype=value.dtype)
                    trained = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(new, requires_grad=value.requires_grad) if trained else new
                table[name] = made[id(value)]  # type: ignore[assignment]
