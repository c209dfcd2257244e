"""Small videos made on the spot with PyAV; tests that need one skip where no decoder is installed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

__all__ = ["SHADES", "frame", "make_video", "needs_av"]

SHADES = tuple(range(10, 250, 12))
"""gray levels of the frames of a usual video, 20 frames"""


def needs_av() -> None:
    """Skip the test (or the file) where PyAV is not installed."""
    pytest.importorskip("av", reason="PyAV is not installed")


def frame(shade: int, size: tuple[int, int] = (48, 32)) -> np.ndarray:
    """uint8 [H, W, 3] of a gray level, with a mark that tells its sides apart."""
    pixels = np.full((size[1], size[0], 3), shade, np.uint8)
    pixels[: size[1] // 4, : size[0] // 4] = (250, 20, 20)
    return pixels


def make_video(
    path: Path,
    frames: Iterable[np.ndarray] = (),
    *,
    codec: str = "",
    times: Sequence[int] = (),
    faststart: bool = False,
) -> Path:
    """A video; one that ends in .mkv or .avi is lossless.

    Args:
        times: of each frame in hundredths of a second, for a variable rate.
        faststart: of an MP4: put what describes the frames before them.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    usual = {".mkv": "ffv1", ".avi": "ffv1", ".webm": "libvpx", ".mp4": "mpeg4", ".mov": "png"}
    codec = codec or usual[path.suffix]
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.pix_fmt = {"png": "rgb24", "ffv1": "bgr0"}.get(codec, "yuv420p")
        given = list(frames) or [frame(shade) for shade in SHADES]
        stream.height, stream.width = given[0].shape[:2]
        if times:
            stream.codec_context.time_base = Fraction(1, 100)
        for number, pixels in enumerate(given):
            video_frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            video_frame.pts = times[number] if times else number
            video_frame.time_base = Fraction(1, 100) if times else Fraction(1, 25)
            container.mux(stream.encode(video_frame))
        container.mux(stream.encode(None))
    return path
