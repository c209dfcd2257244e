"""The loop in one process: records, accumulation, evaluation, the best, budgets, failures, and continuing."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_toy import ToyLoader, ToyStep, evaluate, losses, toy_config

from openblip.core.errors import UserError
from openblip.core.places import run_checkpoints
from openblip.core.runtime import seed_everything
from openblip.training import Interrupted, NotFinite, TrainResult, train
from openblip.training import state as states


def run(out_dir: Path, *, module: nn.Module | None = None, loader: Any = None, **kwargs: Any) -> TrainResult:
    seed_everything(0)
    options = {name: kwargs.pop(name) for name in list(kwargs) if name in OPTIONS}
    return train(
        toy_config(**kwargs),
        ToyStep() if module is None else module,
        ToyLoader() if loader is None else loader,
        out_dir,
        **{"show": False, **options},
    )


OPTIONS = ("evaluate", "export", "resume", "sections", "may_change", "prepare", "on_record", "show")


def test_a_run_leaves_what_it_should(tmp_path: Path) -> None:
    module = ToyStep()
    result = run(tmp_path, module=module, evaluate=evaluate, log_every=4)
    assert (result.steps, result.epochs, result.images, result.stopped) == (18, 3, 144, "finished")
    assert result.images_per_second > 0
    train_records, eval_records = losses(tmp_path), losses(tmp_path, "eval")
    assert [record["step"] for record in train_records] == [4, 8, 12, 16, 18]
    assert [record["step"] for record in eval_records] == [6, 12, 18]
    assert {"loss", "contrastive", "pull", "grad_norm", "learning_rate"} <= set(train_records[0])
    assert train_records[-1]["loss"] < train_records[0]["loss"]
    assert result.evaluation == {"held_out": eval_records[-1]["held_out"]}
    assert result.metrics["loss"] == train_records[-1]["loss"]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["epochs"] == 3
    assert "torch" in json.loads((tmp_path / "versions.json").read_text())["versions"]
    assert "done after 18 steps" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "checkpoints" / "last").read_text().strip() == result.checkpoint.name == "step-00000018"
    # The module is left as it came: nothing of the loop's stays on it.
    assert "forward" not in module.__dict__
    assert module.training


def test_records_are_means_since_the_last_one(tmp_path: Path) -> None:
    run(tmp_path / "each")
    run(tmp_path / "sixth", log_every=6)
    each = [record["loss"] for record in losses(tmp_path / "each")]
    sixth = [record["loss"] for record in losses(tmp_path / "sixth")]
    assert sixth == pytest.approx([float(np.mean(each[i : i + 6])) for i in (0, 6, 12)], rel=1e-12)


def test_evaluation_does_not_change_training(tmp_path: Path) -> None:
    run(tmp_path / "without")
    run(tmp_path / "with", evaluate=evaluate, evaluate_every_steps=2, evaluate_first=True)
    assert losses(tmp_path / "without") == losses(tmp_path / "with")
    assert [record["step"] for record in losses(tmp_path / "with", "eval")][:3] == [0, 2, 4]


class Regression(nn.Module):
    """A loss that is a mean over rows, so that micro-batches must give what the whole batch gives."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.new_steps: list[bool] = []
        self.epochs: list[float] = []

    def set_progress(self, epoch: float, new_step: bool) -> None:
        self.epochs.append(epoch)
        self.new_steps.append(new_step)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.linear(batch["inputs"]).square().mean()}


def test_accumulated_micro_batches_equal_the_whole_batch(tmp_path: Path) -> None:
    whole, parts = Regression(), Regression()
    parts.load_state_dict(whole.state_dict())
    run(tmp_path / "whole", module=whole, loader=ToyLoader(48, 12), clip_norm=0.1)
    run(tmp_path / "parts", module=parts, loader=ToyLoader(48, 4), clip_norm=0.1, gradient_accumulation=3)
    torch.testing.assert_close(parts.linear.weight, whole.linear.weight, rtol=1e-5, atol=1e-7)
    assert [record["loss"] for record in losses(tmp_path / "parts")] == pytest.approx(
        [record["loss"] for record in losses(tmp_path / "whole")], rel=1e-5
    )
    assert parts.new_steps == [True, False, False] * 12
    assert parts.epochs[:3] == [0, pytest.approx(1 / 12), pytest.approx(2 / 12)]
    assert parts.epochs[12] == 1.0


def test_the_last_step_of_an_epoch_may_be_shorter(tmp_path: Path) -> None:
    module = Regression()
    result = run(tmp_path, module=module, loader=ToyLoader(40, 8), gradient_accumulation=2, epochs=2)
    assert result.steps == 6
    assert module.new_steps == [True, False, True, False, True] * 2
    assert [record["epoch"] for record in losses(tmp_path)] == [0.4, 0.8, 1.0, 1.4, 1.8, 2.0]


