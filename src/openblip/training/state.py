"""Everything that a run needs to resume as if it had never stopped, written whole or not at all.

A checkpoint is a folder `checkpoints/step-XXXXXXXX`:

    model.safetensors       parameters that are trained or move (momentum copies), and buffers; no frozen parts
    optimizer.safetensors   the optimiser's moments, "NAME|exp_avg" and so on, by the parameters' names
    state.json              counters, loss scaler, and for each process its generators, meters and loader position

All of it is read without running code from the files. A sharded run saves whole tensors, so that it can be
resumed unsharded and the other way round.
"""

from __future__ import annotations

import base64
import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from openblip.core.errors import UserError
from openblip.core.files import remove_quietly, write_folder, write_json, write_tensors, write_text
from openblip.core.fingerprint import fingerprint
from openblip.core.places import run_checkpoints
from openblip.core.runtime import world_size
from openblip.core.text import read_json, read_text
from openblip.training.launch import on_main
from openblip.training.meters import Meters
from openblip.training.step import HasFrozenNames, Loader

__all__ = [
    "Progress",
    "TrainResult",
    "checkpoint_path",
    "frozen_fingerprint",
    "load_checkpoint",
    "own_generators",
    "point_at",
    "prune_checkpoints",
    "read_state",
    "restore_generators",
    "save_checkpoint",
    "state_of_generators",
    "state_of_processes",
]

FORMAT = 1


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Micro-batches done in this epoch, on each process."""
    total_steps: int = 0
    """How many steps there will be, as `fit_minutes` has set it; 0 leaves that to the configuration."""
    images: int = 0
    """Samples seen, on all processes together."""
    precision: str = ""
    """What the configuration's `precision` came to where the run began; "" before it, and in older checkpoints."""
    seconds: float = 0.0
    """Seconds spent in all sessions, with evaluation and saving."""
    fitted_minutes: float | None = None
    """The `fit_minutes` that `total_steps` was set for."""
    train_seconds: float = 0.0
    """Seconds spent in steps alone, all of them."""
    evaluation_seconds: float = 0.0
    """Seconds of the last evaluation."""
    records: int = 0
    """Lines of metrics.jsonl that belong to this state."""
    evaluated: int = -1
    """The step of the last evaluation; -1 before the first."""
    evaluation_due: bool = False
    """Whether the run stopped between a step and its evaluation."""
    train_metrics: dict[str, float] = field(default_factory=dict)
    eval_metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    """The best evaluation: {"step", "name", "mode", "value"}."""

    def result(
        self, out_dir: Path, batches_per_epoch: int, seconds: float, stopped: Literal["finished", "time"]
    ) -> TrainResult:
        """What a run that ends here has come to."""
        return TrainResult(
            steps=self.step,
            epochs=self.epoch + self.batch / batches_per_epoch,
            images=self.images,
            seconds=seconds,
            images_per_second=self.images / max(1e-9, self.train_seconds),
            metrics=dict(self.train_metrics),
            evaluation=dict(self.eval_metrics),
            best=self.best,
            stopped=stopped,
            checkpoint=checkpoint_path(out_dir, self.step),
        )


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to."""

    steps: int
    """Optimiser steps, all sessions together."""
    epochs: float
    images: int
    """Samples seen, on all processes together."""
    seconds: float
    """Seconds of all sessions together, with evaluation and saving."""
    images_per_second: float
    """Samples per second in training steps, on all processes together."""
    metrics: dict[str, float]
    """The last training record."""
    evaluation: dict[str, float]
    """The metrics of the last evaluation."""
    best: dict[str, Any] | None
    """The best evaluation, {"step", "name", "mode", "value"}, where a metric is monitored."""
    stopped: Literal["finished", "time"]
    checkpoint: Path


def checkpoint_path(out_dir: Path, step: int) -> Path:
    """Where the state after `step` steps lies."""
    return out_dir / "checkpoints" / f"step-{step:08d}"


def prune_checkpoints(out_dir: Path, keep: int) -> None:
    """Remove all but the `keep` newest and the one that `best` names, and what a killed process left unfinished."""
    folder = out_dir / "checkpoints"
    best = folder / "best"
    spared = {read_text(best).strip()} if best.is_file() else set()
    for path in run_checkpoints(out_dir)[:-keep]:
        if path.name not in spared:
            remove_quietly(path)
    for path in (*folder.glob(".step-*"), *folder.glob(".last.*.tmp"), *folder.glob(".best.*.tmp")):
        remove_quietly(path)


def state_of_processes(device: torch.device, meters: Meters, loader: Loader) -> list[dict[str, Any]]:
    """What each process has of its own, in the order of their ranks."""
    own = {
        "generators": state_of_generators(device),
        "meters": meters.state_dict(),
        "loader": loader.state_dict(),
    }
    processes: list[Any] = [own] * world_size()
    if world_size() > 1:
        dist.all_gather_object(processes, own)
    return processes


def state_of_generators(device: torch.device) -> dict[str, Any]:
    """Python's, numpy's and torch's random generators as plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": _pack(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _pack(torch.cuda.get_rng_state(device))
    return state


