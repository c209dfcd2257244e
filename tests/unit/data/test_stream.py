"""The loader: each sample once an epoch, the same whatever the workers and ranks, exactly resumable."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from loaders import PLAIN, NoisyImages, keys, make, rows, rows_of, texts_of

from openblip.core.errors import UserError
from openblip.data.sample import stable_id

COUNT = 30


def test_every_sample_once_an_epoch_in_another_order_each_time() -> None:
    loader = make(NoisyImages(COUNT), batch_size=5)
    first, second = keys(loader), keys(loader)
    assert sorted(first, key=int) == sorted(second, key=int) == [str(n) for n in range(COUNT)]
    assert first != second
    assert loader.epoch == 2
    again = make(NoisyImages(COUNT), batch_size=5)
    assert [keys(again), keys(again)] == [first, second]
    assert keys(make(NoisyImages(COUNT), batch_size=5, seed=1)) != first


def test_without_shuffling_samples_come_as_they_are() -> None:
    loader = make(NoisyImages(7), batch_size=3, shuffle=False, drop_last=False)
    assert [batch.keys for batch in loader] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert len(loader) == 3
    assert len(make(NoisyImages(7), batch_size=3)) == 2


def test_an_augmentation_is_new_in_each_epoch() -> None:
    loader = make(NoisyImages(4))
    first = {key: pixels for pixels, _, key in rows(loader)}
    second = {key: pixels for pixels, _, key in rows(loader)}
    assert all(first[key] != second[key] for key in first)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers: int) -> None:
    alone = make(NoisyImages(COUNT))
    shared = make(NoisyImages(COUNT), num_workers=num_workers)
    for _ in range(2):
        assert rows(shared) == rows(alone)
    shared.close()


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_together_equal_one(world_size: int, drop_last: bool) -> None:
    whole = [rows_of(batch) for batch in make(NoisyImages(COUNT + 1), batch_size=12, drop_last=drop_last)]
    ranks = [
        make(
            NoisyImages(COUNT + 1),
            batch_size=12 // world_size,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in ranks} == {len(whole)}
    together = [[row for batch in step for row in rows_of(batch)] for step in zip(*ranks, strict=True)]
    assert together == whole


def test_ranks_without_a_sample_of_the_last_batch_repeat_its_first() -> None:
    ranks = [make(NoisyImages(5), batch_size=2, rank=rank, world_size=2, drop_last=False) for rank in range(2)]
    last = [list(loader)[-1] for loader in ranks]
    assert [len(batch) for batch in last] == [1, 1]
    assert last[0].keys == last[1].keys


# ---- resuming ----


@pytest.mark.parametrize(
    ("workers", "then"), [(0, 0), (0, 2), (2, 0), (2, 1)], ids=lambda number: f"{number}-workers"
)
def test_resumed_in_mid_epoch_to_the_byte(workers: int, then: int) -> None:
    whole = make(NoisyImages(COUNT))
    expected = [rows(whole), rows(whole)]
    loader = make(NoisyImages(COUNT), num_workers=workers)
    assert rows(loader) == expected[0]
    batches = iter(loader)
    seen = rows_of(next(batches)) + rows_of(next(batches))
    state = json.loads(json.dumps(loader.state_dict()))  # as a checkpoint keeps it
    next(batches)  # what is read on after saving is read again
    loader.close()
    resumed = make(NoisyImages(COUNT), num_workers=then)
    resumed.load_state_dict(state)
    assert (resumed.epoch, seen + rows(resumed)) == (1, expected[1])
    assert resumed.epoch == 2
    resumed.close()


def test_resumed_by_another_number_of_ranks() -> None:
    one = make(NoisyImages(COUNT), batch_size=6)
    expected = [rows_of(batch) for batch in one]
    batches = iter(make(NoisyImages(COUNT), batch_size=6))
    next(batches)
    stopped = make(NoisyImages(COUNT), batch_size=6)
    next(iter(stopped))
    ranks = [make(NoisyImages(COUNT), batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    for loader in ranks:
        loader.load_state_dict(stopped.state_dict())
    together = [[row for batch in step for row in rows_of(batch)] for step in zip(*ranks, strict=True)]
    assert together == expected[1:]


def test_saved_after_the_last_batch_goes_on_with_the_next_epoch() -> None:
    whole = make(NoisyImages(8))
    rows(whole)
    second = rows(whole)
    loader = make(NoisyImages(8))
    batches = iter(loader)
    next(batches), next(batches)
    resumed = make(NoisyImages(8))
    resumed.load_state_dict(loader.state_dict())
    assert rows(resumed) == []
    assert rows(resumed) == second


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 1}, "the seed was 0 and is now 1"),
        ({"batch_size": 5}, "batch size times the number of processes was 4 and is now 5"),
        ({"length": 20}, "the mix of sources"),
        ({"count": 31}, "the number of samples in each source"),
    ],
)
def test_other_data_cannot_be_resumed(changed: dict[str, Any], says: str) -> None:
    state = make(NoisyImages(COUNT)).state_dict()
    changed = dict(changed)
    other = make(NoisyImages(changed.pop("count", COUNT)), **changed)
    with pytest.raises(UserError, match=f"cannot resume: .*{says}"):
        other.load_state_dict(state)


def test_broken_off_and_begun_again() -> None:
    loader = make(NoisyImages(COUNT), num_workers=1)
    expected = rows(make(NoisyImages(COUNT)))
    next(iter(loader))
    loader.rewind()
    assert rows(loader) == expected
    loader.close()


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loader = make(NoisyImages(8), num_workers=1)
    list(loader)
    loader.close()
    list(make(NoisyImages(8)))
    assert torch.equal(torch.get_rng_state(), before)


def test_decoding_in_a_thread_keeps_the_cores_of_training() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(make(NoisyImages(8)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ---- captions and image ids ----


def test_one_of_several_captions_is_drawn_evenly() -> None:
    loader = make(NoisyImages(20), transform=PLAIN)
    drawn = Counter(text.split()[1] for _ in range(30) for batch in loader for text in batch.texts)
    assert sum(drawn.values()) == 600
    assert all(150 < drawn[letter] < 250 for letter in "abc")


def test_text_modes() -> None:
    first = next(iter(make(NoisyImages(4), shuffle=False, text_mode="first")))
    assert first.texts == [f"caption a of {n}" for n in range(4)]
    every = next(iter(make(NoisyImages(4), shuffle=False, text_mode="all")))
    assert every.texts == [text for n in range(4) for text in texts_of(n)]
    assert every.image_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    nothing = next(iter(make(NoisyImages(4), text_mode="none")))
    assert (nothing.texts, len(nothing)) == ([], 4)


def test_image_ids_keep_sources_apart_unless_they_share_a_name() -> None:
    alone = next(iter(make(NoisyImages(4), shuffle=False)))
    assert alone.image_ids.tolist() == [stable_id(str(n)) for n in range(4)]

    def ids(*names: str) -> set[int]:
        loader = make([NoisyImages(4, name) for name in names], batch_size=8)
        return set(next(iter(loader)).image_ids.tolist())

    assert len(ids("a", "b")) == 8
    assert len(ids("a", "a")) == 4


# ---- mixing ----


def test_weights_give_the_shares_of_a_mix() -> None:
    small, large = NoisyImages(10, "small"), NoisyImages(200, "large")
    loader = make([small, large], batch_size=10, weights=[3.0, 1.0], length=40, text_mode="none")
    seen: dict[str, Counter[str]] = {"small": Counter(), "large": Counter()}
    for _ in range(20):
        ids = {
            stable_id(f"{source.name}/{n}"): source.name for source in (small, large) for n in range(len(source))
        }
        epoch = [(ids[int(i)], key) for batch in loader for i, key in zip(batch.image_ids, batch.keys, strict=True)]
        assert Counter(name for name, _ in epoch) == {"small": 30, "large": 10}
        for name, key in epoch:
            seen[name][key] += 1
    # a source continues where its last epoch stopped: all of its samples are seen equally often
    assert set(seen["small"].values()) == {60}
    assert (len(seen["large"]), set(seen["large"].values())) == (200, {1})
    assert [told["samples_each_epoch"] for told in loader.describe()["sources"]] == [30, 10]


def test_an_epoch_may_take_a_part_of_a_source() -> None:
    small, large = NoisyImages(10, "small"), NoisyImages(20, "large")
    loader = make([small, large], batch_size=14, epoch_shares=[1.0, 0.2], text_mode="none")
    assert [told["samples_each_epoch"] for told in loader.describe()["sources"]] == [10, 4]
    first = {stable_id(f"small/{n}") for n in range(10)}
    parts = []
    for _ in range(5):
        (batch,) = loader
        ids = [int(number) for number in batch.image_ids]
        assert set(ids) >= first
        parts += [number for number in ids if number not in first]
    assert sorted(parts) == sorted(stable_id(f"large/{n}") for n in range(20)), "the next epoch goes on from there"
    mixed = make([small, large], batch_size=10, epoch_shares=[1.0, 0.2], weights=[1.0, 1.0], text_mode="none")
    assert [told["samples_each_epoch"] for told in mixed.describe()["sources"]] == [15, 15], "weights decide"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weights": [1.0, None]}, "1 of 2 data sources have a weight"),
        ({"weights": [1.0, -1.0]}, "above 0, not 1, -1"),
        ({"weights": [1.0, float("nan")]}, "above 0"),
        ({"weights": [1000.0, 1.0], "length": 20}, "source 2 of 2 would give none of the 20 samples"),
        ({"length": 0}, "at least one sample"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 50}, "too few for one batch of 50; lower batch_size to 20"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make([NoisyImages(10, "a"), NoisyImages(10, "b")], **settings)


def test_nothing_to_read() -> None:
    with pytest.raises(UserError, match="no data source"):
        make([])
    with pytest.raises(UserError, match="data source 2 holds no samples"):
        make([NoisyImages(10), NoisyImages(0)])
