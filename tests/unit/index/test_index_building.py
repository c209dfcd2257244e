"""Building an index and keeping it up to date: what is computed, what is not, and what is refused."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest
import small
import torch
from index_small import Counting, build, exact, make_predictor, update
from PIL import Image

from openblip.cli.index import _known_places, _open, _update
from openblip.core import runtime
from openblip.core.errors import UserError
from openblip.index.building import create
from openblip.index.catalog import Catalog, remove
from openblip.index.entries import Place, date_of
from openblip.index.image_index import ImageIndex
from openblip.index.model import model_fingerprint
from openblip.index.sqlite import SqliteDatabase


def touch(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


def test_each_image_has_its_vector(where: Path | str, photos: Path, predictor: Counting) -> None:
    index, changes = build(where, predictor, photos)
    assert (changes.added, changes.changed, changes.same, changes.removed, changes.broken) == (10, 0, 0, 0, [])
    paths = sorted(str(path) for path in photos.rglob("*.png"))
    records = [index.catalog.find(path) for path in paths]
    vectors = index.store.read([record.vector for record in records if record is not None])
    # Batches of other sizes are multiplied by other kernels; float16 then differs in its last bit.
    torch.testing.assert_close(vectors, exact(index, predictor, paths), atol=2e-3, rtol=0)
    record = index.catalog.find(str(photos / "new" / "7.png"))
    assert record is not None
    assert record.captions == (small.TEXTS[7], "number 7")
    assert record.size == (photos / "new" / "7.png").stat().st_size


def test_only_what_is_new_is_computed(where: Path | str, photos: Path, blip: Counting) -> None:
    index, _ = build(where, blip, photos)
    vectors = index.catalog.num_vectors
    blip.encoded = 0
    changes = update(index, photos)
    assert (blip.encoded, changes.same, changes.added) == (0, 10, 0)

    touch(photos / "0.png", 1)  # another time, the same content
    shutil.move(photos / "1.png", photos / "moved.png")  # another name, the same content
    shutil.copy(photos / "2.png", photos / "copy.png")
    small.make_image(50, side=40).save(photos / "3.png")
    (photos / "4.png").unlink()
    small.make_image(51, side=40).save(photos / "added.png")
    (photos / "5.txt").write_text("a new caption\n")
    blip.encoded = 0
    changes = update(index, photos)
    assert blip.encoded == 2, "3.png and added.png"
    assert (changes.added, changes.changed, changes.removed, changes.same) == (3, 1, 2, 7)
    assert index.catalog.num_vectors == vectors + 2
    assert index.catalog.count() == 11
    gone = index.catalog.find(str(photos / "4.png"))
    assert gone is not None
    assert gone.removed
    found = index.catalog.find(str(photos / "5.png"))
    assert found is not None
    assert found.captions == ("a new caption",)

    small.make_image(4, side=40).save(photos / "4.png")  # it is back
    blip.encoded = 0
    assert update(index, photos).added == 1
    assert blip.encoded == 0
    assert update(index, photos).same == 12


def test_broken_images_are_skipped_counted_and_listed(where: Path | str, photos: Path, blip: Counting) -> None:
    whole = (photos / "0.png").read_bytes()
    (photos / "0.png").write_bytes(whole[: len(whole) // 2])
    (photos / "1.png").write_bytes(b"")
    (photos / "b.jpg").write_bytes(b"GIF? no")
    (photos / "raw.dng").write_bytes(b"raw")
    index, changes = build(where, blip, photos)
    told = {Path(sample.key).name: sample.cause for sample in changes.broken}
    assert told == {"0.png": "truncated", "1.png": "empty", "b.jpg": "not-an-image", "raw.dng": "unreadable"}
    assert (changes.added, index.catalog.count()) == (8, 8)
    assert {Path(sample.key).name for sample in index.catalog.broken()} == set(told)

    (photos / "0.png").write_bytes(whole)  # mended
    (photos / "2.png").write_bytes(b"")  # was good
    changes = update(index, photos)
    assert (changes.added, changes.removed, len(changes.broken)) == (1, 1, 4)
    assert index.catalog.count() == 8


def test_images_of_a_captions_file_and_of_tars(
    tmp_path: Path, where: Path | str, photos: Path, blip: Counting
) -> None:
    rows = ["2.png", "3.png", "none.png"]
    lines = (f'{{"image": "{name}", "caption": "a dog", "year": {number}}}\n' for number, name in enumerate(rows))
    (photos / "some.jsonl").write_text("".join(lines))
    index, changes = build(where, blip, f"{photos / 'some.jsonl'}?meta_columns=year")
    assert changes.added == 2
    assert [(Path(one.key).name, one.cause) for one in changes.broken] == [("none.png", "missing")]
    record = index.catalog.find(str(photos / "3.png"))
    assert record is not None
    assert (record.captions, record.metadata) == (("a dog",), {"year": 1})

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("2.png", "2.txt", "0.png", "0.txt"):
            tar.add(photos / name, arcname=name)
    blip.encoded = 0
    assert update(index, tmp_path / "0.tar").added == 2
    assert blip.encoded == 1, "2.png is in the index already"
    record = index.catalog.find(f"{tmp_path / '0.tar'}/0")
    assert record is not None
    assert record.captions == (small.TEXTS[0], "number 0")
    assert index.image(record.id).tobytes() == Image.open(photos / "0.png").tobytes()
    assert update(index, tmp_path / "0.tar").same == 2
    assert update(index, f"{photos}/*.png").added == 4
    assert index.catalog.places() == [
        f"{photos / 'some.jsonl'}?meta_columns=year",
        str(tmp_path / "0.tar"),
        f"{photos}/*.png",
    ]


def test_data_without_files_are_refused() -> None:
    with pytest.raises(UserError, match="lie neither in files of their own nor in tars"):
        list(Place("world:test?n=2&size=32"))
    with pytest.raises(UserError, match="there is no file or folder"):
        Place("nowhere")


def test_removing(where: Path | str, photos: Path, blip: Counting) -> None:
    index, _ = build(where, blip, photos)
    assert remove(index.catalog, [str(photos / "0.png"), str(photos / "new")]) == 5
    assert index.catalog.count() == 5
    assert len(index.search(text="a dog", rerank=0, count=20)) == 5
    with pytest.raises(UserError, match="holds no image at"):
        remove(index.catalog, [str(photos / "0.png")])
    assert update(index, photos).added == 5


def test_a_place_that_is_gone_keeps_its_images(
    tmp_path: Path, where: Path | str, photos: Path, blip: Counting, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    index, _ = build(where, blip, photos, other)
    shutil.rmtree(other)
    (photos / "0.png").unlink()
    with pytest.raises(SystemExit) as stop:
        _update(index, *_known_places(index))
    assert stop.value.code == 1
    assert "10 images from there stay until openblip index remove" in capsys.readouterr().err
    assert index.catalog.count() == 19
    assert remove(index.catalog, [str(other)]) == 10
    _update(index, *_known_places(index))
    assert capsys.readouterr().err.startswith("openblip: 9 images in")


def test_another_model_is_refused(where: Path | str, photos: Path, blip: Counting) -> None:
    build(where, blip, photos)
    other = make_predictor(seed=1)
    for use in (lambda: create(where, other, "x"), lambda: ImageIndex.open(where, other)):
        with pytest.raises(UserError, match=r"was built with another model \(runs/first/model, fingerprint \w{8}"):
            use()
    trained = make_predictor()
    parameter = next(one for one in trained.model.parameters() if one.ndim == 2)
    with torch.no_grad():  # a step of a fine-tuning
        parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    assert model_fingerprint(trained) != model_fingerprint(make_predictor())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_is_the_same_in_every_dtype(dtype: torch.dtype) -> None:
    assert model_fingerprint(make_predictor(dtype=dtype)) == model_fingerprint(make_predictor())


def test_commands_use_no_more_threads_than_cpus(
    where: Path | str, blip: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(where, blip, "x")
    monkeypatch.setattr(runtime, "usable_cores", lambda: 1)
    before = torch.get_num_threads()
    try:
        for given, expected in (("2", 2), (None, 1)):
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            if given is not None:
                monkeypatch.setenv("OMP_NUM_THREADS", given)
            torch.set_num_threads(2)
            _open(where, None).close()
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, photos: Path, blip: Counting) -> None:
    with pytest.raises(UserError, match="holds other files; name a new folder"):
        create(photos, blip, "x")
    (tmp_path / "I").mkdir()
    (tmp_path / "I" / "writer.lock").touch()  # of a build that was killed at once
    create(tmp_path / "I", blip, "x")
    assert Catalog(SqliteDatabase(tmp_path / "I")).count() == 0


def test_the_date_is_that_of_the_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2019:07:14 08:30:00"
    small.make_image(0).save(tmp_path / "a.jpg", exif=exif)
    assert date_of((tmp_path / "a.jpg").read_bytes(), 0) == "2019-07-14 08:30:00"
    modified = int(1.7e18)
    assert date_of(b"no image", modified).startswith("2023-11-1")
