"""CapFilt over a few photographs: the whole command against a plain loop over transformers, ViT-B/16, 384 px.

The loop does what data-juicer's image_captioning_mapper and image_text_matching_filter do: one sample at a time, a
`generate` for each caption, and for each text the image read, resized and encoded again. Both sides write just 20
tokens by nucleus sampling, since random weights do not stop by themselves. What must agree is the ITM probability
of the texts from the web. Models are opened beforehand on both sides; reading, decoding and writing are timed.

"default" is what a user gets who names no dtype: ours computes in bfloat16 where the CPU has it, theirs in
that of the file, float32 for all published BLIP checkpoints.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import published
from benchmarks.harness import Subject, compare, dtypes_to_measure, result_of
from benchmarks.photographs import photograph
from openblip.bootstrap.job import CapFiltConfig, Output, Worker, plan
from openblip.bootstrap.models import open_models
from openblip.bootstrap.pipeline import Pipeline
from openblip.bootstrap.places import Places
from openblip.bootstrap.policy import Policy
from openblip.core.compute import choose_dtype
from openblip.core.memory import keep_freed_memory
from openblip.data.source_config import SourceConfig
from openblip.generation.config import DecodeConfig

PLACE = "OPENBLIP_BENCHMARK_CAPFILT"
NEW = 20
CASES = {"1 caption": (1, 4), "10 captions": (10, 4)}
"""case -> captions for each image, images"""
TOLERANCE = {"float32": 0.01, "bfloat16": 0.1, "default": 0.1}
"""of the probabilities; the two sides resize with other libraries"""


def run(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Measure all dtypes, or `only` one."""
    rows = []
    with prepared(quick):
        for case in CASES:
            for dtype in dtypes_to_measure(TOLERANCE, only):
                repeats = 2 if case == "1 caption" and not quick else 1
                rows.append(
                    compare(
                        "benchmarks.capfilt",
                        case,
                        dtype=dtype,
                        quick=quick,
                        repeats=repeats,
                        tolerance=TOLERANCE[dtype],
                    )
                )
    for row in rows:
        images = CASES[row["case"]][1]
        row["ours_images_per_s"] = round(images / row["ours_s"], 3)
        row["peer_images_per_s"] = round(images / row["peer_s"], 3)
    return result_of("capfilt", rows, new_tokens=NEW)


@contextmanager
def prepared(quick: bool, images: int = 4) -> Iterator[None]:
    """Models of the published sizes and photographs, where both sides find them."""
    with (
        tempfile.TemporaryDirectory() as place,
        published.published(published.captioner(quick)),
    ):
        captioner = published.folder()
        with published.published(published.matcher(quick)):
            root = Path(place)
            (root / "captioner").symlink_to(captioner)
            (root / "filter").symlink_to(published.folder())
            _write_images(root / "web", images)
            os.environ[PLACE] = place
            try:
                yield
            finally:
                os.environ.pop(PLACE)


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        photograph(rng).save(folder / f"{number:03d}.jpg", quality=90)
        words = " ".join(f"word{word}" for word in rng.integers(1000, 30000, 10))
        (folder / f"{number:03d}.txt").write_text(words)


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """One side."""
    captions, images = CASES[case]
    if dtype == "default":
        torch_dtype = choose_dtype("auto", "cpu") if side == "ours" else torch.float32
    else:
        torch_dtype = getattr(torch, dtype)
    place = Path(os.environ[PLACE])
    return (
        Ours(place, captions, images, torch_dtype) if side == "ours" else Loop(place, captions, images, torch_dtype)
    )


class Ours:
    """The command, from files to table and training set."""

    def __init__(
        self, place: Path, captions: int, images: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        keep_freed_memory()
        self.target = place / "ours"
        web = place / f"web-{images}"
        if not web.exists():
            web.mkdir()
            for path in sorted((place / "web").iterdir())[: 2 * images]:
                shutil.copy(path, web)
        decode = DecodeConfig(
            sample=True, top_p=0.9, num_sequences=captions, min_new_tokens=NEW, max_new_tokens=NEW
        )
        models = open_models(str(place / "captioner"), str(place / "filter")).to(device, dtype)
        self.config = CapFiltConfig(source=SourceConfig(path=str(web)), filter="filter", decode=decode)
        self.pipeline = Pipeline(models, decode, max_length=self.config.max_length)

    def run(self) -> None:
        """Write, score, decide, and write the set."""
        shutil.rmtree(self.target, ignore_errors=True)
        output = Output(policy=Policy(threshold=0.0))
        worker = Worker(self.config, output, self.target, lambda: self.pipeline)
        for chunk in plan(self.config):
            worker(chunk)

    def outputs(self) -> dict[str, float]:
        """Probabilities of the texts from the web."""
        self.run()
        rows = list(Places(self.target).rows())
        return {row.key: float(row.texts[0].itm or 0.0) for row in rows}


class Loop:
    """One sample at a time, over transformers."""

    def __init__(
        self, place: Path, captions: int, images: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipForImageTextRetrieval
        from transformers import BlipImageProcessor as Processor

        torch.set_grad_enabled(False)
        self.captions, self.dtype, self.device = captions, dtype, torch.device(device)
        self.paths = sorted((place / "web").glob("*.jpg"))[:images]
        writer: Any = BlipForConditionalGeneration.from_pretrained(place / "captioner", dtype=dtype)
        judge: Any = BlipForImageTextRetrieval.from_pretrained(place / "filter", dtype=dtype)
        self.writer, self.judge = writer.to(device).eval(), judge.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(place / "captioner")
        side = self.writer.config.vision_config.image_size
        self.processor = Processor(size={"height": side, "width": side})

    def pixels(self, data: bytes) -> torch.Tensor:
        """An image as the models read it."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        values: torch.Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"]
        return values.to(self.device, self.dtype)

    def match(self, data: bytes, text: str) -> float:
        """ITM probability of one pair."""
        ids = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=40)["input_ids"]
        ids = ids.to(self.device)
        ids[:, 0] = published.ENC
        logits = self.judge(pixel_values=self.pixels(data), input_ids=ids, use_itm_head=True)[0]
        return float(logits.float().softmax(-1)[0, 1])

    def write(self, data: bytes) -> str:
        """One caption."""
        ids = self.writer.generate(
            pixel_values=self.pixels(data),
            do_sample=True,
            top_p=0.9,
            top_k=0,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
        )
        return str(self.tokenizer.decode(ids[0], skip_special_tokens=True))

    def run(self) -> None:
        """Write and score each sample."""
        for path in self.paths:
            data = path.read_bytes()
            texts = [path.with_suffix(".txt").read_text()]
            texts += [self.write(data) for _ in range(self.captions)]
            for text in texts:
                self.match(data, text)

    def outputs(self) -> dict[str, float]:
        """Probabilities of the texts from the web."""
        return {
            path.name: self.match(path.read_bytes(), path.with_suffix(".txt").read_text()) for path in self.paths
        }
