"""Which image files can be read here, and what is reported of the others, by their endings or their first bytes.

HEIC and JPEG XL are read where their plugins of Pillow are installed, AVIF and JPEG 2000 where Pillow has them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass

from PIL import Image, features

from openblip.core.kinds import looks_like

__all__ = [
    "IMAGE_SUFFIXES",
    "LEFT_OUT",
    "VIDEO_SUFFIXES",
    "LeftOutKind",
    "ending_of",
    "formats",
    "instead_of_image",
    "readable_bytes",
]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "MPO", "AVIF", "JPEG2000", "PPM", "HEIF", "JXL")
_ALWAYS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
_BY_PLUGIN = {
    "pillow_heif": (
        "HEIC image",
        (".heic", ".heif", ".hif"),
        "install pillow-heif (pip install pillow-heif), or convert to JPEG",
    ),
    "pillow_jxl": (
        "JPEG XL image",
        (".jxl",),
        "install pillow-jxl-plugin (pip install pillow-jxl-plugin), or convert to JPEG",
    ),
}
_BY_BUILD = {
    "avif": ("AVIF image", (".avif", ".avifs"), "install a Pillow that reads AVIF, or convert to JPEG"),
    "jpg_2000": (
        "JPEG 2000 image",
        (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
        "install a Pillow that reads JPEG 2000, or convert to JPEG",
    ),
}
_CONVERT = "convert to PNG or JPEG"
_OTHER_IMAGES = (
    ("raw photograph", (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), _CONVERT),
    ("Photoshop image", (".psd",), _CONVERT),
    ("vector drawing", (".svg", ".svgz", ".eps", ".ai"), _CONVERT),
    ("medical image", (".dcm",), _CONVERT),
    (
        "image of a kind that is not read",
        (".tga", ".ico", ".exr", ".hdr", ".xcf", ".qoi", ".dds", ".jxr"),
        _CONVERT,
    ),
)
VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".3gp", ".wmv", ".flv", ".mts"),
)
"""Endings of videos, in lower case; they are left out where no frames are read."""
_OTHER_FILES = (
    ("video", VIDEO_SUFFIXES, "extract frames"),
    ("document", (".pdf", ".djvu", ".ps"), "save the pages as images"),
    ("archive", (".zip", ".rar", ".7z", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"), "unpack"),
)


@dataclass(frozen=True)
class LeftOutKind:
    """A kind of file that is not read here."""

    what: str
    """one of them, without an article"""
    advice: str
    image: bool
    """whether it is an image all the same"""

    def __str__(self) -> str:
        return f"{'an' if self.what[0] in 'aeiouA' else 'a'} {self.what}; {self.advice}"

    def of(self, count: int) -> str:
        """As the end of a sentence about so many."""
        return str(self) if count == 1 else f"{self.what}s; {self.advice}"


def _here() -> tuple[frozenset[str], dict[str, LeftOutKind]]:
    """Endings of images that can be read, and what the other files are."""
    readable, others = set(_ALWAYS), dict[str, LeftOutKind]()
    there = {name: importlib.util.find_spec(name) is not None for name in _BY_PLUGIN}
    there |= {name: bool(features.check(name)) for name in _BY_BUILD}
    for name, (what, endings, advice) in {**_BY_PLUGIN, **_BY_BUILD}.items():
        if there[name]:
            readable |= set(endings)
        else:
            others |= dict.fromkeys(endings, LeftOutKind(what, advice, image=True))
    for kinds, image in ((_OTHER_IMAGES, True), (_OTHER_FILES, False)):
        for what, endings, advice in kinds:
            others |= dict.fromkeys(endings, LeftOutKind(what, advice, image))
    return frozenset(readable), others


IMAGE_SUFFIXES, LEFT_OUT = _here()
"""Endings in lower case: of the files that are taken for images in folders and tars, and of media that are not."""
_DOUBLE = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, "" for none; that of a packed tar is whole."""
    lowered = name.lower()
    if double := next((ending for ending in _DOUBLE if lowered.endswith(ending)), ""):
        return double
    place = lowered.rfind(".")
    return lowered[place:] if place > lowered.rfind("/") + 1 else ""


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are opened; no vector formats, which would start other programs."""
    Image.init()
    for name in _BY_PLUGIN:
        if importlib.util.find_spec(name) is not None:
            plugin = importlib.import_module(name)  # pillow_jxl registers itself
            getattr(plugin, "register_heif_opener", lambda: None)()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


_BRANDS = {
    ".heic": (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"),
    ".avif": (b"avif", b"avis"),
}


def instead_of_image(head: bytes) -> str:
    """What a file that no format of Pillow knows is by its first bytes, as the end of a sentence about it."""
    if head[4:8] == b"ftyp":  # ISO base media: HEIC, AVIF, MP4, QuickTime
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(int.from_bytes(head[:4], "big"), 64), 4))]
        for brand in brands:
            for ending, names in _BRANDS.items():
                if brand in names:
                    return _one_of(ending)
        return _one_of(".mp4")
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return _one_of(".jxl")
    for mark, ending in ((b"8BPS", ".psd"), (b"%!PS", ".eps"), (b"%PDF", ".pdf")):
        if head.startswith(mark):
            return _one_of(ending)
    if b"<svg" in head[:512]:
        return _one_of(".svg")
    if found := looks_like(head):
        return found
    return f"begins with {readable_bytes(head[:16])}"


def readable_bytes(head: bytes) -> str:
    """Bytes for a message: as text where they are some, else as numbers."""
    text = head.decode("ascii", "replace").strip()
    return f'"{text}"' if text.isascii() and text.isprintable() and text else f"the bytes {head.hex(' ')}"


def _one_of(ending: str) -> str:
    return f"is {LEFT_OUT[ending]}" if ending in LEFT_OUT else f"is damaged: it begins as {ending[1:].upper()} does"
