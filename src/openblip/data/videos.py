"""Frames of a video, evenly spread over it, as BLIP reads videos: the first frame of each n-th part.

Frames are chosen by their number and not by their time, so a video of variable rate is read as any other.
torchcodec decodes where it is installed and finds FFmpeg, PyAV (`pip install "openblip[video]"`) elsewhere. A video
that is cut is recognized by the number of frames that it announces, with PyAV also by its duration.

A video is not trusted: its first bytes say what it is, so that it is never opened as a playlist, which would name
other files, and its size and number of frames are bounded before it is decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from openblip.core.errors import UserError, first_line
from openblip.data.formats import readable_bytes
from openblip.data.sample import BrokenSample

__all__ = ["DEFAULT_FRAMES", "MAX_FRAMES", "frame_places", "read_frames", "video_decoder"]

DEFAULT_FRAMES = 8
"""of a video where none are named; BLIP's retrieval takes 8, its question answering 16"""
MAX_FRAMES = 36_000
"""a longer video (20 minutes of 30 frames a second) is refused"""
_MAX_DECODED = 10**11
"""pixels of all frames; more would take minutes to decode"""
_LEAST_READ = 0.9
"""of the duration or the frames that a file announces; one that has less is cut"""
_BEGINNINGS = (
    *(b"\x1a\x45\xdf\xa3", b"RIFF", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"FLV", b"OggS", b"\x47"),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
)
"""of Matroska and WebM, AVI, MPEG, Flash, Ogg, MPEG-TS, Windows Media; MP4's and QuickTime's are at byte 4"""
_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,ogg,asf"
_INSTALL = 'install torchcodec or PyAV (pip install "openblip[video]"), or extract frames'


