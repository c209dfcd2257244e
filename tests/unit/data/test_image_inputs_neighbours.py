"""Images handed over in other ways: cut tars among images, columns of tables, what is no image at all."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_data import encoded, make_image

from openblip.core.errors import UserError
from openblip.data.image_inputs import as_image_inputs, find_image_inputs


@pytest.mark.parametrize("place", ["", "*"])
def test_a_cut_tar_among_images_costs_what_is_behind_the_cut(image_folder: Path, place: str) -> None:
    with tarfile.open(image_folder / "t.tar", "w") as tar:
        for name in ("a.png", "b.png"):
            data = encoded(make_image(1))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    whole = (image_folder / "t.tar").read_bytes()
    (image_folder / "t.tar").write_bytes(whole[: 512 + len(encoded(make_image(1))) + 600])
    (image_folder / "u.tar").write_bytes(b"")
    found = find_image_inputs([image_folder / place])
    assert [one.name for one in found if "t.tar" in one.name] == [f"{image_folder}/t.tar/a.png"]
    assert len(found) == 11
    assert [(one.cause, one.key) for one in found.left_out.broken()] == [
        ("truncated", f"{image_folder}/t.tar"),
        ("truncated", f"{image_folder}/u.tar"),
    ]
    with pytest.raises(UserError, match=r"t\.tar cannot be read \(truncated\)"):
        find_image_inputs([image_folder / "t.tar"])


def test_columns_of_tables_are_lists_of_paths(image_folder: Path) -> None:
    paths = [str(image_folder / f"{number}.png") for number in range(3)]
    for given in (np.array(paths), np.array(paths, object), np.array([Path(path) for path in paths]), tuple(paths)):
        assert [one.name for one in as_image_inputs(given)] == paths
        assert {one.decode().size for one in as_image_inputs(given)} == {make_image(0).size}


@pytest.mark.parametrize("given", [None, 5, [None], [["a.png"]], [{"bytes": b""}], np.array([3.5, None], object)])
def test_what_is_no_image_is_reported(given: Any) -> None:
    with pytest.raises(UserError, match="give paths, open files"):
        as_image_inputs(given)
