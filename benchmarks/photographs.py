"""Images as large on disk and as much work to decode as photographs, in tars as img2dataset writes them.

An image is a sum of smooth fields whose amplitude falls with frequency as it does in photographs, in colours
that go together, with a few objects of hard edges; at 500 x 375 and JPEG quality 90 it takes 40 to 60 KB.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["photograph", "write_tars"]

WIDTH, HEIGHT, QUALITY = 500, 375, 90


def photograph(rng: np.random.Generator) -> Image.Image:
    """Draw one image."""
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1.0

    def field(fall: float) -> np.ndarray:
        phases = np.exp(2j * np.pi * rng.random(frequency.shape))
        values = np.fft.irfft2(phases / frequency**fall, (HEIGHT, WIDTH))
        return values / values.std()

    light, warm, green = field(rng.uniform(1.4, 1.55)), field(2.0), field(2.0)
    mix = np.stack([light + 0.4 * warm, light - 0.2 * warm + 0.2 * green, light - 0.4 * green], axis=2)
    pixels = 40.0 * mix + rng.uniform(90.0, 160.0)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    shade = Image.fromarray(np.clip(pixels * rng.uniform(0.4, 1.6, 3), 0, 255).astype(np.uint8))
    mask = Image.new("L", image.size)
    draw = ImageDraw.Draw(mask)
    for _ in range(4):
        x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
        width, height = rng.uniform(30, 120, 2)
        draw.ellipse((x - width, y - height, x + width, y + height), fill=int(rng.integers(128, 256)))
    return Image.composite(shade, image, mask)


def write_tars(folder: Path, num_tars: int, per_tar: int, num_images: int) -> float:
    """Write num_tars x per_tar samples, `num_images` different ones in turn; returns the mean KB of a JPEG."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(num_images):
        buffer = io.BytesIO()
        photograph(rng).save(buffer, "JPEG", quality=QUALITY)
        files.append(buffer.getvalue())
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_tars):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for place in range(per_tar):
                key = f"{shard:05d}{place:04d}"
                text = f"a photograph of things, number {place} of shard {shard}"
                fields = {"key": key, "caption": text, "status": "success", "width": WIDTH, "height": HEIGHT}
                members = {
                    "jpg": files[(shard * per_tar + place) % num_images],
                    "json": json.dumps(fields).encode(),
                    "txt": text.encode(),
                }
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return float(np.mean([len(data) for data in files])) / 1000