def frame_places(length: int, count: int) -> list[int]:
    """Numbers of `count` frames among `length`: the first of each part; a short video gives some twice."""
    return [number * length // count for number in range(count)]


def read_frames(
    path: Path, count: int, *, key: str = "", min_side: int | None = None, max_pixels: int
) -> list[Image.Image]:
    """`count` frames of a video as RGB images.

    Args:
        key: names the video in errors.
        min_side: frames may be made smaller, by a half, a quarter or an eighth, as long as their short side keeps
            this many pixels.
        max_pixels: the largest width x height that is decoded.

    Raises:
        BrokenSample: "missing", "empty" (no frame in it), "truncated", "not-an-image", "too-large" or "unreadable".
        UserError: no decoder is installed.
    """
    decode = _DECODERS[video_decoder()]
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise BrokenSample("missing", key, f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise BrokenSample("unreadable", key, f"{path}: {error}") from error
    if not head:
        raise BrokenSample("empty", key, "the file has no bytes")
    if not head.startswith(_BEGINNINGS) and head[4:8] not in _ATOMS:
        raise BrokenSample(
            "not-an-image", key, f"it has the ending of a video, and begins with {readable_bytes(head)}"
        )
    frames: list[Image.Image] = []
    try:
        for frame in decode(path, functools.partial(_places, key=key, count=count, max_pixels=max_pixels)):
            if frame.width * frame.height > max_pixels:
                raise BrokenSample("too-large", key, f"a frame of {frame.width} x {frame.height} pixels")
            frames.append(_smaller(frame, min_side))
    except (BrokenSample, UserError) as known:
        if isinstance(known, BrokenSample):
            known.key = key
        raise
    except MemoryError as error:
        raise BrokenSample("too-large", key, "its frames do not fit in memory") from error
    except Exception as error:  # FFmpeg's errors have many classes
        text = getattr(error, "strerror", None) or first_line(error)
        cut = isinstance(error, EOFError) or any(word in text.lower() for word in ("end of file", "invalid data"))
        raise BrokenSample("truncated" if cut else "unreadable", key, text) from error
    if len(frames) < count:
        raise BrokenSample("truncated", key, f"{len(frames)} of {count} frames can be decoded")
    return frames


_Places = Callable[[int, int, int], Sequence[int]]
"""Width, height and number of frames to the numbers of those that are read."""


def _places(width: int, height: int, length: int, *, key: str, count: int, max_pixels: int) -> list[int]:
    if length < 1:
        raise BrokenSample("empty", key, "there is no frame in it")
    if width * height > max_pixels:
        raise BrokenSample("too-large", key, f"{width} x {height} pixels, more than {max_pixels:,}")
    if length > MAX_FRAMES or width * height * length > _MAX_DECODED:
        limit = f"at most {MAX_FRAMES:,} frames and {_MAX_DECODED:.0e} pixels are read"
        raise BrokenSample("too-large", key, f"{length:,} frames of {width} x {height} pixels; {limit}")
    return frame_places(length, count)


def _smaller(image: Image.Image, min_side: int | None) -> Image.Image:
    """As a large JPEG is decoded, see `images`."""
    if min_side is None:
        return image
    scale = next((scale for scale in (8, 4, 2) if min(image.size) // scale >= min_side), 1)
    return image.reduce(scale) if scale > 1 else image


@functools.cache
def video_decoder() -> str:
    """Which library decodes videos here: "torchcodec" or "av".

    Raises:
        UserError: none is installed.
    """
    try:
        import torchcodec.decoders  # noqa: F401
    except Exception:  # noqa: BLE001  not installed, or without a FFmpeg that it can use
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise UserError(f"videos need a decoder; {_INSTALL}") from error
        return "av"
    return "torchcodec"


def _by_torchcodec(path: Path, choose: _Places) -> Iterator[Image.Image]:
    from torchcodec.decoders import VideoDecoder

    with open(path, "rb") as file:  # no other protocol, whatever the name
        decoder = VideoDecoder(file, dimension_order="NHWC", num_ffmpeg_threads=1)
        about = decoder.metadata
        places = choose(about.width or 0, about.height or 0, len(decoder))
        announced = about.num_frames_from_header or 0
        if len(decoder) < _LEAST_READ * announced:  # the duration of WebM is not told here
            raise BrokenSample("truncated", "", f"{len(decoder)} of {announced} frames are there")
        for place in places:
            yield Image.fromarray(decoder.get_frame_at(place).data.numpy())


def _opened(file: BinaryIO) -> Any:
    """A file as PyAV reads it: of a container of videos, and through no other protocol."""
    import av

    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    return av.open(file, options=options, metadata_errors="replace")


def _by_av(path: Path, choose: _Places) -> Iterator[Image.Image]:
    with open(path, "rb") as file:
        with _opened(file) as container:
            if not container.streams.video:
                raise BrokenSample("empty", "", "there is no video in it")
            length = _count_frames(container)
            stream = container.streams.video[0]
            places = choose(stream.codec_context.width, stream.codec_context.height, length)
        file.seek(0)
        # A second time: not every format can be wound back.
        with _opened(file) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # videos are decoded side by side by the loader's workers
            wanted = iter(places)
            place = next(wanted)
            for number, frame in enumerate(container.decode(stream)):
                while number == place:
                    image = frame.to_image()
                    yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
                    place = next(wanted, -1)
                if place < 0:
                    break


def _count_frames(container: Any) -> int:
    """Encoded frames of the first video of an open file, which is read whole and not decoded.

    Raises:
        BrokenSample: "truncated", it announces more.
    """
    stream = container.streams.video[0]
    length, end = 0, 0.0
    for packet in container.demux():
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index and packet.size and not packet.is_discard:
            length += 1
    announced, seconds = stream.frames, (container.duration or 0) / 1_000_000
    if length and length < _LEAST_READ * announced:
        raise BrokenSample("truncated", "", f"{length} of {announced} frames are there")
    begin = (container.start_time or 0) / 1_000_000
    if length and end - begin < _LEAST_READ * seconds:
        raise BrokenSample("truncated", "", f"it ends after {end - begin:.1f} of {seconds:.1f} seconds")
    return length


_DECODERS: dict[str, Callable[[Path, _Places], Iterator[Image.Image]]] = {
    "torchcodec": _by_torchcodec,
    "av": _by_av,
}
