"""Every kind of image becomes upright RGB, and every broken one says why."""

from __future__ import annotations

import io
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from make_data import encoded, make_image, tiff
from PIL import Image

from openblip.data import images
from openblip.data.images import decode_image
from openblip.data.sample import BrokenSample, Sample


def photo(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth gradient, which JPEG keeps within a few grey levels."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def center(image: Image.Image) -> tuple[int, ...]:
    pixel = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats(kind: str) -> None:
    image = decode_image(encoded(make_image(200), kind))
    assert image.mode == "RGB"
    assert image.size == (40, 30)
    assert np.allclose(center(image), (200, 55, 7), atol=4)


def test_from_path_array_image_and_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(make_image(3)))
    array = np.asarray(make_image(3))
    for source in (path, path.read_bytes(), array, make_image(3), Sample("k", (path,))):
        assert np.array_equal(np.asarray(decode_image(source)), array)
    assert center(decode_image(np.full((4, 4), 9, np.uint8))) == (9, 9, 9)


def test_cmyk_jpeg() -> None:
    image = decode_image(encoded(make_image(200).convert("CMYK"), "JPEG", quality=95))
    assert image.mode == "RGB"
    assert np.allclose(center(image), (200, 55, 7), atol=6)


def test_sixteen_bit_keeps_its_meaning() -> None:
    values = np.full((5, 6), 0x80FF, np.uint16)
    assert center(decode_image(encoded(Image.fromarray(values)))) == (128, 128, 128)
    as_int = Image.fromarray(np.full((5, 6), 0x80FF, np.int32))
    assert center(decode_image(encoded(as_int, "TIFF"))) == (128, 128, 128)
    as_float = Image.fromarray(np.full((5, 6), 0.5, np.float32))
    assert center(decode_image(encoded(as_float, "TIFF"))) == (128, 128, 128)


def test_sixteen_bit_of_either_order_of_bytes() -> None:
    """Dark images too, whose values would fit into eight bits."""
    for dark in (200, 2000):
        values = np.full((5, 6), dark, np.uint16)
        big = Image.frombytes("I;16B", (6, 5), values.astype(">u2").tobytes())
        found = [center(decode_image(encoded(image, "TIFF"))) for image in (Image.fromarray(values), big)]
        assert found == [(dark >> 8,) * 3] * 2


@pytest.mark.parametrize(
    ("low", "high", "full"), [(0.0, 1.0, 1.0), (0.0, 200.0, 255.0), (3.0, 60000.0, 65535.0), (-7.5, 9e9, None)]
)
def test_floats_are_scaled_in_little_memory(
    low: float, high: float, full: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).uniform(low, high, (500, 700)).astype(np.float32)
    values[0, :3] = low, high, np.nan
    numbers = np.nan_to_num(values.astype(np.float64))
    least = 0.0 if full else float(numbers.min())
    scale = 255.0 / (full or float(numbers.max()) - least)
    monkeypatch.setattr(images, "_BAND", 5000)
    tracemalloc.start()
    found = np.asarray(decode_image(Image.fromarray(values)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found[:, :, 0], np.round((numbers - least) * scale).astype(np.uint8))
    assert peak < 16 * values.size, "bytes for each pixel"


def test_more_pixels_than_pillow_takes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 500)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    data = encoded(make_image(1))
    assert decode_image(data, max_pixels=1200).size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 500
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: decode_image(data, max_pixels=1200).size, range(50)))
    assert found == [(40, 30)] * 50
    for most in (400, 1199):
        with pytest.raises(BrokenSample, match="too-large"):
            decode_image(data, key="k", max_pixels=most)
    assert Image.MAX_IMAGE_PIXELS == 500


def test_an_image_without_pixels() -> None:
    with pytest.raises(BrokenSample, match="empty: k: the image has no pixels"):
        decode_image(Image.new("RGB", (0, 5)), key="k")


