"""Broken samples are replaced, counted and listed once; what cannot continue stops with a sentence."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from loaders import PLAIN, Failing, NoisyImages, keys, make, rows
from make_data import encoded, make_image, number_of
from PIL import Image

from openblip.core.errors import UserError
from openblip.core.files import read_jsonl
from openblip.data import stream
from openblip.data.images import decode_image
from openblip.data.sample import BrokenSample, SkipLog
from openblip.data.sources import open_source


@pytest.fixture
def broken_folder(image_folder: Path, tmp_path: Path) -> Path:
    """A captions file of ten images of which 1 to 5 are broken, each in another way, and one row is no JSON."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    (image_folder / "1.png").unlink()
    (image_folder / "2.png").write_bytes(encoded(noise, "JPEG")[:-200])
    (image_folder / "3.png").write_bytes(b"")
    (image_folder / "4.png").write_bytes(b"<html>not found</html>")
    (image_folder / "5.png").write_bytes(encoded(make_image(5, (300, 200))))
    path = tmp_path / "captions.jsonl"
    lines = [json.dumps({"image": f"images/{n}.png", "caption": f"image {n}"}) for n in range(10)]
    path.write_text("\n".join([*lines, '{"image": "images/']) + "\n")
    return path


CAUSES = {"missing": 1, "truncated": 1, "empty": 1, "not-an-image": 1, "too-large": 1, "bad-row": 1}
LISTED = {
    ("missing", "images/1.png"),
    ("truncated", "images/2.png"),
    ("empty", "images/3.png"),
    ("not-an-image", "images/4.png"),
    ("too-large", "images/5.png"),
    ("bad-row", "captions.jsonl line 11"),
}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_samples_are_replaced_counted_and_listed_once(
    broken_folder: Path, tmp_path: Path, num_workers: int
) -> None:
    log = tmp_path / "run" / "skipped.jsonl"
    source = open_source(str(broken_folder))
    loader = make(source, 5, transform=PLAIN, max_pixels=50_000, skip_log=log, num_workers=num_workers)
    for epoch in range(1, 4):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [5, 5]
        assert set(keys(batches)) <= {f"images/{n}.png" for n in (0, 6, 7, 8, 9)}
        for batch in batches:  # a substitute brings its own text
            assert [f"images/{text.split()[1]}.png" for text in batch.texts] == batch.keys
        assert loader.skipped.counts == {cause: epoch * count for cause, count in CAUSES.items()}
    loader.close()
    records = read_jsonl(log)
    assert {(record["cause"], record["key"]) for record in records} == LISTED
    assert len(records) == 6
    assert all(record["detail"] and record["epoch"] == 0 for record in records)
    assert {record["source"] for record in records} == {str(broken_folder)}
    assert loader.skipped.summary().startswith("18 broken samples skipped (3 ")


