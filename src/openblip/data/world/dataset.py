"""The world as a source of samples, and as files on disk that any other tool can read.

    source = WorldSource(split="train", num_samples=20_000, text="web")
    sample = source[17]                  # image, texts, and in sample.meta the scene and each text's noise kind
    judge(sample.texts[0], scene_from_meta(sample.meta)).true

A sample is a pure function of (seed, split, index) and the settings; nothing is stored, and a sample costs
about two milliseconds at 64 pixels. "to the left of" is false in a mirror and counts are false after a close
crop, so train on it without flips and with crops that keep nearly all of the image.
"""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from openblip.core.config import from_dict, to_dict
from openblip.core.errors import UserError, nearest
from openblip.core.files import write_folder, write_json
from openblip.core.interrupt import end_with_parent, starting_workers
from openblip.core.runtime import versions
from openblip.data.sample import Sample
from openblip.data.sources.base import Source
from openblip.data.sources.digest import Digest
from openblip.data.world.draw import draw_scene
from openblip.data.world.language import Length, caption
from openblip.data.world.noise import NoiseConfig, web_text
from openblip.data.world.questions import questions
from openblip.data.world.scene import (
    SPLITS,
    VERSION,
    Scene,
    random_stream,
    sample_scene,
    scene_from_dict,
    scene_to_dict,
)

__all__ = ["WorldConfig", "WorldSource", "open_world", "scene_from_meta", "write_world"]

_ANY_INDEX = 1 << 20
"""Texts of another image come from one with an index below this, however many samples are requested."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Which samples of the world."""

    split: Literal["train", "val", "test", "novel"] = "train"
    num_samples: int = 10_000
    seed: int = 0
    size: int = 64
    """side of the images in pixels"""
    text: Literal["human", "web", "both"] = "human"
    """true captions, one noisy web text, or the web text followed by the captions"""
    captions_per_image: int = 3
    """true captions for each image (text "human" or "both")"""
    length: Length = "mixed"
    """what captions mention, see `language`"""
    questions_per_image: int = 0
    """questions with answers in `Sample.meta["questions"]`"""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """of the web texts"""
    max_objects: int = 4
    """in a scene; 1 for the simplest captions"""
    disturb: float = 1.0
    """scales the probability of blur, grain, uneven light and crops; 0 for clean drawings"""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f'the world has no split "{self.split}"{nearest(self.split, SPLITS)}')
        if self.num_samples < 1 or self.seed < 0:
            raise UserError(
                f"num_samples must be at least 1 and seed not negative: {self.num_samples}, {self.seed}"
            )
        if not 32 <= self.size <= 1024:
            raise UserError(f"images of the world are 32 to 1024 pixels wide, not {self.size}")
        if self.captions_per_image < 1 or self.questions_per_image < 0:
            raise UserError("captions_per_image must be at least 1 and questions_per_image not negative")
        if not 1 <= self.max_objects <= 4:
            raise UserError(f"scenes of the world have 1 to 4 objects, not {self.max_objects}")
        if not 0 <= self.disturb <= 1:
            raise UserError(f"disturb is a share between 0 and 1, not {self.disturb}")