def test_transparency_on_white() -> None:
    clear = Image.new("RGBA", (6, 6), (255, 0, 0, 0))
    assert center(decode_image(encoded(clear))) == (255, 255, 255)
    half = Image.new("LA", (6, 6), (0, 128))
    assert np.allclose(center(decode_image(encoded(half))), 127, atol=1)
    palette = Image.new("P", (6, 6), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert center(decode_image(encoded(palette))) == (10, 20, 30)
    assert center(decode_image(encoded(palette, transparency=1))) == (255, 255, 255)


def test_grey_and_bilevel() -> None:
    assert center(decode_image(encoded(Image.new("L", (6, 6), 77)))) == (77, 77, 77)
    assert center(decode_image(encoded(Image.new("1", (6, 6), 1)))) == (255, 255, 255)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    image = Image.new("RGB", (40, 30), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 20, 30))  # left half white
    upright = decode_image(encoded(image, "JPEG", exif=exif.tobytes()))
    assert upright.size == (30, 40)
    assert upright.getpixel((15, 5))[0] > 200  # what was left is now on top
    assert upright.getpixel((15, 35))[0] < 50


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF
def test_damaged_exif_does_not_matter() -> None:
    image = decode_image(encoded(make_image(5), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert image.size == (40, 30)


def test_animation_gives_its_first_frame() -> None:
    frames = [make_image(10), make_image(90)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.allclose(center(decode_image(data)), (10, 245, 7), atol=2)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"<html>404 not found</html>", "not-an-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not-an-image"),  # would start another program
        (encoded(photo(), "JPEG")[:20], "truncated"),
        (encoded(photo(), "JPEG")[:-300], "truncated"),
        (encoded(photo(), "WEBP")[:-30], "truncated"),
        (encoded(photo(), "PNG")[:100], "truncated"),
        (encoded(photo(), "PNG")[:10], "truncated"),
    ],
)
def test_broken_bytes(data: bytes, cause: str) -> None:
    with pytest.raises(BrokenSample) as caught:
        decode_image(data, key="k")
    assert (caught.value.cause, caught.value.key) == (cause, "k")
    assert caught.value.detail


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF
def test_every_cut_of_an_image_is_broken_and_never_crashes() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        whole = encoded(photo((16, 16)), kind)
        for length in range(0, len(whole) // 2, 7):
            with pytest.raises(BrokenSample):
                decode_image(whole[:length])


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF
def test_flipped_bytes_decode_or_are_broken() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encoded(photo((24, 24)), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(len(data), size=6):
                data[place] = rng.integers(256)
            try:
                outcomes.add(decode_image(bytes(data)).mode)
            except BrokenSample:
                outcomes.add("broken")
    assert outcomes == {"RGB", "broken"}


def test_too_large_is_refused_before_decoding() -> None:
    header_only = encoded(make_image(1, (2000, 1000)))[:60]  # the size is known, the pixels are not there
    with pytest.raises(BrokenSample, match=r"too-large.*2000 x 1000"):
        decode_image(header_only, max_pixels=1_000_000)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path, tmp_path / "a\0b.jpg"):
        with pytest.raises(BrokenSample) as caught:
            decode_image(path)
        assert caught.value.cause in ("missing", "unreadable")


def test_arrays_that_are_no_images() -> None:
    for array in (np.zeros((4, 4, 3)), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(BrokenSample):
            decode_image(array)


def test_large_jpeg_is_decoded_smaller_when_that_is_enough() -> None:
    data = encoded(photo((800, 640)), "JPEG")
    assert decode_image(data).size == (800, 640)
    small = decode_image(data, min_side=150)
    assert small.size == (200, 160)
    assert decode_image(data, min_side=321).size == (800, 640)
    exact = np.asarray(Image.open(io.BytesIO(data)).resize(small.size, Image.Resampling.BOX), np.int64)
    assert np.abs(np.asarray(small, np.int64) - exact).mean() < 2


def test_broken_sample_survives_pickling() -> None:
    broken = BrokenSample("missing", "k", "no file")
    again = pickle.loads(pickle.dumps(broken))
    assert (again.cause, again.key, again.detail) == ("missing", "k", "no file")
    assert str(again) == "missing: k: no file"


@pytest.mark.parametrize(
    ("bands", "bits", "kind", "expected"),
    [
        (5, 8, 1, "a TIFF of 5 bands of 8-bit unsigned integers"),
        (5, 16, 1, "a TIFF of 5 bands of 16-bit unsigned integers"),
        (3, 32, 3, "a TIFF of 3 bands of 32-bit floats"),
        (1, 64, 3, "a TIFF of 1 band of 64-bit floats"),
        (1, 16, 3, "a TIFF of 1 band of 16-bit floats"),
        (1, 64, 6, "a TIFF of 1 band of 64-bit complex floats"),
    ],
)
def test_a_tiff_of_another_kind_is_named_and_not_called_truncated(
    bands: int, bits: int, kind: int, expected: str
) -> None:
    data = tiff(bands, bits, kind)
    with pytest.raises(BrokenSample) as caught:
        decode_image(data, key="k")
    assert (caught.value.cause, caught.value.key) == ("unreadable", "k")
    assert caught.value.detail.startswith(f"it is {expected}, which is not read; save it as")
    with pytest.raises(BrokenSample) as caught:
        decode_image(data[:40], key="k")
    assert caught.value.cause == "truncated"


def test_floats_and_three_bands_of_tiff_are_read() -> None:
    floats = np.full((4, 4), 0.5, np.float32)
    assert center(decode_image(tiff(1, 32, 3, floats.tobytes()))) == (128, 128, 128)
    colors = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    assert center(decode_image(tiff(3, 8, 1, colors.tobytes()))) == (10, 20, 30)
