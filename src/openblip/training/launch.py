"""Processes and devices, through Accelerate: one process, or many that `torchrun` or `accelerate launch` started.

`start()` comes before a loader is built, since the loader wants its rank; `make_accelerator` is the loop's.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    ProjectConfiguration,
)
from torch import nn

from openblip.core.compute import choose_dtype
from openblip.core.errors import MissingExtra, ToldElsewhere, UserError, nearest
from openblip.core.memory import keep_freed_memory
from openblip.core.runtime import is_main, world_size
from openblip.training.compiling import compile_blocks, repeated_blocks, undo_compile
from openblip.training.config import TrainConfig
from openblip.training.step import HasFrozenNames, HasWholeLayers

__all__ = ["check_layers", "make_accelerator", "on_main", "release", "start", "unsharded", "wrap"]

Result = TypeVar("Result")

_MIXED = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def start(device: str = "auto") -> torch.device:
    """Join the processes that a launcher started, if one did, and return this process's device; may be repeated.

    On a CPU the process keeps the memory that tensors free (`core.memory`).

    Args:
        device: "cpu" leaves a GPU alone.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if on_cpu:
        keep_freed_memory()
    _forget_earlier_run()
    options: dict[str, Any] = {"backend": "gloo"} if on_cpu and processes > 1 else {}
    if on_cpu and processes > 1 and not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // _local_processes()))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return PartialState(cpu=on_cpu, **options).device


def _forget_earlier_run() -> None:
    """Let a run have another device, precision or sharding than one before it in this process.

    Accelerate keeps these for as long as the process lives and has no public way to let them go; its own tests
    call this (accelerate 1.15).
    """
    AcceleratorState._reset_state(reset_partial_state=True)


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))


def make_accelerator(config: TrainConfig, module: nn.Module, out_dir: Path, step: int) -> Accelerator:
    """The accelerator of a run: precision, how copies or shards of the module work together, compilation, trackers.

    Args:
        step: where the run resumes; a tracker that can drops what it held beyond.
    """
    device = start(config.device)
    dtype = choose_dtype(config.precision, device)
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError('precision "float16" needs a GPU; take "bfloat16" or "float32" on a CPU')
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP")
    plugin = _sharding(config, module, by_launcher == "true")
    kind = _ShardedOnCpu if plugin is not None and device.type == "cpu" else Accelerator
    accelerator = kind(
        cpu=device.type == "cpu",
        mixed_precision=_MIXED[dtype],
        fsdp_plugin=plugin,
        # The loop divides the loss itself; a launcher's environment must not divide it again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="inductor" if config.compile == "step" else None,
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                broadcast_buffers=False,
                find_unused_parameters=config.find_unused_parameters,
                static_graph=config.static_graph,
            )
        ],
        log_with=_trackers(config.trackers, out_dir, step) or None,
        project_config=ProjectConfiguration(project_dir=str(out_dir), logging_dir=str(out_dir / "trackers")),
    )
    if config.compile == "blocks":
        compile_blocks(module)
    if by_launcher is None:
        # Accelerate sets it when it gets the plugin, and the next run in this process may want none.
        os.environ.pop("ACCELERATE_USE_FSDP", None)
    return accelerator


class _ShardedOnCpu(Accelerator):
    """Accelerate switches FSDP on for GPUs only; the sharding itself works over gloo, and tests run it there."""

    def __init__(self, *, fsdp_plugin: FullyShardedDataParallelPlugin, **options: Any) -> None:
        super().__init__(fsdp_plugin=fsdp_plugin, **options)
        self.state.fsdp_plugin = fsdp_plugin

    @property
    def distributed_type(self) -> DistributedType:
        """As it is on GPUs."""
        return DistributedType.FSDP

    @property
    def is_fsdp2(self) -> bool:
        """True; see `_sharding`."""
        return True


def _sharding(config: TrainConfig, module: nn.Module, by_launcher: bool) -> FullyShardedDataParallelPlugin | None:
    """FSDP2's settings, or None when one process trains alone or each keeps a whole copy.

    Parameters are gathered in float32 and computed under autocast, as without sharding. Every process keeps whole
    what cannot be split (scalars) and what no optimiser trains but the module moves in place (momentum copies).
    """
    if (config.sharding == "none" and not by_launcher) or PartialState().num_processes == 1:
        return None
    if by_launcher and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("the launcher asks for FSDP 1; set fsdp_version: 2 in its configuration")
    from torch.distributed.fsdp import MixedPrecisionPolicy

    frozen = module.frozen_parameter_names() if isinstance(module, HasFrozenNames) else set()
    kept = [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim == 0 or not (parameter.requires_grad or name in frozen)
    ]
    if config.sharding_layers:
        check_layers(config.sharding_layers, module)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        mixed_precision_policy=MixedPrecisionPolicy(),
        ignored_modules=[nn.ParameterList(kept)] if kept else None,
        auto_wrap_policy="transformer_based_wrap" if config.sharding_layers else None,
        transformer_cls_names_to_wrap=list(config.sharding_layers) or None,
        cpu_ram_efficient_loading=False,
    )


