"""What of its data a run takes; it does not continue over data that have become others, whatever their number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import spoiled

from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.recipes.small import small_pretrain
from openblip.tasks.training import run_training


def test_a_run_on_changed_data_of_equal_size_stops(tmp_path: Path) -> None:
    _, table = spoiled.write(tmp_path / "data")
    config = small_pretrain((str(table),), model="nano", steps=2)
    quiet = ("batch_size=2", "num_workers=0", "train.trackers=[]", "image_size=32", "vocab_size=60")
    config = override(config, (*quiet, "train.device=cpu", "train.checkpoint_every=1"))
    run_training(replace(config, train=replace(config.train, max_steps=1)), tmp_path / "run", show=False)
    written = table.read_text()
    table.write_text(written.replace("a long chair", "a long table"))
    with pytest.raises(UserError, match=r"cannot resume: the data of .*good\.jsonl have changed since"):
        run_training(config, tmp_path / "run", resume=True, show=False)
    table.write_text(written)  # as it was, with another time
    assert run_training(config, tmp_path / "run", resume=True, show=False).steps == 2


def test_an_epoch_takes_the_part_of_a_source_that_is_set(tmp_path: Path) -> None:
    """Of 24 samples a fourth each epoch: three steps of two."""
    config = small_pretrain(("world:train?n=24&size=32&epoch_share=0.25",), model="nano", steps=2)
    quiet = ("batch_size=2", "num_workers=0", "train.trackers=[]", "image_size=32", "vocab_size=60")
    config = override(config, (*quiet, "train.device=cpu"))
    train = replace(config.train, max_steps=None, epochs=1, evaluate_every_epochs=0)
    assert run_training(replace(config, train=train), tmp_path / "run", show=False).steps == 3
