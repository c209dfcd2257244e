"""Two nano models and a noisy collection with known faults, for the tests of CapFilt."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from openblip.bootstrap.job import CapFiltConfig, Output
from openblip.bootstrap.policy import Policy
from openblip.bootstrap.run import Engine, Totals, run_capfilt
from openblip.bootstrap.table import Row, read_table
from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.tokenizer import TextTokenizer
from openblip.data.source_config import SourceConfig
from openblip.generation.config import DecodeConfig
from openblip.models.blip import Blip, blip_config

TEXTS = (
    *("a red bus on a road", "two dogs", "a cat on a red chair", "a dog beside a bus", "the road"),
    *("a small cat and two red birds on a long road", "birds", "a long chair", "buy now 50% off", "img_0023"),
)
PIXELS = 32
DECODE = DecodeConfig(sample=True, top_p=0.9, num_sequences=2, min_new_tokens=2, max_new_tokens=6, seed=3)


def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS * 3, vocab_size=110)


def make_models(folder: Path) -> tuple[str, str, str]:
    """Folders of a captioner, a filter, and a model that is both; weights so large that all scores differ."""
    torch.manual_seed(5)
    words = tokenizer()
    whole = Blip(blip_config("nano", vocab_size=words.vocab_size, image_size=PIXELS))
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        whole.itm_head.bias[1] += 1.2  # about half of all pairs match, so that decisions differ
    writer, judge = whole.part(encoder=False, decoder=True), whole.part(encoder=True, decoder=False)
    with torch.no_grad():
        for parameter in writer.vision.parameters():
            parameter.mul_(1.01)
    for name, model in (("captioner", writer), ("filter", judge), ("both", whole)):
        save_model(
            folder / name,
            StoredModel(model, words, {"prompt": "a " if name == "captioner" else "", "clean": "simplify"}),
        )
    return str(folder / "captioner"), str(folder / "filter"), str(folder / "both")


def make_image(number: int, kind: str = "PNG", side: int = 40) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + number % 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def text_of(number: int) -> str:
    return TEXTS[number % len(TEXTS)]


def write_tar(path: Path, first: int, count: int, *, bad: dict[int, bytes] | None = None) -> Path:
    """Samples as img2dataset writes them; `bad` puts other bytes in place of an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            image = (bad or {}).get(number, make_image(number))
            fields = json.dumps({"caption": text_of(number), "url": f"u{number}"}).encode()
            for ending, data in (("png", image), ("txt", text_of(number).encode()), ("json", fields)):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_folder(path: Path, count: int) -> Path:
    path.mkdir(parents=True)
    for number in range(count):
        (path / f"{number:03d}.png").write_bytes(make_image(number))
        (path / f"{number:03d}.txt").write_text(text_of(number) + "\n")
    return path


def config(models: tuple[str, str, str], source: Path | str, **settings: object) -> CapFiltConfig:
    values: dict[str, Any] = {
        "captioner": models[0],
        "filter": models[1],
        "decode": DECODE,
        "batch_size": 4,
        "chunk_size": 8,
        "device": "cpu",
        "dtype": "float32",
        **settings,
    }
    return CapFiltConfig(source=SourceConfig(path=str(source)), **values)


def output(layout: str = "tars", **policy: object) -> Output:
    return Output(policy=Policy(**policy), layout=layout)  # type: ignore[arg-type]


def run(settings: CapFiltConfig, target: Path, made: Output | None = None, **more: object) -> Totals:
    """`run_capfilt` with one thread."""
    return run_capfilt(settings, target, made, engine=Engine(threads=1), **more)  # type: ignore[arg-type]


def rows_of(folder: Path) -> list[Row]:
    return [row for path in sorted((folder / "capfilt" / "table").glob("*.parquet")) for row in read_table(path)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run that must not depend on how it came about: all but times."""
    skipped = {"done"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not skipped & set(path.parts)
    }