def test_ranks_share_one_list(broken_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "skipped.jsonl"
    ranks = [
        make(
            open_source(str(broken_folder)),
            2,
            transform=PLAIN,
            max_pixels=50_000,
            skip_log=log,
            rank=rank,
            world_size=2,
            drop_last=False,
        )
        for rank in range(2)
    ]
    for _ in range(3):
        for step in zip(*ranks, strict=True):
            assert len(step) == 2
    assert {(record["cause"], record["key"]) for record in read_jsonl(log)} == LISTED
    assert len(read_jsonl(log)) == 6


def test_a_resumed_run_lists_nothing_twice(broken_folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "skipped.jsonl"
    loader = make(open_source(str(broken_folder)), 5, max_pixels=50_000, skip_log=log)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    list(batches)  # met, listed, and then the process was killed
    resumed = make(open_source(str(broken_folder)), 5, max_pixels=50_000, skip_log=log)
    resumed.load_state_dict(state)
    list(resumed)
    assert resumed.skipped.counts == CAUSES
    assert len(read_jsonl(log)) == 6


def test_substitutes_do_not_depend_on_workers(broken_folder: Path) -> None:
    alone = make(open_source(str(broken_folder)), 5)
    shared = make(open_source(str(broken_folder)), 5, num_workers=2)
    assert rows(alone) == rows(shared)
    shared.close()


def test_a_cut_line_of_the_list_does_not_matter(tmp_path: Path) -> None:
    log = tmp_path / "skipped.jsonl"
    first = SkipLog(log)
    first.add(BrokenSample("missing", "a", "no file"), source="s")
    with open(log, "a") as file:
        file.write('{"key": "b", "cau')
    again = SkipLog(log)
    for key in "ab":
        again.add(BrokenSample("missing", key, "no file"), source="s")
    again.add(BrokenSample("missing", "a", "no file"), source="another")
    assert [(record["source"], record["key"]) for record in read_jsonl(log)] == [
        ("s", "a"),
        ("s", "b"),
        ("another", "a"),
    ]
    assert again.counts == {"missing": 3}


def test_samples_without_words_are_skipped(image_folder: Path) -> None:
    for number, text in ((0, "a word"), (1, ""), (2, " ... "), (3, "two words")):
        (image_folder / f"{number}.txt").write_text(text)
    loader = make(open_source(str(image_folder)), 10)
    assert {text for batch in loader for text in batch.texts} == {"a word", "two words"}
    assert loader.skipped.counts == {"no-text": 8}
    assert [broken.cause for broken in loader.skipped.examples["no-text"]] == ["no-text"] * 3


def test_cmyk_and_sixteen_bits_are_read_and_not_skipped(tmp_path: Path) -> None:
    files = {
        "cmyk.jpg": encoded(make_image(200).convert("CMYK"), "JPEG", quality=95),
        "cmyk.tif": encoded(make_image(200).convert("CMYK"), "TIFF"),
        "grey16.png": encoded(Image.fromarray(np.full((30, 40), 200 << 8, np.uint16))),
        "grey16.tif": encoded(Image.fromarray(np.full((30, 40), 200 << 8, np.uint16)), "TIFF"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).with_suffix(".txt").write_text("a caption")
    loader = make(open_source(str(tmp_path)), 4, transform=PLAIN)
    (batch,) = loader
    assert sorted(batch.keys) == sorted(files)
    assert loader.skipped.total == 0
    assert all(abs(number_of(pixels.numpy()) - 200) <= 4 for pixels in batch.images)


def test_sixteen_bit_color() -> None:
    raw = np.zeros((2, 2, 3), "<u2")
    raw[:] = (0xC8FF, 0x3700, 0x0700)
    ppm = b"P6 2 2 65535\n" + raw.astype(">u2").tobytes()
    assert np.allclose(np.asarray(decode_image(ppm)), (200, 55, 7), atol=1)


# ---- what cannot continue ----


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_source_that_is_broken_as_a_whole_stops(num_workers: int) -> None:
    loader = make([NoisyImages(50), Failing()], 10, max_substitutes=20, num_workers=num_workers)
    with pytest.raises(UserError, match=r"data of gone seem broken as a whole: 21 of 21 .*missing .*\.jpg"):
        list(loader)
    loader.close()


class Ending(NoisyImages):
    """Kills its own process at one sample, as the kernel does when memory is short."""

    def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
        if index == 9 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.timeout(60)
def test_a_dead_worker_is_told_and_does_not_hang() -> None:
    loader = make(Ending(20), 4, shuffle=False, num_workers=2)
    with pytest.raises(UserError, match=r"decodes images has ended \(.*\), mostly for lack of memory.*num_workers"):
        list(loader)
    loader.close()


@pytest.mark.parametrize("ended", [True, False])
def test_a_broken_connection_is_told_as_the_end_of_its_worker(ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a worker that was handing a tensor over is known moments after its connection broke."""

    def broken(*_: object, **__: object) -> Iterator[object]:
        if ended:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        raise ConnectionResetError("reset by peer")
        yield

    def end_is_known(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(stream, "DataLoader", broken)
    monkeypatch.setattr(stream, "_END_KNOWN_AFTER", 30.0 if ended else 0.0)
    before = signal.signal(signal.SIGALRM, end_is_known)
    try:
        with pytest.raises(
            UserError if ended else ConnectionResetError, match="pid 7" if ended else "reset by peer"
        ):
            list(make(NoisyImages(8), 4, num_workers=1))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Wrong(NoisyImages):
    """Has a mistake of ours in it."""

    def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
        raise RuntimeError("a mistake in the source")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_our_mistakes_keep_their_name(num_workers: int) -> None:
    loader = make(Wrong(8), 4, num_workers=num_workers)
    with pytest.raises(RuntimeError, match="a mistake in the source") as caught:
        list(loader)
    assert not isinstance(caught.value, UserError)
    loader.close()


def test_workers_leave_ctrl_c_to_the_loop() -> None:
    loader = make(NoisyImages(40), 4, num_workers=2, prefetch=1)
    batches = iter(loader)
    seen = [next(batches), next(batches)]  # one of each worker: both have begun and ignore the signal
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
    seen += list(batches)
    assert sorted(map(int, keys(seen))) == list(range(40))
    loader.close()


# ---- tars, from end to end ----


def test_a_cut_tar_and_a_broken_image_in_it(tmp_path: Path, write_tar: object) -> None:
    whole = write_tar("a/0.tar", 0, 8, bad={3: b""})  # type: ignore[operator]
    cut = write_tar("a/1.tar", 8, 8)  # type: ignore[operator]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    log = tmp_path / "skipped.jsonl"
    source = open_source(str(whole.parent))
    loader = make(source, 4, transform=PLAIN, skip_log=log, drop_last=False)
    numbers = {number_of(pixels.numpy()) for batch in loader for pixels in batch.images}
    assert numbers <= set(range(len(source))) - {3}
    assert {(record["cause"], record["key"]) for record in read_jsonl(log)} == {
        ("empty", "0/000000003"),
        ("truncated", "1.tar"),
    }


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert isinstance(file, io.BufferedReader)
            yield info.name, file.read()


def test_our_reader_of_tars_finds_what_pythons_does(write_tar: object) -> None:
    path = write_tar("a.tar", 0, 5)  # type: ignore[operator]
    theirs = {name.removesuffix(".png"): data for name, data in members(path) if name.endswith(".png")}
    source = open_source(str(path))
    assert {source[i].key.removeprefix("a/"): source[i].image for i in range(5)} == theirs
