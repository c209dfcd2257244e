"""The service under load: clients at once, one in ten of them bad, and batching against one request at a time.

The server is `openblip serve` in a process of its own. Every good answer is compared with the one that the server
gave before, when it was asked alone; one in ten clients sends broken images, hangs up, or sends slowly. Then good
clients alone ask a server that batches, and one that computes one request at a time, in turn.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from benchmarks.harness import THREADS, result_of
from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.tokenizer import TextTokenizer
from openblip.data.world.dataset import WorldSource
from openblip.data.world.words import vocabulary
from openblip.models.blip import Blip, blip_config

__all__ = ["Load", "run", "served"]

CLIENTS, SECONDS, IMAGES = 200, 120.0, 64
QUICK_CLIENTS, QUICK_SECONDS, QUICK_IMAGES = 20, 3.0, 4
MODEL = "served"
CAPTION = {"beams": "3", "max_tokens": "20"}
TOLERANCE = 1e-3
"""of probabilities of float32 batches of another size"""
ASKED = ("caption", "match", "chat", "stream")
"""what good clients request; "stream" is a chat by server-sent events"""
BAD = ("broken", "hangs up", "slow")


@dataclass
class Load:
    """What clients have seen."""

    seconds: list[float] = field(default_factory=list)
    """of each good request, from its first attempt to its answer"""
    outcomes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Server:
    """A service that runs."""

    address: str
    pid: int

    @property
    def resident_mb(self) -> float:
        """Memory that it holds now."""
        told = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(told) * os.sysconf("SC_PAGESIZE") / 2**20


def run(quick: bool) -> dict[str, Any]:
    """Measure; see `python -m benchmarks compare serve`."""
    clients = QUICK_CLIENTS if quick else CLIENTS
    seconds, images = (QUICK_SECONDS, QUICK_IMAGES) if quick else (SECONDS, IMAGES)
    good = min(clients, 64)
    with tempfile.TemporaryDirectory() as folder:
        model, shown = _prepare(Path(folder), images, size="nano" if quick else "micro")
        with served(model) as server:
            expected = asyncio.run(_expected(server.address, shown))
            memory = [server.resident_mb]
            loaded = []
            for _ in range(2):  # what grows in the first half alone is buffers and the cache of images
                loaded.append(asyncio.run(_load(server.address, shown, expected, clients, seconds / 2)))
                memory.append(server.resident_mb)
        ways = {
            "batched": ("--cache-mb", "0"),
            "single": ("--cache-mb", "0", "--batch-size", "1", "--gather-ms", "0"),
        }
        rates: dict[str, float] = {}
        for name, options in ways.items():
            with served(model, *options) as server:
                alone = asyncio.run(_load(server.address, shown, expected, good, seconds / 4, bad=False))
            rates[name] = len(alone.seconds) / (seconds / 4)
            loaded.append(alone)
    outcomes = sum((load.outcomes for load in loaded), Counter())
    times = sorted(second for load in loaded[:2] for second in load.seconds)
    row = {
        "case": f"{clients} clients, one in ten bad; rates of {good} good ones",
        "dtype": "float32",
        "ours_s": round(1 / rates["batched"], 5),
        "peer_s": round(1 / rates["single"], 5),
        "ratio": round(rates["batched"] / rates["single"], 2),
        "p50_s": round(statistics.median(times), 4),
        "p99_s": round(times[int(0.99 * (len(times) - 1))], 4),
        "requests_a_second": round(len(times) / seconds, 1),
        "memory_mb": [round(one) for one in memory],
        **{name.replace(" ", "_"): count for name, count in sorted(outcomes.items())},
        "outputs_agree": not outcomes["wrong"] and not outcomes["lost"],
    }
    return result_of("serve", [row])


def _prepare(folder: Path, images: int, *, size: str) -> tuple[Path, list[bytes]]:
    """A model with random weights, and encoded images of the scene world."""
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train(list(vocabulary()) * 3, vocab_size=400)
    model = Blip(blip_config(size, vocab_size=tokenizer.vocab_size, image_size=64))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_model(folder / MODEL, StoredModel(model, tokenizer))
    world, shown = WorldSource(split="test", size=128), []
    for index in range(images):
        buffer = io.BytesIO()
        Image.fromarray(world.image(index)).save(buffer, "JPEG", quality=90)
        shown.append(buffer.getvalue())
    return folder / MODEL, shown


@contextmanager
def served(model: Path, *options: str) -> Iterator[Server]:
    """A service in a process of its own, stopped by SIGTERM at the end.

    Raises:
        RuntimeError: it does not start, or does not end with code 0.
    """
    command = [sys.executable, "-m", "openblip", "serve", str(model), "--port", "0", "--dtype", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if found := re.search(r"at (http://\S+)", line):
            break
    else:
        raise RuntimeError(f"the service did not start:\n{told}")
    try:
        yield Server(found[1], process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=120)[1]
    if process.returncode != 0:
        raise RuntimeError(f"the service ended with code {process.returncode}:\n{rest}")


async def _expected(address: str, images: list[bytes]) -> dict[tuple[int, str], Any]:
    """What each request gives alone."""
    async with httpx.AsyncClient(base_url=address, timeout=600, trust_env=False) as client:
        found = {}
        for number, image in enumerate(images):
            for what in ASKED:
                answer = await _post(client, number, image, what)
                found[number, what] = told(answer.raise_for_status())
        return found


def _texts(number: int) -> list[str]:
    words = vocabulary()
    return [
        " ".join(words[(7 * number + 3 * text + place) % len(words)] for place in range(4)) for text in range(3)
    ]


async def _post(client: httpx.AsyncClient, number: int, image: bytes, what: str) -> httpx.Response:
    if what in ("chat", "stream"):
        uri = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
        content = [{"type": "image_url", "image_url": {"url": uri}}]
        sent = {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": what == "stream"}
        return await client.post("/v1/chat/completions", json=sent)
    fields: dict[str, Any] = dict(CAPTION) if what == "caption" else {"texts": _texts(number)}
    return await client.post(f"/v1/{what}", files={"image": ("image.jpg", image)}, data=fields)


async def _load(
    address: str, images: list[bytes], expected: dict[Any, Any], clients: int, seconds: float, *, bad: bool = True
) -> Load:
    """Let clients ask for so many seconds, each as fast as it is answered."""
    load, end = Load(), time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = np.random.default_rng(number)
        kind = BAD[number // 10 % len(BAD)] if bad and number % 10 == 0 else "good"
        # Without certificates, which would be read for each client and are for https alone.
        async with httpx.AsyncClient(base_url=address, timeout=600, trust_env=False, verify=False) as asking:
            sent = False
            while not sent or time.monotonic() < end:
                sent = True
                place, what = int(rng.integers(len(images))), ASKED[int(rng.integers(len(ASKED)))]
                try:
                    if kind == "good":
                        await _good(asking, load, expected, place, images[place], what)
                    else:
                        await _bad(asking, load, expected, place, images[place], kind)
                except httpx.HTTPError:
                    load.outcomes["lost"] += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return load


async def _good(
    client: httpx.AsyncClient, load: Load, expected: dict[Any, Any], number: int, image: bytes, what: str
) -> None:
    began = time.monotonic()
    while (answer := await _post(client, number, image, what)).status_code == 429:
        load.outcomes["told to wait"] += 1
        await asyncio.sleep(0.1)
    if answer.status_code != 200:
        load.outcomes["lost"] += 1
        return
    load.seconds.append(time.monotonic() - began)
    load.outcomes["right" if same(told(answer), expected[number, what]) else "wrong"] += 1


async def _bad(
    client: httpx.AsyncClient, load: Load, expected: dict[Any, Any], number: int, image: bytes, kind: str
) -> None:
    if kind == "broken":
        answer = await _post(client, number, image[: len(image) // 2], "caption")
        good = answer.status_code in (422, 429)
        load.outcomes["broken and refused" if good else "wrong"] += 1
    elif kind == "hangs up":
        task = asyncio.ensure_future(_post(client, number, image, "caption"))
        await asyncio.wait([task], timeout=0.02)
        task.cancel()
        await asyncio.wait([task])
        load.outcomes["hung up"] += 1
    else:
        request = client.build_request("POST", "/v1/caption", files={"image": ("image.jpg", image)}, data=CAPTION)
        body = request.read()
        headers = {"content-type": request.headers["content-type"], "content-length": str(len(body))}
        answer = await client.post("/v1/caption", content=_slowly(body), headers=headers)
        good = answer.status_code == 429 or same(answer.json(), expected[number, "caption"])
        load.outcomes["slow and answered" if good else "wrong"] += 1


async def _slowly(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), len(body) // 4):
        yield body[start : start + len(body) // 4]
        await asyncio.sleep(0.25)


def told(answer: httpx.Response) -> Any:
    """What an answer says, without what each has of its own: the id and the time of a chat."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        return {"text": text, "finish_reason": choices[-1]["finish_reason"], "last": lines[-1]}
    found = answer.json()
    return {name: value for name, value in found.items() if name not in ("id", "created")}


def same(found: Any, expected: Any) -> bool:
    """Whether two answers are equal but for rounding."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float):
        return abs(found - expected) <= TOLERANCE * max(1.0, abs(expected))
    return bool(found == expected)