class WorldSource(Source):
    """An indexable source of world samples.

    Args:
        config: the settings; None takes the defaults.
        **settings: single settings that replace those of `config`, by name.
    """

    def __init__(self, config: WorldConfig | None = None, **settings: Any) -> None:
        super().__init__()
        base = config or WorldConfig()
        self.config = from_dict(WorldConfig, {**to_dict(base), **to_dict(settings)}) if settings else base
        self.name = f"world:{self.config.split}"

    def __len__(self) -> int:
        return self.config.num_samples

    def scene(self, index: int) -> Scene:
        """The scene of sample `index`, without painting it."""
        config = self.config
        return sample_scene(config.seed, config.split, self._check(index), max_objects=config.max_objects)

    def image(self, index: int) -> np.ndarray:
        """The image of sample `index`: uint8 [size, size, 3]."""
        return self._paint(self.scene(index), self._check(index))

    def __getitem__(self, index: int) -> Sample:
        index = self._check(index)
        scene = self.scene(index)
        return self._sample(index, scene, (self._paint(scene, index),))

    def without_drawing(self, index: int) -> Sample:
        index = self._check(index)
        return self._sample(index, self.scene(index), ())

    def _sample(self, index: int, scene: Scene, images: tuple[np.ndarray, ...]) -> Sample:
        config = self.config
        texts: list[str] = []
        kinds: list[str] = []
        if config.text != "human":
            text, kind = self._web_text(scene, index)
            texts.append(text)
            kinds.append(kind)
        if config.text != "web":
            rng = random_stream(config.seed, config.split, index, "captions")
            texts += [caption(scene, rng, length=config.length) for _ in range(config.captions_per_image)]
            kinds += ["human"] * config.captions_per_image
        key = f"{config.split}-{config.seed}-{index:08d}"
        meta: dict[str, Any] = {
            "split": config.split,
            "seed": config.seed,
            "index": index,
            "scene": scene_to_dict(scene),
            "noise": kinds,
        }
        if config.questions_per_image:
            rng = random_stream(config.seed, config.split, index, "questions")
            asked = questions(scene, rng, config.questions_per_image, novel=config.split == "novel")
            meta["questions"] = [question.to_dict() for question in asked]
        return Sample(key=key, images=images, texts=tuple(texts), image_id=key, meta=meta)

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        drawn = {name: value for name, value in to_dict(self.config).items() if name != "num_samples"}
        digest.add("world", VERSION, drawn, span.start, span.stop)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **to_dict(self.config), "world_version": VERSION, "mirror_safe": False}

    def _check(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return index % len(self)

    def _paint(self, scene: Scene, index: int) -> np.ndarray:
        rng = random_stream(self.config.seed, self.config.split, index, "image")
        return draw_scene(scene, rng, size=self.config.size, disturb=self.config.disturb)

    def _web_text(self, scene: Scene, index: int) -> tuple[str, str]:
        config = self.config
        rng = random_stream(config.seed, config.split, index, "web")

        def other() -> Scene:
            other = int(rng.integers(_ANY_INDEX))
            return sample_scene(config.seed, config.split, other, max_objects=config.max_objects)

        return web_text(scene, rng, config.noise, other=other, length=config.length)


def scene_from_meta(meta: dict[str, Any]) -> Scene:
    """The scene in `Sample.meta`, whether it comes from `WorldSource` or from files that `write_world` wrote.

    Raises:
        UserError: the sample is not of the world.
    """
    value = meta.get("scene")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f'the column "scene" is not JSON: {error.msg}') from error
    if not isinstance(value, dict):
        raise UserError('this sample has no "scene": it is not of the synthetic world, so its truth is not known')
    return scene_from_dict(value)


