"""Videos: which frames are read, whatever the container and the rate, and what becomes of those that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import miniature
import numpy as np
import pytest
from PIL import Image
from videos import SHADES, frame, make_video, needs_av

from openblip.core.errors import UserError
from openblip.core.places import DATA_ROOT
from openblip.data import videos
from openblip.data.images import MAX_PIXELS, decode_images
from openblip.data.sample import BrokenSample, Sample
from openblip.data.sources import Source, open_source
from openblip.data.sources.questions import asked_of, open_questions
from openblip.data.stream import Loader
from openblip.data.transform_config import ImageTransformConfig
from openblip.data.transforms import ImageTransform, evaluation_transform
from openblip.data.videos import frame_places, read_frames

needs_av()
NOISE = [np.random.default_rng(n).integers(0, 256, (64, 64, 3), dtype=np.uint8) for n in range(40)]
LOSSY = 4
"""gray levels that a codec may change a plain image by"""


def shades(path: Path, count: int = 4) -> list[int]:
    """The gray level of each frame that is read."""
    return [int(np.median(np.asarray(image))) for image in read_frames(path, count, max_pixels=MAX_PIXELS)]


def refused(path: Path, **options: int) -> BrokenSample:
    with pytest.raises(BrokenSample) as found:
        read_frames(path, 4, key="k", **{"max_pixels": MAX_PIXELS, **options})
    assert found.value.key == "k"
    return found.value


# ---- which frames ----


def test_frames_are_the_first_of_each_part() -> None:
    assert frame_places(300, 4) == [0, 75, 150, 225]
    assert frame_places(20, 8) == [int(place) for place in np.arange(0, 20, 20 / 8)]
    assert frame_places(3, 8) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert frame_places(1, 3) == [0, 0, 0]


@pytest.mark.parametrize("ending", ["mkv", "avi", "mov", "mp4", "webm"])
def test_they_are_read_from_every_container(ending: str, tmp_path: Path) -> None:
    found = shades(make_video(tmp_path / f"a.{ending}"))
    lossless = ending in ("mkv", "avi", "mov")
    assert found == pytest.approx([SHADES[place] for place in (0, 5, 10, 15)], abs=0 if lossless else LOSSY)


@pytest.mark.parametrize("ending", ["mkv", "mp4", "webm"])
def test_a_video_of_variable_rate_is_read_by_the_number_of_its_frames(ending: str, tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 100, 101, 102, 103, 104, 105, 106, 300, 301, 302, 303, 304, 305, 306, 307, 900]
    path = make_video(tmp_path / f"a.{ending}", times=times)
    assert shades(path) == pytest.approx([SHADES[place] for place in (0, 5, 10, 15)], abs=LOSSY)


def test_a_video_of_one_frame_is_its_image(tmp_path: Path) -> None:
    pixels = NOISE[0]
    frames = read_frames(make_video(tmp_path / "a.mkv", [pixels]), 3, max_pixels=MAX_PIXELS)
    assert all(np.array_equal(np.asarray(image), pixels) for image in frames)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    still = decode_images(Sample("a", (tmp_path / "a.png",), frames=3))
    assert [np.asarray(image).tolist() for image in still] == [pixels.tolist()] * 3


def test_large_frames_may_be_made_smaller(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", [frame(90, (640, 480))])
    (image,) = read_frames(path, 1, min_side=100, max_pixels=MAX_PIXELS)
    assert image.size == (160, 120)


def test_a_video_that_was_turned_is_upright(tmp_path: Path) -> None:
    """The matrix in an MP4's track header turns it by 90 degrees clockwise, as telephones write it."""
    path = make_video(tmp_path / "a.mp4", [frame(120)] * 2)
    plain = np.asarray(read_frames(path, 1, max_pixels=MAX_PIXELS)[0])
    numbers = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = (0, 0x10000, 0, 0x100000000 - 0x10000, 0, 0, 0, 0, 0x40000000)
    unit, quarter = (b"".join(one.to_bytes(4, "big") for one in matrix) for matrix in (numbers, turned))
    before, header, rest = path.read_bytes().partition(b"tkhd")
    path.write_bytes(before + header + rest.replace(unit, quarter, 1))
    upright = np.asarray(read_frames(path, 1, max_pixels=MAX_PIXELS)[0])
    assert upright.shape == (48, 32, 3)
    assert np.abs(upright.astype(int) - np.rot90(plain, -1)).max() <= LOSSY


# ---- what cannot be read ----


