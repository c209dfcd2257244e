"""Images to use: found wherever they lie, decoded ahead and in order, the broken ones named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.core.errors import UserError
from openblip.data.image_inputs import ImageInput, as_image_inputs, decoded, find_image_inputs, find_images
from openblip.data.sample import BrokenSample
from openblip.data.transforms import evaluation_transform

TRANSFORM = evaluation_transform(16)


def image(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, one of them a folder down, one in a tar beside a text, and a file that is none."""
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(("a.png", "b.jpg", "c.png", "deep/d.png")):
        image(number).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("nothing")
    data = io.BytesIO()
    image(4).save(data, "PNG")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, content in (("0.png", data.getvalue()), ("0.txt", b"a text")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return tmp_path


def test_files_folders_globs_tars_and_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.png", "b.jpg", "c.png", "deep/d.png", "shard.tar/0.png"]
    every = [str(folder / name) for name in names]
    assert find_images([folder]) == every
    assert find_images([folder / "c.png", folder / "shard.tar"]) == [every[2], every[4]]
    assert find_images([f"{folder}/*.png", f"{folder}/*.tar"]) == [every[0], every[2], every[4]]
    listing = io.StringIO(f"{folder}/b.jpg\n\n{folder}/none.png\n{folder}/shard.tar\n")
    found = find_image_inputs(["-"], listing=listing)
    assert [image.name for image in found] == [every[1], f"{folder}/none.png", every[4]]
    monkeypatch.chdir(folder)
    assert find_images(["*.png"]) == ["a.png", "c.png"]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batches_come_in_order_with_what_is_broken(folder: Path, batch_size: int, threads: int) -> None:
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    before = torch.get_num_threads()
    images = find_image_inputs([folder])
    batches = list(decoded(images, TRANSFORM, batch_size=batch_size, threads=threads))
    assert torch.get_num_threads() == before
    assert [len(batch) + len(batch.broken) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    names = [name for batch in batches for name in batch.names]
    assert names == [str(folder / name) for name in ("a.png", "c.png", "deep/d.png", "shard.tar/0.png")]
    pixels = torch.cat([batch.pixels for batch in batches if len(batch)])
    for row, number in zip(pixels, (0, 2, 3, 4), strict=True):
        assert torch.equal(row, TRANSFORM(image(number), np.random.default_rng(0)))
    broken = {Path(sample.key).name: sample.cause for batch in batches for sample in batch.broken}
    assert broken == {"b.jpg": "truncated", "empty.png": "empty"}


def test_decoding_runs_a_few_batches_ahead_and_no_more(folder: Path) -> None:
    asked = []

    def watched() -> Iterator[ImageInput]:
        for number in range(40):
            asked.append(number)
            yield as_image_inputs([image(number)])[0]

    batches = decoded(watched(), TRANSFORM, batch_size=2)
    assert not asked
    next(batches)
    assert len(asked) == 8, "the batch that came, two ahead and the next"
    batches.close()
    assert len(asked) == 8


def test_a_tar_that_vanishes_or_changes_is_one_broken_image(folder: Path) -> None:
    images = find_image_inputs([folder / "shard.tar", folder / "a.png"])
    (folder / "shard.tar").unlink()
    (batch,) = decoded(images, TRANSFORM, batch_size=4)
    assert batch.names == [str(folder / "a.png")]
    assert [sample.key for sample in batch.broken] == [f"{folder}/shard.tar/0.png"]


def test_a_cut_tar_is_refused(folder: Path) -> None:
    tar = folder / "shard.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match=r"shard\.tar cannot be read \(truncated\)"):
        find_image_inputs([tar])


def test_unusual_images_are_what_they_show(folder: Path) -> None:
    """The first frame of an animation, an upright image, transparency on white."""
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    turned = Image.new("RGB", (16, 16), "black")
    turned.paste("white", (0, 0, 16, 4))  # its upper edge, once it is turned by EXIF's 3 (half a turn)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned.rotate(180).save(folder / "turned.png", exif=exif)
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.paste(0, (0, 0, 16, 8))
    palette.save(folder / "palette.png", transparency=0)
    names = ("moving.gif", "turned.png", "palette.png")
    (batch,) = decoded(find_image_inputs([folder / name for name in names]), TRANSFORM, batch_size=4)
    assert not batch.broken
    moving, upright, clear = batch.pixels
    assert moving.flatten(1).float().mean(1).round().tolist() == [254, 0, 0] or moving[0].min() > 250
    assert (upright[:, :3] == 255).all()
    assert (upright[:, 5:] == 0).all()
    assert (clear[:, :7] == 255).all(), "transparent is white"
    assert clear[:, 12, 8].tolist() == [10, 200, 30]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint16, torch.int8])
def test_tensors_of_integers(dtype: torch.dtype) -> None:
    shown = as_image_inputs(torch.full((3, 4, 4), 44).to(dtype))[0].decode()
    assert shown.getpixel((0, 0)) == (44, 44, 44)
    for value in (300, -1):
        if torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max:
            tensor = torch.full((3, 4, 4), value).to(dtype)
            with pytest.raises(BrokenSample, match=f"integers from {value} to {value}, not from 0 to 255"):
                as_image_inputs(tensor)[0].decode()


def test_no_image_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no image in"):
        find_image_inputs([tmp_path])
    with pytest.raises(UserError, match="there is no image or folder"):
        find_image_inputs([tmp_path / "none.png"])
    with pytest.raises(UserError, match="there is no image in -"):
        find_image_inputs(["-"], listing=io.StringIO("\n"))