def check_layers(names: tuple[str, ...], module: nn.Module) -> None:
    """Refuse classes whose modules FSDP2 cannot gather one at a time.

    Raises:
        UserError: the module has none of a class, or uses parts of them outside of their forward.
    """
    known = {type(part).__name__ for part in module.modules()}
    whole = module.whole_layers() if isinstance(module, HasWholeLayers) else set()
    for name in names:
        if name not in known:
            raise UserError(f'sharding_layers names "{name}", and the model has none{nearest(name, known)}')
        if name in whole:
            blocks = sorted({type(block).__name__ for block in repeated_blocks(module)} - whole)
            instead = f"name {' or '.join(blocks)}" if blocks else "leave it empty"
            raise UserError(
                f'sharding_layers names "{name}", parts of which the model uses outside of its forward; {instead}'
            )


def on_main(function: Callable[[], Result]) -> Result:
    """Call `function` on the first process and give its result, or its failure, to all, so that none waits."""
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None, False]
    failure: Exception | None = None
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:  # noqa: BLE001 - every process has to learn of it; raised again below
            failure = error
            outcome[1:] = [str(error), isinstance(error, UserError)]
    dist.broadcast_object_list(outcome)
    result, message, is_users = outcome
    if failure is not None:
        raise failure
    if message is not None:
        raise ToldElsewhere(message) if is_users else RuntimeError(f"the first process failed: {message}")
    return result


def wrap(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Make the processes begin alike, and the module work as copies or shards; the optimiser follows."""
    if accelerator.num_processes > 1:
        # DDP makes parameters alike, but no buffers (a queue is drawn at random); FSDP2 makes nothing alike.
        alike: list[torch.Tensor] = list(module.buffers())
        alike += module.parameters() if accelerator.is_fsdp2 else []
        for tensor in alike:
            _broadcast(tensor)
    with warnings.catch_warnings():
        # torch renames an option that Accelerate passes on.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        model, wrapped = accelerator.prepare(module, optimizer)
    if accelerator.is_fsdp2:
        _begin_at_root(module)
    return model, wrapped


def _begin_at_root(module: nn.Module) -> None:
    """Let FSDP2 know the whole module as the root of its shards.

    Otherwise the first part that is run becomes one, which is a block where an evaluation comes before the first
    step, and the whole module is refused then. There is no public way to say it (torch 2.15).
    """
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module._get_fsdp_state()._lazy_init()


@torch.no_grad()
def _broadcast(tensor: torch.Tensor) -> None:
    sent = tensor.detach().contiguous()
    dist.broadcast(sent, src=0)
    tensor.copy_(sent)


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Within, a module sharded by FSDP2 has whole weights, so that its other methods work as forward does."""
    from torch.distributed.fsdp import FSDPModule

    shards = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for shard in shards:
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.reshard()


def release(module: nn.Module) -> None:
    """Take off what preparing put on a module, so that it can be used, and trained again."""
    undo_compile(module)
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        module.__dict__.pop(name, None)


def _trackers(names: tuple[str, ...], out_dir: Path, step: int) -> list[Any]:
    """Trackers as Accelerate takes them; TensorBoard is built here, so that its files lie in `tensorboard/`."""
    found: list[Any] = []
    for name in names:
        known = ["auto", *LOGGER_TYPE_TO_CLASS]
        if name not in known:
            raise UserError(f'unknown tracker "{name}"{nearest(name, known)}')
        package = "tensorboard" if name == "auto" else name
        if importlib.util.find_spec(package) is None:
            if name == "auto":
                continue
            if name == "tensorboard":
                raise MissingExtra("tensorboard", "trackers")
            raise UserError(f'tracker "{name}" needs a package that is not installed; run: pip install {name}')
        if package == "tensorboard":
            found.append(TensorBoardTracker("", out_dir / "tensorboard", purge_step=step + 1 if step else None))
        else:
            found.append(name)
    return found
