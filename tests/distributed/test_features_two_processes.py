"""Features that several processes compute are in the files of one process, each image once."""

from __future__ import annotations

from pathlib import Path

import features_toy
import launching
import pytest

from openblip.tasks.feature_files import ShardHead, shard_files

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shards_are_those_of_one_process(tmp_path: Path, processes: int) -> None:
    folders = {count: tmp_path / str(count) for count in (1, processes)}
    for count, folder in folders.items():
        launching.run(features_toy.main, folder, processes=count)
    one, several = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders.values())
    assert len(shard_files(folders[1])) == len(features_toy.KEYS) // 2
    assert several == one
    keys = [key for file in shard_files(folders[processes]) for key in ShardHead.read(file).keys]
    assert sorted(keys) == sorted(set(features_toy.KEYS) - {"?"})
    assert sum(not ShardHead.read(file).keys for file in shard_files(folders[1])) == 1, "one shard is empty"