def test_the_best_and_the_final_model_are_exported_and_old_checkpoints_removed(tmp_path: Path) -> None:
    module = ToyStep()
    scores = iter([1.0, 3.0, 2.0, 2.5, 2.9, 2.8])

    def export(folder: Path) -> None:
        (folder / "weights.txt").write_text(str(module.entry.weight.sum().item()))

    result = run(
        tmp_path,
        module=module,
        evaluate=lambda _, step: {"score": next(scores)},
        export=export,
        epochs=6,
        monitor="score",
        checkpoint_every=5,
        keep_checkpoints=2,
    )
    assert result.best == {"step": 12, "name": "score", "mode": "max", "value": 3.0}
    kept = [path.name for path in run_checkpoints(tmp_path)]
    assert kept == ["step-00000012", "step-00000035", "step-00000036"]
    assert (tmp_path / "checkpoints" / "best").read_text().strip() == "step-00000012"
    assert (tmp_path / "best" / "weights.txt").read_text() != (tmp_path / "model" / "weights.txt").read_text()


def test_an_unknown_monitor_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'monitor names "heldout".*did you mean "held_out"'):
        run(tmp_path, evaluate=evaluate, monitor="heldout")


@pytest.mark.parametrize("changes", [{}, {"log_every": 5, "gradient_accumulation": 2, "clip_norm": 0.5}])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, changes: dict[str, Any], signum: int, code: int
) -> None:
    steps_before = {6: 0, 7: 0}
    if changes:
        changes = {**changes, "epochs": 6}
    run(tmp_path / "whole", evaluate=evaluate, **changes)
    before = signal.getsignal(signum)

    def at(step: int) -> Any:
        def listen(module: nn.Module, now: int) -> dict[str, float]:
            return evaluate(module, now)

        class Stopping(ToyStep):
            def set_progress(self, epoch: float, new_step: bool) -> None:
                super().set_progress(epoch, new_step)
                if len([new for new in self.new_steps if new]) == step and new_step:
                    os.kill(os.getpid(), signum)

        seed_everything(0)
        return Stopping(), listen

    assert steps_before
    for step in (6, 4):
        module, listen = at(step)
        with pytest.raises(Interrupted) as stopped:
            train(
                toy_config(**changes),
                module,
                ToyLoader(),
                tmp_path / "cut",
                evaluate=listen,
                resume=step == 4,
                show=False,
            )
        assert stopped.value.exit_code == code
        assert "--resume" in str(stopped.value)
        assert stopped.value.path.is_dir()
    assert stopped.value.step == 10
    seed_everything(123)  # what the process did before must not matter
    result = train(
        toy_config(**changes), ToyStep(), ToyLoader(), tmp_path / "cut", evaluate=evaluate, resume=True, show=False
    )
    assert result.steps == 18
    for split in ("train", "eval"):
        assert losses(tmp_path / "cut", split) == losses(tmp_path / "whole", split)
    assert signal.getsignal(signum) == before


