"""A run's folder: opened once, never mixed with another run, resumed only with what it began with.

config.json     everything that was configured, the whole run's sections
versions.json   versions, machine, processes and command of the last start
metrics.jsonl   records; log.txt: sentences; skipped.jsonl: broken samples (the loader's)
checkpoints/    step-XXXXXXXX/ ..., and `last` and `best`, text files that name one of them
model/, best/   the usable model at the end, and at the best evaluation
tensorboard/    and other trackers' files
"""

from __future__ import annotations

import fnmatch
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openblip.core.config import differences, to_dict
from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.core.places import check_run_folder, run_checkpoints
from openblip.core.runtime import machine, versions, world_size
from openblip.core.text import read_json
from openblip.training.config import MAY_CHANGE, TrainConfig
from openblip.training.state import prune_checkpoints, read_state

__all__ = ["open_run"]


def open_run(
    out_dir: Path,
    config: TrainConfig,
    sections: dict[str, Any],
    may_change: Iterable[str],
    *,
    resume: bool,
) -> Path | None:
    """Make the folder ready and return the checkpoint to resume from; None is a start from nothing.

    Args:
        sections: the run's other configurations, by name.
        may_change: dotted names, with * for any, of what a resumed run may have otherwise.

    Raises:
        UserError: the folder holds a run and `resume` is False, or it holds another run, or cannot be made.
    """
    check_run_folder(out_dir, resume=resume)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {out_dir} cannot be made: {error.strerror}; choose another") from error
    complete = to_dict({"train": config, **sections})
    found = run_checkpoints(out_dir)
    checkpoint = found[-1] if found else None
    if resume and checkpoint:
        _refuse_another_run(out_dir, complete, [*(f"train.{name}" for name in MAY_CHANGE), *may_change])
        written_by = len(read_state(checkpoint)["processes"])
        if written_by != world_size():
            raise UserError(
                f"{out_dir} was trained by {written_by} processes and this run has {world_size()}, so its batches "
                f"would be others; start {written_by}, or begin a new run from its exported model"
            )
    write_json(out_dir / "config.json", complete)
    started = {
        "versions": versions(),
        "machine": machine(),
        "processes": world_size(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(out_dir / "versions.json", started)
    prune_checkpoints(out_dir, config.keep_checkpoints)
    return checkpoint


def _refuse_another_run(out_dir: Path, complete: dict[str, Any], may_change: list[str]) -> None:
    path = out_dir / "config.json"
    try:
        before = read_json(path)
    except (OSError, UserError) as error:
        raise UserError(f"{path} cannot be read, so it is not known what {out_dir} holds: {error}") from error
    changed = [
        line
        for line in differences(before, complete)
        if not any(fnmatch.fnmatch(line.partition(":")[0], pattern) for pattern in may_change)
    ]
    if changed:
        raise UserError(
            f"{out_dir} holds a run of another configuration ({'; '.join(changed)}); "
            "resume with what it began with, or choose another folder"
        )