def restore_generators(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `state_of_generators` gave, also after a trip through JSON."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_unpack(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_unpack(state["cuda"]), device)


@contextmanager
def own_generators(device: torch.device) -> Iterator[None]:
    """Whatever is drawn within leaves the generators as they were."""
    kept = state_of_generators(device)
    try:
        yield
    finally:
        restore_generators(kept, device)


def _pack(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _unpack(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    progress: Progress,
    processes: list[dict[str, Any]],
    scaler: dict[str, Any] | None = None,
    frozen: str = "",
    weights_stand: bool = False,
) -> None:
    """Write the folder `path`; every process calls it, the first one writes.

    Args:
        processes: for each process its plain values: generators, meters, loader.
        frozen: the fingerprint of what is not saved.
        weights_stand: the checkpoint of this step is there already; only its counters are written anew.

    Raises:
        UserError: the disk is full; what stood at `path`, and every older checkpoint, is untouched.
    """
    state = {
        "format": FORMAT,
        "progress": dataclasses.asdict(progress),
        "scaler": scaler,
        "frozen": frozen,
        "processes": processes,
    }
    if weights_stand:
        on_main(lambda: write_json(path / "state.json", state, indent=None))
        return
    weights = {name: _whole(tensor) for name, tensor in _saved_tensors(module).items()}
    moments = {
        f"{name}|{key}": _whole(value)
        for name, parameter in _trained(module).items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)  # Muon notes which rule a parameter follows, which its group says too
    }

    def write() -> None:
        with write_folder(path) as folder:
            write_tensors(folder / "model.safetensors", weights)
            write_tensors(folder / "optimizer.safetensors", moments)
            for file in folder.iterdir():
                file.chmod(0o644)  # safetensors lets only the owner read
            write_json(folder / "state.json", state, indent=None)

    on_main(write)


def frozen_fingerprint(module: nn.Module) -> str:
    """Tells the frozen parts, which no checkpoint holds, from other ones."""
    names = module.frozen_parameter_names() if isinstance(module, HasFrozenNames) else set()
    return fingerprint((name, parameter) for name, parameter in module.named_parameters() if name in names)


def point_at(out_dir: Path, pointer: str, checkpoint: Path) -> None:
    """Let `checkpoints/last` or `checkpoints/best` name a checkpoint."""
    write_text(out_dir / "checkpoints" / pointer, checkpoint.name + "\n")


def read_state(path: Path) -> dict[str, Any]:
    """The plain part of a checkpoint."""
    try:
        state = read_json(path / "state.json")
    except (OSError, UserError) as error:
        raise UserError(
            f"{path} is not a readable checkpoint ({error}); remove it to resume from an older one"
        ) from error
    if state.get("format") != FORMAT:
        raise UserError(f"{path} has format {state.get('format')}, and this version reads {FORMAT}")
    return state


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill the module and the optimiser from `path`, bit for bit; every process reads.

    Raises:
        UserError: the checkpoint is of another model, or a file is damaged.
    """
    targets = _saved_tensors(module)
    weights = _read(path / "model.safetensors")
    absent, foreign = sorted(targets.keys() - weights.keys()), sorted(weights.keys() - targets.keys())
    if absent or foreign:
        raise UserError(
            f"{path} is of another model: it lacks {_some(absent)} and has {_some(foreign)} that this model has not"
        )
    with torch.no_grad():
        for name, target in targets.items():
            _copy(weights[name], target, f"{path}: {name}")
    del weights
    moments = _read(path / "optimizer.safetensors")
    parameters = _trained(module)
    optimizer.state.clear()
    for key, value in moments.items():
        name, _, kind = key.rpartition("|")
        if name not in parameters:
            raise UserError(f"{path} trained {name}, which this run does not; resume with its own configuration")
        parameter = parameters[name]
        if value.ndim == 0 and kind == "step":
            slot = torch.zeros((), dtype=value.dtype, device=parameter.device)
        else:
            slot = torch.zeros_like(parameter, dtype=value.dtype, requires_grad=False)
        with torch.no_grad():
            _copy(value, slot, f"{path}: {key}")
        optimizer.state[parameter][kind] = slot


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); remove its folder to resume from an older checkpoint"
        ) from error


def _some(names: list[str]) -> str:
    return "nothing" if not names else names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds, each shared tensor once, under its first name."""
    frozen = module.frozen_parameter_names() if isinstance(module, HasFrozenNames) else set()
    state = module.state_dict(keep_vars=True)
    assert all(isinstance(value, Tensor) for value in state.values()), "extra state of a module is not saved"
    chosen: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if name not in frozen or parameter.requires_grad:
            chosen[name] = parameter
    for name, buffer in module.named_buffers():
        if name in state:
            chosen[name] = buffer
    return chosen


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _whole(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, shards gathered (every process must call)."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu().contiguous()


def _copy(source: Tensor, target: Tensor, what: str) -> None:
    if source.shape != target.shape:
        raise UserError(f"{what} has shape {tuple(source.shape)}, and this model needs {tuple(target.shape)}")
    if isinstance(target, DTensor):
        source = source.to(target.device)
        # Every process has read the file itself, so nothing is broadcast.
        target.copy_(distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None))
    else:
        target.copy_(source)