def test_weights_and_moments_after_resuming_are_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", max_steps=18, schedule="constant")
    # The same run in two parts: a longer one is allowed on resuming.
    run(tmp_path / "cut", max_steps=8, schedule="constant")
    again = run(tmp_path / "cut", max_steps=18, schedule="constant", resume=True, module=ToyStep())
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (again.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()
    state = json.loads((whole.checkpoint / "state.json").read_text())["processes"]
    assert json.loads((again.checkpoint / "state.json").read_text())["processes"] == state


def test_other_frozen_weights_are_noticed(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    module = ToyStep()
    nn.init.constant_(module.frozen.weight, 0.3)
    with pytest.raises(UserError, match=r"frozen parts .* are not those"):
        run(tmp_path, max_steps=4, resume=True, module=module)


def test_resuming_a_finished_run_gives_its_result(tmp_path: Path) -> None:
    first = run(tmp_path, evaluate=evaluate)
    again = run(tmp_path, evaluate=evaluate, resume=True)
    assert (again.steps, again.metrics, again.evaluation) == (first.steps, first.metrics, first.evaluation)
    assert len(losses(tmp_path)) == 18


def test_muon_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", optimizer="muon", clip_norm=1.0, max_steps=8)
    assert whole.steps == 8
    run(tmp_path / "cut", optimizer="muon", clip_norm=1.0, max_steps=3)
    run(tmp_path / "cut", optimizer="muon", clip_norm=1.0, max_steps=8, resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    run(tmp_path / "adamw", clip_norm=1.0, max_steps=8)
    assert losses(tmp_path / "adamw") != losses(tmp_path / "whole")


def test_resume_without_a_checkpoint_begins(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n{"step": 2, "spl')
    run(tmp_path / "fresh")
    run(tmp_path, resume=True)
    assert losses(tmp_path) == losses(tmp_path / "fresh")


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    with pytest.raises(UserError, match=r"already holds a run \(up to step 2\).*--resume"):
        run(tmp_path, max_steps=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        run(tmp_path / "file" / "below")


def test_another_configuration_is_refused_and_named(tmp_path: Path) -> None:
    sections = {"data": {"path": "a", "workers": 1}}
    run(tmp_path, max_steps=2, sections=sections)
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.01 -> 0\.02"):
        run(tmp_path, max_steps=2, learning_rate=2e-2, resume=True, sections=sections)
    other = {"data": {"path": "b", "workers": 2}}
    with pytest.raises(UserError, match=r"data\.path: 'a' -> 'b'\)"):
        run(tmp_path, max_steps=2, resume=True, sections=other, may_change=["data.workers"])
    allowed = {"data": {"path": "a", "workers": 2}}
    result = run(tmp_path, max_steps=4, log_every=2, resume=True, sections=allowed, may_change=["data.work*"])
    assert result.steps == 4


def test_a_loss_that_is_not_finite_names_its_step_and_is_not_applied(tmp_path: Path) -> None:
    seed_everything(0)
    module = ToyStep()
    module.poison_at = 11  # the 11th forward
    with pytest.raises(NotFinite, match=r"step 11 gave .* \(loss nan, contrastive .*step-00000010") as failure:
        run(tmp_path, module=module, log_every=4, checkpoint_every=5)
    assert failure.value.step == 11
    assert np.isnan(failure.value.losses["loss"])
    assert np.isfinite(failure.value.losses["contrastive"])
    seed_everything(0)
    run(tmp_path / "ten", module=(ten := ToyStep()), max_steps=10)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and name != "temperature":  # its clamp runs in the forward
            assert torch.equal(parameter, dict(ten.named_parameters())[name]), name
    assert [record["step"] for record in losses(tmp_path)] == [4, 8]
    assert "NotFinite" in (tmp_path / "log.txt").read_text()


def test_a_bad_step_is_never_saved(tmp_path: Path) -> None:
    module = ToyStep()
    module.poison_at = 5
    with pytest.raises(NotFinite, match="no checkpoint was written yet"):
        run(tmp_path, module=module, log_every=100, checkpoint_every=5)
    assert run_checkpoints(tmp_path) == []


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = states.write_tensors, []

    def full(path: Path, tensors: dict[str, Tensor]) -> None:
        calls.append(path)
        if len(calls) == 4:  # the optimiser's file of the second checkpoint
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(states, "write_tensors", full)
        with pytest.raises(UserError, match=r"the disk is full: .*step-00000010"):
            run(tmp_path, checkpoint_every=5)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["step-00000005"]
    assert (tmp_path / "checkpoints" / "last").read_text().strip() == "step-00000005"
    run(tmp_path, resume=True, checkpoint_every=5)
    run(tmp_path / "whole")
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_time_budget_ends_cleanly_and_can_be_raised(tmp_path: Path) -> None:
    result = run(tmp_path, max_minutes=1e-9, evaluate=evaluate)
    assert (result.stopped, result.steps) == ("time", 1)
    assert [record["step"] for record in losses(tmp_path, "eval")] == [1]
    assert run(tmp_path, max_minutes=1e-9, evaluate=evaluate, resume=True).steps == 1
    assert run(tmp_path, max_minutes=10, evaluate=evaluate, resume=True).steps == 18


def test_no_batch_and_a_missing_ability_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not one batch"):
        run(tmp_path / "a", loader=ToyLoader(4, 8))
    with pytest.raises(UserError, match="Regression cannot recompute"):
        run(tmp_path / "b", module=Regression(), gradient_checkpointing=1.0)
    with pytest.raises(UserError, match=r'unknown tracker "tensorbord".*"tensorboard"'):
        run(tmp_path / "c", trackers=("tensorbord",))
    with pytest.raises(UserError, match="float16"):
        run(tmp_path / "d", precision="float16")


def test_tensorboard_holds_the_records(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, trackers=("tensorboard",), evaluate=evaluate)
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == list(range(1, 19))
    assert points[3].value == pytest.approx(losses(tmp_path)[3]["loss"], rel=1e-6)
    assert len(events.Scalars("eval/held_out")) == 3


def test_one_process_can_train_again_in_another_precision(tmp_path: Path) -> None:
    seen = []

    class Watching(Regression):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            out = self.linear(batch["inputs"])
            seen.append(out.dtype)
            return {"loss": out.float().square().mean()}

    module = Watching()
    for precision in ("bfloat16", "float32"):
        run(tmp_path / precision, module=module, max_steps=1, precision=precision)
    assert seen == [torch.bfloat16, torch.float32]
    assert module.linear.weight.dtype == torch.float32


def test_prepare_makes_what_forward_takes(tmp_path: Path) -> None:
    class Pair(Regression):
        def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            left, right = batch
            return {"loss": (self.linear(left) - right).square().mean()}

    def prepare(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return batch["inputs"], batch["inputs"][:, :4]

    result = run(tmp_path, module=Pair(), prepare=prepare, learning_rate=0.1, epochs=10)
    assert result.metrics["loss"] < losses(tmp_path)[0]["loss"]


def test_lines_on_a_pipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[dict[str, Any]] = []
    run(tmp_path, show=True, evaluate=evaluate, on_record=heard.append)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("training: beginning of 18 steps (6 an epoch)")
    train_lines = [line for line in lines if line.startswith("training train:")]
    assert len(train_lines) == 2  # the first and the last: a line now and then, not one a record
    for piece in ("step 18/18", "loss ", "lr 8.10e-03", "images/s", "left"):
        assert piece in train_lines[-1]
    assert len([line for line in lines if "held_out" in line and "eval" in line]) == 3
    assert len(heard) == 21