@pytest.mark.parametrize(("ending", "faststart"), [("mp4", False), ("mp4", True), ("avi", False)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_truncated_video_is_told(ending: str, faststart: bool, share: float, tmp_path: Path) -> None:
    whole = make_video(tmp_path / f"a.{ending}", NOISE, faststart=faststart)
    assert len(read_frames(whole, 4, max_pixels=MAX_PIXELS)) == 4
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(data[: int(share * len(data))])
    assert refused(cut).cause == "truncated"


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_matroska_tells_its_duration_alone(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "video_decoder", lambda: "av")  # torchcodec does not tell that of the file
    data = make_video(tmp_path / f"a.{ending}", NOISE).read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(data[: len(data) // 2])
    broken = refused(cut)
    assert broken.cause == "truncated"
    assert "of 1.6 seconds" in broken.detail


def test_files_without_frames(tmp_path: Path) -> None:
    import av

    (tmp_path / "empty.mp4").touch()
    assert refused(tmp_path / "empty.mp4").cause == "empty"
    assert refused(tmp_path / "none.mp4").cause == "missing"
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux([*stream.encode(sound), *stream.encode(None)])
    assert refused(tmp_path / "sound.mp4").cause in ("empty", "unreadable")  # torchcodec only says that it cannot
    with av.open(str(tmp_path / "header.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    assert refused(tmp_path / "header.mp4").cause in ("empty", "unreadable")


def test_a_playlist_that_is_called_a_video_is_not_opened(tmp_path: Path) -> None:
    """FFmpeg would read the files that it names."""
    make_video(tmp_path / "other.mkv")
    for text in ("#EXTM3U\n#EXTINF:1,\nother.mkv\n", "ffconcat version 1.0\nfile other.mkv\n"):
        (tmp_path / "a.mp4").write_text(text)
        broken = refused(tmp_path / "a.mp4")
        assert broken.cause == "not-an-image"
        assert "it has the ending of a video, and begins with" in broken.detail


def test_pixels_and_frames_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4")
    assert refused(path, max_pixels=1000).cause == "too-large"
    monkeypatch.setattr(videos, "MAX_FRAMES", 19)
    assert "20 frames of 48 x 32 pixels; at most 19 frames" in refused(path).detail
    monkeypatch.setattr(videos, "MAX_FRAMES", 20)
    assert len(shades(path)) == 4
    monkeypatch.setattr(videos, "_MAX_DECODED", 48 * 32 * 19)
    assert refused(path).cause == "too-large"


def test_damage_within_is_no_crash(tmp_path: Path) -> None:
    data = bytearray(make_video(tmp_path / "a.mp4", NOISE).read_bytes())
    random = np.random.default_rng(0)
    for number in range(30):
        spoiled = bytearray(data)
        for place in random.integers(0, len(data), 40):
            spoiled[place] = int(random.integers(256))
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(spoiled)
        try:
            assert len(read_frames(path, 4, max_pixels=MAX_PIXELS)) == 4
        except BrokenSample as broken:
            assert broken.cause in ("truncated", "unreadable", "empty", "too-large", "not-an-image")  # noqa: PT017


def test_without_a_decoder_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    videos.video_decoder.cache_clear()
    with pytest.raises(UserError, match=r'install torchcodec or PyAV \(pip install "openblip\[video\]"\)'):
        read_frames(tmp_path / "a.mp4", 4, max_pixels=MAX_PIXELS)
    videos.video_decoder.cache_clear()


# ---- sources ----


def batch_shape(source: Source, size: int = 16) -> tuple[int, ...]:
    loader = Loader(source, evaluation_transform(size), 2, shuffle=False, drop_last=False, text_mode="all")
    return tuple(next(iter(loader)).images.shape)


def test_a_captions_file_of_videos_opens_like_one_of_images(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.webm"):
        make_video(tmp_path / name)
    rows = [{"video": name, "caption": f"the caption of {name}"} for name in ("a.mp4", "b.webm")]
    file = miniature.write(tmp_path / "captions.jsonl", rows, lines=True)
    source = open_source(str(file))
    assert (len(source), source.frames, source[1].texts) == (2, 8, ("the caption of b.webm",))
    assert batch_shape(source) == (2, 8, 3, 16, 16)
    assert batch_shape(open_source(f"{file}?frames=5")) == (2, 5, 3, 16, 16)
    assert batch_shape(open_source(f"{file}?frames=1")) == (2, 3, 16, 16)
    assert open_source(f"{file}?frames=5&pairs=true").frames == 5


def test_a_folder_of_videos_with_texts_beside_them(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a square\n")
    source = open_source(str(tmp_path))
    assert (len(source), source.frames, source[0].texts) == (1, 8, ("a square",))
    miniature.image(tmp_path / "b.jpg")
    assert (len(open_source(str(tmp_path))), open_source(str(tmp_path)).frames) == (1, 0), "videos are left out"
    both = open_source(f"{tmp_path}?frames=2")
    assert len(both) == 2
    loader = Loader(both, evaluation_transform(16), 2, shuffle=False, drop_last=False, text_mode="none")
    assert tuple(next(iter(loader)).images.shape) == (2, 2, 3, 16, 16)


def test_sources_of_different_numbers_of_frames_are_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "videos" / "a.mp4")
    miniature.image(tmp_path / "images" / "b.jpg")
    sources = [open_source(str(tmp_path / name)) for name in ("videos", "images")]
    with pytest.raises(UserError, match=r"8 of .*videos and 0 of .*images, 0 are images.* the same frames=8"):
        Loader(sources, evaluation_transform(16), 2)
    with pytest.raises(UserError, match="must be 1 or more, not -1"):
        open_source(f"{tmp_path}/videos?frames=-1")
    with pytest.raises(UserError, match="and of samples with one image"):
        open_source(f"{tmp_path}/videos?frames=2&num_images=2")
    miniature.tars(tmp_path)
    with pytest.raises(UserError, match='does not read the setting "frames"'):
        open_source(f"{tmp_path}/cc3m?frames=2")


def test_broken_videos_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    for number in range(6):
        make_video(tmp_path / f"{number}.mp4")
    (tmp_path / "2.mp4").write_bytes((tmp_path / "2.mp4").read_bytes()[:200])
    (tmp_path / "4.mp4").write_bytes(b"")
    log = tmp_path / "skipped.jsonl"
    transform = evaluation_transform(16)
    source = open_source(str(tmp_path))
    options = {"shuffle": False, "drop_last": False, "text_mode": "none", "skip_log": log}
    replaced = Loader(source, transform, 6, **options)  # type: ignore[arg-type]
    (batch,) = replaced
    assert len(batch) == 6
    assert replaced.skipped.counts == {"truncated": 1, "empty": 1}
    listed = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["key"], one["cause"]) for one in listed] == [("2.mp4", "truncated"), ("4.mp4", "empty")]
    (batch,) = Loader(source, transform, 6, leave_out=True, **options)  # type: ignore[arg-type]
    assert batch.keys == ["0.mp4", "1.mp4", "3.mp4", "5.mp4"]


def test_a_crop_is_one_for_all_frames(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mkv", [NOISE[0]] * 4)
    transform = ImageTransform(ImageTransformConfig(image_size=16))
    (batch,) = Loader(open_source(f"{tmp_path}?frames=4"), transform, 1, text_mode="none")
    assert all(bool((batch.images[0, k] == batch.images[0, 0]).all()) for k in range(4))


def test_published_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (miniature.msrvtt, miniature.msrvttqa, miniature.msvdqa):
        make(tmp_path)
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    test = open_source("msrvtt:test")
    assert (test.frames, [Path(str(test[i].image)).name for i in (0, 1)]) == (8, ["video9770.mp4", "video7020.mp4"])
    assert test[0].texts == ("the caption of 9770",)
    train = open_source("msrvtt:train")
    assert (len(train), train[0].texts) == (1, ("caption 0 of 0", "caption 1 of 0"))
    questions = open_questions("msrvttqa:test")
    assert questions.frames == 16
    asked = asked_of(questions[0].meta)
    assert (asked.rule, [one.about.kind for one in asked.given]) == ("exact", ["what", "who"])
    assert open_questions("msrvttqa:test?frames=4").frames == 4
    msvd = open_questions("msvdqa:test")[0]
    assert (Path(str(msvd.image)).suffix, msvd.frames, msvd.texts) == (".avi", 16, ("what is a squirrel eating",))
    (tmp_path / "msrvttqa" / "annotations" / "qa_test.json").unlink()
    rows = [{"answer": "run", "category_id": 0, "id": 5, "question": "what is it", "video_id": 7020}]
    miniature.write(tmp_path / "msrvttqa" / "test_qa.json", rows)
    (first,) = [open_questions("msrvttqa:test")[0]]
    assert Path(str(first.image)).name == "video7020.mp4"
