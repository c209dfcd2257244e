"""What people's data rightly hold is read: no check on what is wrong with files may refuse these."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from loaders import PLAIN, make
from make_data import encoded, make_image, number_of
from PIL import Image, ImageCms

from openblip.data.sources.open import open_source

TEXTS = (
    "two lines\nof one caption",
    "a dog \U0001f415 and a family \U0001f469\u200d\U0001f469\u200d\U0001f467",
    'a "quoted" word, a comma; a | and a\ttab',
    "\u732b\u5728\u684c\u5b50\u4e0a",
    "line\u2028separator",
    " ".join(["very"] * 20_000) + " long",
    "NaN is a bread",
    "None of them",
)
NAMES = (
    "plain.png",
    "with blanks.png",
    "#hash&?question=1.png",
    "100%.png",
    "caf\u00e9 \U0001f415.png",
    "[brackets]{braces}.png",
    "a'b.png",
    "x" * 200 + ".png",
)


def texts_of(spec: str) -> dict[str, tuple[str, ...]]:
    source = open_source(spec)
    assert not source.bad_rows
    samples = [source[index] for index in range(len(source))]
    return {Path(str(sample.image)).name: sample.texts for sample in samples}


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(encoded(make_image(number)))
    return {name: (text,) for name, text in zip(NAMES, TEXTS, strict=True)}


def test_texts_and_names_in_captions_files(tmp_path: Path, wanted: dict[str, tuple[str, ...]]) -> None:
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows(zip(NAMES, TEXTS, strict=True))
    rows_of_json = [{"image": name, "caption": text} for name, text in zip(NAMES, TEXTS, strict=True)]
    for ascii_only in (True, False):
        lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows_of_json)
        (tmp_path / f"lines-{ascii_only}.jsonl").write_text(lines, encoding="utf-8", newline="")
        whole = json.dumps(rows_of_json, ensure_ascii=ascii_only, indent=1)
        (tmp_path / f"list-{ascii_only}.json").write_text(whole, encoding="utf-8", newline="")
    for file in sorted(path for path in tmp_path.iterdir() if path.suffix in (".csv", ".json", ".jsonl")):
        assert texts_of(str(file)) == wanted, file.name


def test_texts_and_names_beside_images(tmp_path: Path, wanted: dict[str, tuple[str, ...]]) -> None:
    one_line = {name: texts for name, texts in wanted.items() if "\n" not in texts[0]}
    for name, texts in one_line.items():
        (tmp_path / name).with_suffix(".txt").write_text(texts[0], encoding="utf-8", newline="")
    found = texts_of(str(tmp_path))
    assert {name: found[name] for name in one_line} == one_line
    assert found["plain.png"] == ()


def test_compound_names_in_tars(tmp_path: Path) -> None:
    """webdataset's rule: what follows the first dot of a base name says what a file is to its sample."""
    members = {
        "a/0001.jpg": encoded(make_image(1), "JPEG", quality=95),
        "a/0001.txt": b"one",
        "a/0001.cls": b"7",
        "a/0001.seg.png": encoded(make_image(50)),
        "./b/0002.png": encoded(make_image(2)),
        "./b/0002.json": json.dumps({"caption": "two"}).encode(),
        "./b/0002.txt": b"two",
    }
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    loader = make(open_source(str(tmp_path / "x.tar")), 2, transform=PLAIN, shuffle=False)
    (batch,) = loader
    assert sorted(batch.texts) == ["one", "two"]
    assert sorted(number_of(pixels.numpy()) for pixels in batch.images) == pytest.approx([1, 2], abs=3)


def test_images_of_every_make(tmp_path: Path) -> None:
    grey = Image.new("RGB", (64, 48), (200, 200, 200))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    files = {
        "icc.jpg": encoded(grey, "JPEG", icc_profile=profile, quality=95),
        "exif.jpg": encoded(grey, "JPEG", exif=exif, quality=95),
        "cmyk.jpg": encoded(grey.convert("CMYK"), "JPEG", quality=95),
        "progressive.jpg": encoded(grey, "JPEG", progressive=True, quality=95),
        "grey16.png": encoded(Image.fromarray(np.full((30, 40), 200 << 8, np.uint16))),
        "one.png": encoded(Image.new("RGB", (1, 1), (200, 200, 200))),
        "wide.png": encoded(Image.new("RGB", (60_000, 2), (200, 200, 200))),
        "palette.gif": encoded(grey.convert("P"), "GIF"),
        "moving.gif": encoded(grey, "GIF", save_all=True, append_images=[grey.convert("L").convert("RGB")]),
        "moving.webp": encoded(grey, "WEBP", save_all=True, append_images=[grey], lossless=True),
        "transparent.png": encoded(Image.new("RGBA", (8, 8), (200, 200, 200, 255))),
        "bits.png": encoded(Image.new("1", (8, 8), 1)),
        "UPPER.JPEG": encoded(grey, "JPEG", quality=95),
        "jpeg-called.png": encoded(grey, "JPEG", quality=95),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).with_suffix(".txt").write_text("a caption")
    loader = make(open_source(str(tmp_path)), len(files), transform=PLAIN)
    (batch,) = loader
    assert loader.skipped.total == 0
    assert sorted(batch.keys) == sorted(files)
    for key, pixels in zip(batch.keys, batch.images, strict=True):
        wanted = 255 if key == "bits.png" else 200
        assert abs(float(pixels.float().mean()) - wanted) <= 4, key
