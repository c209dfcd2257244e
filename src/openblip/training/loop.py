"""The one training loop: any module that names its losses, any loader that knows its position.

    result = train(config, module, loader, "runs/first", evaluate=measure, export=save)

One process or many (`torchrun`, `accelerate launch`), whole copies or shards, any precision: the same code. A run
that is killed resumes from its last checkpoint (`resume=True`) with the same losses, on a CPU bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch import Tensor, nn

from openblip.core.compute import choose_dtype
from openblip.core.errors import UserError
from openblip.core.files import write_folder
from openblip.core.interrupt import StopSignals
from openblip.core.runtime import rank, seed_everything, world_size
from openblip.training import state as states
from openblip.training.config import TrainConfig
from openblip.training.due import evaluation_is_due, fit_is_due, fitted_steps, note_best, steps_on_resuming
from openblip.training.feed import Feed, Stopwatch, beside_training
from openblip.training.folder import open_run
from openblip.training.interrupt import Interrupted, agree
from openblip.training.launch import make_accelerator, on_main, release, start, wrap
from openblip.training.log import RunLog, format_duration, format_metrics
from openblip.training.meters import FiniteGuard, Meters
from openblip.training.optim import learning_rate, local, make_optimizer, set_learning_rate
from openblip.training.state import TrainResult
from openblip.training.step import Evaluate, Export, HasCheckpointing, HasCounts, HasProgress, Loader, Prepare
from openblip.training.update import update

__all__ = ["TrainResult", "train"]

_STEPS_BETWEEN_AGREEMENTS = 10


def train(
    config: TrainConfig,
    module: nn.Module,
    loader: Loader,
    out_dir: Path | str,
    *,
    prepare: Prepare | None = None,
    evaluate: Evaluate | None = None,
    export: Export | None = None,
    begin: Callable[[], None] | None = None,
    resume: bool = False,
    sections: dict[str, Any] | None = None,
    may_change: Iterable[str] = (),
    title: str = "training",
    unit: str = "images",
    show: bool = True,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train `module` (a `Step`) on `loader` and leave everything in `out_dir`.

    Args:
        prepare: batch of the loader -> what forward takes (tokenise, say); the loop moves the result to the device.
        evaluate: (module in evaluation mode, step) -> metrics; every process calls it, the first one's count. It
            draws from generators of its own, so how often it runs does not change training.
        export: writes the usable model into a folder: `best/` at the best evaluation, `model/` at the end.
        begin: called before the first step of a run that is not resumed; it acts alike on all processes.
        resume: continue from the newest checkpoint in `out_dir`, or begin when there is none.
        sections: the run's other configurations (model, data, ...), saved in config.json and compared on resuming.
        may_change: dotted names in `sections` (with * for any) that do not change what is learned.
        title: names the run on the progress line; `unit` are the rows of a batch there.
        on_record: called with every record of metrics.jsonl, on the first process.

    Raises:
        UserError: a mistake in the settings, a full disk (the last checkpoint stands), a loss that is not finite.
        Interrupted: SIGINT or SIGTERM came; everything is saved.
    """
    start(config.device)
    trainer = _Trainer(
        config, module, loader, Path(out_dir), prepare, evaluate, export, begin, title, unit, show, on_record
    )
    try:
        with StopSignals() as signals:
            trainer.open(dict(sections or {}), may_change, resume)
            with trainer.log:
                return trainer.run(signals)
    finally:
        release(module)


