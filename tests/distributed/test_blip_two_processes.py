"""BLIP over two gloo processes with half the batch each equals one process with the whole: losses, weights, queue.

In-batch negatives of ITM are drawn among the pairs of the own process, as in the reference, so which negatives are
drawn depends on the number of processes. Here they are chosen within groups of four, the same however the batch is
shared out; everything that follows from them must be equal. Where they come from all ranks, most chosen ones are of
the other rank.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import blip_toy
import launching
import pytest
import torch
from launching import close
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

run = partial(launching.run, blip_toy.main)
WHOLE, HALF = "--batch_size=8", "--batch_size=4"


def equal_states(one: Path, two: Path, *, atol: float = 2e-4) -> None:
    """Model, momentum copies and queue at the end, from the last checkpoints (shards are saved whole)."""
    name = Path("checkpoints/step-00000006/model.safetensors")
    ours, theirs = load_file(one / name), load_file(two / name)
    assert ours.keys() == theirs.keys()
    assert any("momentum_copy" in key for key in ours)
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=atol, msg=lambda m, k=key: f"{k}: {m}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the whole batch."""
    out = tmp_path_factory.mktemp("whole")
    run(out, WHOLE, processes=1)
    return out


def test_two_halves_equal_the_whole(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, HALF)
    close(whole, tmp_path, rtol=1e-3)
    equal_states(whole, tmp_path)


def test_their_gradients_are_those_of_the_whole(tmp_path: Path) -> None:
    run(tmp_path / "one", WHOLE, "--max_steps=1", processes=1)
    run(tmp_path / "two", HALF, "--max_steps=1")
    moments = [
        load_file(tmp_path / name / "checkpoints/step-00000001/optimizer.safetensors") for name in ("one", "two")
    ]
    gradients = [key for key in moments[0] if key.endswith("|exp_avg")]
    assert len(gradients) > 60
    for key in gradients:
        torch.testing.assert_close(moments[1][key], moments[0][key], rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("layers", ["[]", '["Block"]'], ids=["whole", "by-vision-block"])
def test_shards_equal_copies(whole: Path, tmp_path: Path, layers: str) -> None:
    run(tmp_path, HALF, '--sharding="fsdp2"', f"--sharding_layers={layers}")
    close(whole, tmp_path, rtol=1e-3)
    equal_states(whole, tmp_path)


def test_copies_recompute_activations(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, HALF, "--gradient_checkpointing=1")
    close(whole, tmp_path, rtol=1e-3)
    equal_states(whole, tmp_path)


def test_they_accumulate_tokens_of_all_processes(tmp_path: Path) -> None:
    """LM alone: the mean over all tokens of a step, however processes and micro-batches share them out."""
    run(tmp_path / "one", WHOLE, '--objectives=["lm"]', processes=1)
    run(tmp_path / "two", "--batch_size=2", "--gradient_accumulation=2", '--objectives=["lm"]')
    close(tmp_path / "one", tmp_path / "two", rtol=1e-4)


def test_negatives_of_all_ranks_give_the_gradients_of_the_whole(tmp_path: Path) -> None:
    """Images of the other rank get their gradient there; texts there are longer or shorter."""
    run(tmp_path / "one", WHOLE, '--negatives="all"', "--max_steps=2", processes=1)
    run(tmp_path / "two", HALF, '--negatives="all"', "--max_steps=2")
    close(tmp_path / "one", tmp_path / "two", rtol=1e-3)
    name = "checkpoints/step-00000002/optimizer.safetensors"
    one, two = (load_file(tmp_path / which / name) for which in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-6, msg=key)


def test_drawn_negatives_of_all_ranks_train(tmp_path: Path) -> None:
    run(tmp_path, HALF, "--draw=true", '--negatives="all"', "--max_steps=12", "--learning_rate=2e-3")
    records = launching.losses(tmp_path)
    assert records[-1]["loss"] < records[0]["loss"]


def test_drawn_negatives_train_too(tmp_path: Path) -> None:
    run(tmp_path, HALF, "--draw=true", "--max_steps=12", "--learning_rate=2e-3")
    records = launching.losses(tmp_path)
    assert records[-1]["loss"] < records[0]["loss"]


def test_captions_sampled_by_two_are_rewarded_as_those_of_one(tmp_path: Path) -> None:
    """Self-critical training: the mean over all tokens, however many each process sampled."""
    run(tmp_path / "one", WHOLE, '--objectives=["scst"]', "--max_steps=3", processes=1)
    run(tmp_path / "two", HALF, '--objectives=["scst"]', "--max_steps=3")
    close(tmp_path / "one", tmp_path / "two", rtol=1e-3)
    assert all(record["reward"] > 0 for record in launching.losses(tmp_path / "one"))
