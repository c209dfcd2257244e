"""The first caption: one image captioned by a new process, beside transformers on the same weights.

Every repeat is a process of its own, ours the `openblip caption` command, theirs the shortest program that does the
same. What no program of either library can avoid is taken off: the bare imports of torch and timm from ours (timm
as `openblip` imports it, without torch's compiler), of torch and transformers from theirs. The rows of mistakes
stand beside `openblip --help`, which imports none of these; a mistake in the arguments should be answered within
`MOST_OF_HELP` times its time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import published
from benchmarks.harness import THREADS, result_of
from benchmarks.tables import text_table

__all__ = ["MOST_OF_HELP", "lines", "run"]

MOST_OF_HELP = 2.0
BEAMS, NEW = 3, 20
TOKENS = ("--beams", str(BEAMS), "--min-new-tokens", str(NEW), "--max-new-tokens", str(NEW))
THEIRS = f"""
import sys
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

torch.set_grad_enabled(False)
processor = BlipProcessor.from_pretrained(sys.argv[1])
model = BlipForConditionalGeneration.from_pretrained(sys.argv[1]).eval()
inputs = processor(images=Image.open(sys.argv[2]).convert("RGB"), return_tensors="pt")
ids = model.generate(**inputs, num_beams={BEAMS}, min_new_tokens={NEW}, max_new_tokens={NEW}, do_sample=False)
print(processor.decode(ids[0], skip_special_tokens=True))
"""
IMPORTS = {
    "ours": "from openblip.core.imports import without_compiler\nwith without_compiler():\n    import torch, timm",
    "peer": "import torch, transformers",
}
# With bytecode that is kept, as Python does unless it is told otherwise.
_ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "",
    "OMP_NUM_THREADS": str(THREADS),
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def run(quick: bool) -> dict[str, Any]:
    """ViT-B/16 at 384 px in float32; `quick` takes a tiny model and one repeat."""
    repeats = 1 if quick else 5
    with published.published(published.captioner(quick)), tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
        rows = [_first_caption(published.folder(), image, repeats), *_mistakes(published.folder(), image, repeats)]
    return result_of("startup", rows, imports=IMPORTS)


def lines(result: dict[str, Any]) -> list[str]:
    """The table of docs/performance.md."""
    rows: list[tuple[str, ...]] = []
    for row in result["rows"]:
        if "peer_s" in row:
            ratio = f"{row['ours_s'] / row['peer_s']:.2f}"
            rows.append((row["case"], f"{row['ours_s']:.2f} s", f"{row['peer_s']:.2f} s (transformers)", ratio))
            whole = (f"{row['ours_whole_s']:.2f} s", f"{row['peer_whole_s']:.2f} s (transformers)")
            ratio = f"{row['ours_whole_s'] / row['peer_whole_s']:.2f}"
            rows.append(("the first caption, imports included", *whole, ratio))
        else:
            beside = f"{row['help_s']:.2f} s (--help)"
            rows.append((f"a mistake: {row['case']}", f"{row['ours_s']:.2f} s", beside, f"{row['ratio']:.2f}"))
    return text_table(("", "openblip", "beside", "ratio"), rows)


def _first_caption(model: Path, image: Path, repeats: int) -> dict[str, Any]:
    caption = _openblip("caption", str(image), "--model", str(model), "--dtype", "float32", *TOKENS)
    commands = {
        "ours": caption,
        "peer": [sys.executable, "-c", THEIRS, str(model), str(image)],
        "ours imports": [sys.executable, "-c", IMPORTS["ours"]],
        "peer imports": [sys.executable, "-c", IMPORTS["peer"]],
    }
    times, printed = _in_turn(commands, repeats)
    ours, peer = (times[side] - times[f"{side} imports"] for side in ("ours", "peer"))
    # A piped command prints JSON lines, the caption in the first one.
    said = printed["peer"].strip().splitlines()[-1].strip()
    return {
        "case": "the first caption, less the bare imports",
        "dtype": "float32",
        "ours_s": round(ours, 3),
        "peer_s": round(peer, 3),
        "ratio": round(peer / ours, 3),
        "ours_whole_s": round(times["ours"], 3),
        "peer_whole_s": round(times["peer"], 3),
        "outputs_agree": bool(said) and f'"{said}"' in printed["ours"],
        "repeats": repeats,
    }


def _mistakes(model: Path, image: Path, repeats: int) -> list[dict[str, Any]]:
    """Each mistake beside --help; "ratio" is the mistake's time by that of --help."""
    commands = {
        "--help": _openblip("--help"),
        "no such model": _openblip("caption", str(image), "--model", "no/such/place"),
        "no such image": _openblip("caption", "no/such/image.png", "--model", str(model)),
        "no such option": _openblip("caption", str(image), "--model", str(model), "--beam", "3"),
        "no such data": _openblip("train", "small-pretrain", "no/such/data", "--out", "no/such/run"),
        "a setting out of range": _openblip(
            "train", "small-pretrain", "world:train", "--out", "no/such/run", "--set", "train.learning_rate=-1"
        ),
    }
    times, printed = _in_turn(commands, repeats, fails=True)
    return [
        {
            "case": name,
            "ours_s": round(seconds, 3),
            "help_s": round(times["--help"], 3),
            "ratio": round(seconds / times["--help"], 3),
            "goal_met": seconds <= MOST_OF_HELP * times["--help"],
            "says": printed[name].strip(),
            "repeats": repeats,
        }
        for name, seconds in times.items()
        if name != "--help"
    ]


def _openblip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "openblip", *arguments]


def _in_turn(
    commands: Mapping[str, Sequence[str]], repeats: int, *, fails: bool = False
) -> tuple[dict[str, float], dict[str, str]]:
    """Median wall time of each command, run in turn, and what it printed (where it `fails`: its complaint)."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    printed: dict[str, str] = {}
    for repeat in range(repeats + 1):  # the first round fills the disk's cache and is not counted
        for name, command in commands.items():
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **_ENVIRONMENT})
            if repeat:
                times[name].append(time.perf_counter() - began)
            if done.returncode and not fails:
                raise RuntimeError(f"{name} failed:\n{done.stderr}")
            printed[name] = done.stderr if fails else done.stdout
    return {name: statistics.median(found) for name, found in times.items()}, printed