class _Trainer:
    """One session of a run; the phases of a step are its methods, in order."""

    log: RunLog

    def __init__(
        self,
        config: TrainConfig,
        module: nn.Module,
        loader: Loader,
        out_dir: Path,
        prepare: Prepare | None,
        evaluate: Evaluate | None,
        export: Export | None,
        begin: Callable[[], None] | None,
        title: str,
        unit: str,
        show: bool,
        on_record: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.module, self.loader, self.out_dir = config, module, loader, out_dir
        self.prepare, self.evaluate, self.export, self.begin = prepare, evaluate, export, begin
        self.title, self.unit, self.show, self.on_record = title, unit, show, on_record
        self.progress = states.Progress()
        self.batches_per_epoch = len(loader)
        if self.batches_per_epoch == 0:
            raise UserError("there is not one batch to train on: give more samples, or make the batch smaller")
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / config.gradient_accumulation)
        self.planned_steps = self.total_steps = config.max_steps or config.epochs * self.steps_per_epoch
        self._saved_step = -1

    # --- beginning

    def open(self, sections: dict[str, Any], may_change: Iterable[str], resume: bool) -> None:
        """Make folder, processes, optimiser and logs ready, and go to where the run stopped."""
        config, module = self.config, self.module
        checkpoint = on_main(lambda: open_run(self.out_dir, config, sections, may_change, resume=resume))
        state = states.read_state(checkpoint) if checkpoint else None
        if state:
            self.progress = states.Progress(**state["progress"])
            self.total_steps = steps_on_resuming(config, self.progress, self.planned_steps)
        if config.gradient_checkpointing:
            if not isinstance(module, HasCheckpointing):
                name = type(module).__name__
                raise UserError(f"{name} cannot recompute activations; set gradient_checkpointing = 0")
            module.gradient_checkpointing_enable(config.gradient_checkpointing)
        self.frozen = states.frozen_fingerprint(module)
        if state and state["frozen"] != self.frozen:
            raise UserError(
                f"the frozen parts of the model are not those that {self.out_dir} was trained with; "
                "load the same pretrained weights, in the same dtype"
            )
        chosen = str(choose_dtype(config.precision, start(config.device))).removeprefix("torch.")
        if config.precision != "auto" or not self.progress.precision:
            self.progress.precision = chosen
        # Another machine, or another version, may choose differently, and the losses would be different.
        config = replace(config, precision=cast(Any, self.progress.precision))
        kept = f", as the run began ({chosen} is faster here)" if self.progress.precision != chosen else ""
        self.accelerator = make_accelerator(config, module, self.out_dir, self.progress.step)
        self.device = self.accelerator.device
        module.to(self.device).train()
        if self.begin is not None and checkpoint is None:
            self.begin()
        self.model, self.wrapped_optimizer = wrap(self.accelerator, module, make_optimizer(module, config))
        self.optimizer: torch.optim.Optimizer = self.wrapped_optimizer.optimizer
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # A scalar is kept whole beside shards, so no one averages its gradient over processes but us.
        self.unsynced = [p for p in self.parameters if local(p) is p] if self.accelerator.is_fsdp2 else []
        self.meters = Meters(self.device)
        self.guard = FiniteGuard(self.device)
        self.feed = Feed(self.loader, self.device)
        seed_everything(int(np.random.SeedSequence([config.seed, rank()]).generate_state(1)[0]))
        if checkpoint and state:
            self._restore(checkpoint, state)
        self.accelerator.init_trackers("openblip")
        self.log = RunLog(
            self.out_dir, title=self.title, unit=self.unit, total_steps=self.total_steps,
            accelerator=self.accelerator, show=self.show, on_record=self.on_record,
        )  # fmt: skip
        self.log.rewind(self.progress.records)
        trained = sum(parameter.numel() for parameter in self.parameters)
        begins = f"resuming from step {self.progress.step}" if checkpoint else "beginning"
        self.log.say(
            f"{self.title}: {begins} of {self.total_steps} steps ({self.steps_per_epoch} an epoch), "
            f"{trained / 1e6:.2f}M parameters, {world_size()} process{'es' if world_size() > 1 else ''} on "
            f"{self.device.type}, {self.progress.precision}{kept}"
        )
        self.watch = Stopwatch(self.progress.seconds, self.progress.train_seconds)
        self._images_mark, self._steps_mark = self.progress.images, self.progress.step
        self._last_save = time.perf_counter()

    def _restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        states.load_checkpoint(checkpoint, self.module, self.optimizer)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        own = state["processes"][rank()]
        self.loader.load_state_dict(own["loader"])
        self.meters.load_state_dict(own["meters"])
        states.restore_generators(own["generators"], self.device)
        self._saved_step = self.progress.step

    # --- the loop

    def run(self, signals: StopSignals) -> TrainResult:
        """Steps until the end, the time's end, or a signal."""
        progress, config = self.progress, self.config
        self.signals = signals
        if progress.evaluation_due or (progress.step == 0 and config.evaluate_first and progress.evaluated < 0):
            self._evaluate()
        stopped: Literal["finished", "time"] = "finished"
        if config.max_minutes is not None and progress.seconds >= 60 * config.max_minutes:
            return self._finish("time")
        while progress.step < self.total_steps:
            self._step()
            self.log.advance(progress.step)
            signum, time_up, save_due = self._agree()
            last = progress.step >= self.total_steps or time_up
            fit_due = config.fit_minutes is not None and not last and fit_is_due(progress.step, self.planned_steps)
            if last or fit_due or progress.step % config.log_every == 0:
                self._record()
            if fit_due:
                self._fit()
            evaluation_due = last or evaluation_is_due(config, progress)
            if signum:
                self._stop(signum, evaluation_due)
            if evaluation_due:
                self._evaluate()
                if config.fit_minutes is not None and not last:
                    self._fit()
            if last or save_due:
                self._save()
            if time_up and progress.step < self.total_steps:
                stopped = "time"
                break
        return self._finish(stopped)

    def _step(self) -> None:
        """One step of the optimiser: its micro-batches, the watch over finite values, the update."""
        config, progress = self.config, self.progress
        set_learning_rate(
            self.optimizer, learning_rate(config, progress.step, self.steps_per_epoch, self.total_steps)
        )
        parts = min(config.gradient_accumulation, self.batches_per_epoch - progress.batch)  # an epoch may end early
        total: dict[str, Tensor] = {}
        batches, rows = self.feed.take(parts, self.prepare)
        progress.images += rows * world_size()
        if isinstance(self.module, HasCounts):
            self.module.count_step(batches)
        for part, batch in enumerate(batches):
            losses = self._micro_batch(batch, first=part == 0, last=part == parts - 1, share=1 / parts)
            total = {n: v.detach() + total[n] if n in total else v.detach() for n, v in losses.items()}
            progress.batch += 1
        self._update(total)
        progress.step += 1
        if progress.batch >= self.batches_per_epoch:
            self.feed.end_epoch(progress.epoch)
            progress.epoch += 1
            progress.batch = 0

    def _micro_batch(self, batch: Any, *, first: bool, last: bool, share: float) -> dict[str, Tensor]:
        batch = send_to_device(batch, self.device, non_blocking=True)
        if isinstance(self.module, HasProgress):
            self.module.set_progress(self.progress.epoch + self.progress.batch / self.batches_per_epoch, first)
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):  # averaged once a step
            with self.accelerator.autocast():
                losses: dict[str, Tensor] = self.model(batch)
            loss = losses["loss"]
            self.accelerator.backward(loss if share == 1 else loss * share)
        self.meters.add(losses)
        return losses

    def _update(self, losses: dict[str, Tensor]) -> None:
        self.accelerator.unscale_gradients()  # norm and clipping apply to the gradient without the loss scale
        for parameter in self.unsynced:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()
        update(
            self.wrapped_optimizer, self.parameters, losses, step=self.progress.step + 1, guard=self.guard,
            meters=self.meters, clip_norm=self.config.clip_norm, holds=self.accelerator.scaler is None,
        )  # fmt: skip

    def _agree(self) -> tuple[int, bool, bool]:
        """(signal, time is up, a checkpoint is due), the same on every process."""
        config, step = self.config, self.progress.step
        save_due = bool(config.checkpoint_every) and step % config.checkpoint_every == 0
        time_up = config.max_minutes is not None and self.watch.total() >= 60 * config.max_minutes
        waited = time.perf_counter() - self._last_save
        late = bool(config.checkpoint_minutes) and waited >= 60 * config.checkpoint_minutes
        if world_size() == 1:
            return self.signals.received, time_up, save_due or late
        # To agree is to wait for the device and for every process. A checkpoint due by its step needs no agreement.
        if self.device.type != "cpu" and step % _STEPS_BETWEEN_AGREEMENTS and step < self.total_steps:
            return 0, False, save_due
        signum, time_up, late = agree(self.signals.received, time_up, late, self.device)
        return signum, time_up, save_due or late

    # --- between steps

    def _record(self) -> None:
        progress = self.progress
        self.guard.raise_if_tripped(self._last_good())
        means = self.meters.means()
        elapsed = self.watch.lap()
        steps = progress.step - self._steps_mark
        rate = learning_rate(self.config, progress.step - 1, self.steps_per_epoch, self.total_steps)
        progress.train_metrics = means
        progress.train_seconds = self.watch.training()
        extra: dict[str, Any] = {
            "learning_rate": rate,
            "images_per_second": round((progress.images - self._images_mark) / elapsed, 2),
        }
        skipped = getattr(getattr(self.loader, "skipped", None), "total", None)
        if skipped is not None:
            extra["skipped"] = skipped
        left = elapsed / max(1, steps) * (self.total_steps - progress.step)
        if self.config.max_minutes is not None:
            left = min(left, 60 * self.config.max_minutes - self.watch.total())
        self._write("train", {**means, **extra}, left)
        self._images_mark, self._steps_mark = progress.images, progress.step

    def _write(self, split: str, metrics: dict[str, Any], left: float | None = None) -> None:
        epoch = self.progress.epoch + self.progress.batch / self.batches_per_epoch
        record = {
            "step": self.progress.step,
            "epoch": round(epoch, 4),
            "time": round(self.watch.total(), 2),
            "split": split,
        }
        self.log.record({**record, **metrics}, seconds_left=left)
        self.progress.records += 1

    def _fit(self) -> None:
        """Set the number of steps to what fits into the time."""
        self.progress.train_seconds = self.watch.training()
        steps = fitted_steps(self.config, self.progress, spent=self.watch.total())
        if steps is not None:  # clocks differ between processes: the first one's counts
            self.progress.total_steps = self.total_steps = on_main(lambda: steps)
            self.log.ends_at(self.total_steps)

    def _evaluate(self) -> None:
        """Evaluate, record, and keep what is the best so far; training's generators are not touched.

        A signal breaks the evaluation of a single process off: it is done anew when the run resumes. Processes that
        train together may wait for each other in it, so they finish it first.
        """
        progress = self.progress
        progress.evaluation_due = False
        began = time.perf_counter()
        if self.evaluate is None or progress.evaluated == progress.step:
            return
        self.guard.raise_if_tripped(self._last_good())
        evaluate, alone = partial(self.evaluate, self.module, progress.step), world_size() == 1
        with beside_training(self.watch, self.module, self.device):
            seed_everything(self.config.seed)  # so that two evaluations differ by the model alone
            self.module.eval()
            found = self.signals.unless_stopped(evaluate) if alone else evaluate()
            self.module.train()
        if found is None:
            self._stop(self.signals.received, evaluation_due=True)
        metrics = on_main(lambda: {name: float(value) for name, value in found.items()})
        progress.evaluation_seconds = time.perf_counter() - began
        try:
            better = note_best(self.config, progress, metrics)
        except UserError:
            # What was trained is kept; when the run resumes with another monitor, it is evaluated anew.
            progress.evaluation_due = True
            self._save()
            raise
        progress.evaluated, progress.eval_metrics = progress.step, metrics
        self._write("eval", metrics)
        if better:
            self._export("best")
            self._save(best=True)
        received = self.signals.received
        if signum := received if alone else agree(received, False, False, self.device)[0]:
            self._stop(signum, evaluation_due=False)

    def _export(self, name: str) -> None:
        export = self.export
        if export is None:
            return

        def write() -> None:
            with write_folder(self.out_dir / name) as folder:
                export(folder)

        with beside_training(self.watch, self.module, self.device):
            self.module.eval()
            on_main(write)
            self.module.train()

    def _save(self, *, best: bool = False) -> None:
        """Write a checkpoint, let `last` name it, and only then remove old ones."""
        if self._saved_step == self.progress.step and not best:
            return
        self.guard.raise_if_tripped(self._last_good())
        progress, config = self.progress, self.config
        path = states.checkpoint_path(self.out_dir, progress.step)
        progress.train_seconds = self.watch.training()  # of the steps since the last record too
        with self.watch.pause():
            progress.seconds = self.watch.total()
            processes = states.state_of_processes(self.device, self.meters, self.loader)
            scaler = self.accelerator.scaler
            states.save_checkpoint(
                path, self.module, self.optimizer, progress=progress, processes=processes,
                scaler=None if scaler is None else scaler.state_dict(),
                frozen=self.frozen, weights_stand=self._saved_step == progress.step,
            )  # fmt: skip

            def conclude() -> None:
                states.point_at(self.out_dir, "last", path)
                if best:
                    states.point_at(self.out_dir, "best", path)
                states.prune_checkpoints(self.out_dir, config.keep_checkpoints)

            on_main(conclude)
        self._saved_step = progress.step
        self._last_save = time.perf_counter()

    def _last_good(self) -> str:
        if self._saved_step < 0:
            return "no checkpoint was written yet"
        return f"the last good checkpoint is {states.checkpoint_path(self.out_dir, self._saved_step)}"

    # --- the end

    def _stop(self, signum: int, evaluation_due: bool) -> NoReturn:
        step = self.progress.step
        self.progress.evaluation_due = evaluation_due
        self._save()
        raise Interrupted(step, states.checkpoint_path(self.out_dir, step), signum)

    def _finish(self, stopped: Literal["finished", "time"]) -> TrainResult:
        progress = self.progress
        self._save()
        self._export("model")
        result = progress.result(self.out_dir, self.batches_per_epoch, self.watch.total(), stopped)
        why = "the time is up" if stopped == "time" else "done"
        self.log.say(
            f"{self.title}: {why} after {progress.step} steps and {format_duration(result.seconds)} "
            f"({result.images_per_second:.1f} {self.unit}/s)  {format_metrics(result.evaluation)}".rstrip()
        )
        return result