def open_world(spec: str) -> WorldSource:
    """Open "SPLIT?NAME=VALUE&..." (with or without "world:" before it), e.g. "train?n=5000&seed=1&text=web".

    Names are those of `WorldConfig`; n is short for num_samples, noise.half_true and the like reach into noise.
    """
    split, _, query = spec.removeprefix("world:").partition("?")
    settings: dict[str, Any] = {"split": split} if split else {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError:
            value = text
        table, name = settings, {"n": "num_samples"}.get(name, name)
        if name.startswith("noise."):
            table, name = settings.setdefault("noise", {}), name.removeprefix("noise.")
        table[name] = value
    return WorldSource(from_dict(WorldConfig, settings))


# On disk -------------------------------------------------------------------------------------------------


def write_world(
    folder: Path | str,
    config: WorldConfig,
    *,
    layout: Literal["tars", "jsonl"] = "tars",
    samples_per_tar: int = 1000,
    num_processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the samples of `config` into `folder`, which appears whole or not at all.

    Layouts:
        tars: 000000.tar, 000001.tar, ... as img2dataset writes them: KEY.png, KEY.txt (the first text) and
            KEY.json (all texts as "captions", the scene, the noise kinds, questions).
        jsonl: images/KEY.png and captions.jsonl with the same fields, one line for each image.

    Both hold world.json: the settings, the world's version and those of the libraries.

    Args:
        num_processes: that draw side by side, each its share of the tars; what is written is the same.
        progress: called with (samples written, samples in all) after each hundred, where one process writes.

    Raises:
        UserError: unknown layout, or a full disk.
    """
    if layout not in ("tars", "jsonl"):
        raise UserError(f'the world is written as "tars" or "jsonl", not "{layout}"')
    if samples_per_tar < 1:
        raise UserError(f"samples_per_tar must be at least 1, not {samples_per_tar}")
    source = WorldSource(config)
    total = len(source)

    def tell(done: int) -> None:
        if progress is not None and (done % 100 == 0 or done == total):
            progress(done, total)

    def write_tars(numbers: Iterable[int]) -> None:
        for number in numbers:
            start = number * samples_per_tar
            with tarfile.open(target / f"{number:06d}.tar", "w") as tar:
                for index in range(start, min(start + samples_per_tar, total)):
                    _add_to_tar(tar, source[index], number, index - start)
                    tell(index + 1)

    with write_folder(folder) as target:
        if layout == "tars":
            _side_by_side(write_tars, range(-(-total // samples_per_tar)), num_processes)
        else:
            (target / "images").mkdir()
            with open(target / "captions.jsonl", "w", encoding="utf-8") as lines:
                for index in range(total):
                    sample = source[index]
                    name = f"images/{sample.key}.png"
                    (target / name).write_bytes(_png(sample.image))
                    lines.write(json.dumps({"image": name, **_record(sample)}) + "\n")
                    tell(index + 1)
        manifest = {
            "world_version": VERSION,
            "layout": layout,
            "config": to_dict(config),
            "versions": _versions(),
        }
        write_json(target / "world.json", manifest)
    return Path(folder)


def _side_by_side(work: Callable[[Iterable[int]], None], numbers: Sequence[int], num_processes: int) -> None:
    """Call `work` with all `numbers`, shared out over forked processes where the system has them.

    Raises:
        OSError: one of them could not write.
    """
    count = min(num_processes, len(numbers))
    if count < 2 or "fork" not in multiprocessing.get_all_start_methods():
        work(numbers)
        return
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()

    def run(part: Sequence[int]) -> None:
        end_with_parent()
        try:
            work(part)
        except OSError as error:
            failures.put((error.errno, error.strerror, error.filename))
            raise SystemExit(1) from None

    processes = [context.Process(target=run, args=(numbers[i::count],), daemon=True) for i in range(count)]
    with starting_workers():
        for process in processes:
            process.start()
    for process in processes:
        process.join()
    if not failures.empty():
        raise OSError(*failures.get())
    codes = [process.exitcode for process in processes if process.exitcode]
    if codes:
        raise ChildProcessError(errno.ECHILD, f"a process that draws images ended with {codes[0]}", None)


def _record(sample: Sample) -> dict[str, Any]:
    return {"key": sample.key, "image_id": sample.image_id, "captions": list(sample.texts), **sample.meta}


def _add_to_tar(tar: tarfile.TarFile, sample: Sample, number: int, position: int) -> None:
    key = f"{number:06d}{position:05d}"
    side = np.asarray(sample.image).shape[0]
    record = {
        "width": side,
        "height": side,
        "status": "success",
        **_record(sample),
        "caption": sample.texts[0],
    }
    for ending, data in (
        ("png", _png(sample.image)),
        ("txt", sample.texts[0].encode()),
        ("json", json.dumps({**record, "key": key}).encode()),
    ):
        info = tarfile.TarInfo(f"{key}.{ending}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _versions() -> dict[str, str]:
    return {**versions(), "numpy": np.__version__, "pillow": Image.__version__}
