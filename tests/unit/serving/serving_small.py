"""Small models to serve, an engine that computes nothing, and a way to ask a service without a network."""

from __future__ import annotations

import asyncio
import copy
import io
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from openblip.checkpoints.store import StoredModel
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.images import decode_image
from openblip.data.sample import BrokenSample
from openblip.models.blip import Blip, blip_config
from openblip.models.vqa import BlipVqa, VqaConfig
from openblip.serving.app import Service
from openblip.serving.engine import Counts, ModelInfo, Work
from openblip.serving.local import LocalEngine
from openblip.tasks.predictor import Predictor
from openblip.tasks.registry import adapt
from openblip.tasks.results import Caption

TEXTS = ("a red bus on a road", "two dogs", "a cat on a red chair", "a dog beside a bus", "the road", "birds")
QUESTIONS = ("what is red?", "how many dogs are there?", "is there a cat on a chair?", "what is on the road?")
ANSWERS = ("a red bus", "two", "no", "yes")
SIDE = 32


def _loud(model: Any) -> Any:
    """With weights so large that every text and image gives other numbers."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@cache
def _made() -> tuple[TextTokenizer, Blip, BlipVqa]:
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train([*TEXTS, *QUESTIONS, *ANSWERS] * 3, vocab_size=120)
    blip = _loud(Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=SIDE)))
    vqa = _loud(BlipVqa(VqaConfig(vision=blip.config.vision, text=blip.config.text)))
    return tokenizer, blip, vqa


def predictors() -> dict[str, Predictor]:
    """A nano model that captions and matches, and one that answers; copies, which an engine hooks into."""
    tokenizer, *models = _made()
    stored = [StoredModel(copy.deepcopy(model), tokenizer, {}) for model in models]
    return {name: Predictor(adapt(one)) for name, one in zip(("blip", "vqa"), stored, strict=True)}


def png(number: int = 0, side: int = 40) -> bytes:
    """An encoded image of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class StandIn:
    """An engine whose work lasts until it is told to end; keeps what it was asked."""

    result: Any = field(default_factory=lambda: [Caption("a bus", -1.0, 3, True)])
    models: Mapping[str, ModelInfo] = field(
        default_factory=lambda: {
            "one": ModelInfo("one", "blip", ("caption", "answer", "match", "embed", "explain"), (32, 32))
        }
    )
    searchable: str | None = None
    counts: Counts = field(default_factory=Counts)
    asked: list[Work] = field(default_factory=list)
    dropped: int = 0
    closed: bool = False
    hold: bool = False

    async def run(self, work: Work) -> Any:
        """Keep the work; give the result unless it is to be held."""
        self.asked.append(work)
        try:
            while self.hold:
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def found(self, number: int, min_side: int) -> Image.Image:
        """Nothing is found here."""
        raise UserError(f"the index holds no image with id {number}")

    async def close(self) -> None:
        """Keep that it was closed."""
        self.closed = True


@dataclass(frozen=True)
class Hit:
    """As the image index gives them."""

    path: str
    id: int = 0
    score: float = 0.5
    itm: float | None = 0.9
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class FolderIndex:
    """Finds every image of a folder, in the order of their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []

    def search(self, **asked: Any) -> list[Hit]:
        """As `ImageIndex.search`."""
        self.asked.append(asked)
        places = sorted(self.folder.iterdir())[: asked["count"]]
        return [Hit(str(place), id=number, caption=f"number {number}") for number, place in enumerate(places)]

    def image(self, number: int, *, min_side: int, max_pixels: int) -> Image.Image:
        """As `ImageIndex.image`."""
        place = sorted(self.folder.iterdir())[number]
        try:
            return decode_image(place, min_side=min_side, max_pixels=max_pixels)
        except BrokenSample as broken:
            raise UserError(f"{place}: {broken.detail}") from broken


Asking = Callable[[httpx.AsyncClient], Awaitable[Any]]


def ask(service: Service, asking: Asking, **options: Any) -> Any:
    """What `asking` gives, with a client of the service; the engine is closed afterwards."""

    async def go() -> Any:
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=True)  # type: ignore[arg-type]
        address = options.pop("base_url", "http://localhost")
        async with httpx.AsyncClient(transport=transport, base_url=address, timeout=60, **options) as client:
            try:
                return await asking(client)
            finally:
                await service.engine.close()

    return asyncio.run(go())


def post(service: Service, path: str, *, image: bytes | None = None, **fields: Any) -> httpx.Response:
    """One request: a form with an image, else JSON."""
    if image is None:
        return ask(service, lambda client: client.post(path, json=fields))
    return ask(service, lambda client: client.post(path, files={"image": ("image.png", image)}, data=fields))


def engine(**options: Any) -> LocalEngine:
    """The small models in a local engine."""
    return LocalEngine(predictors(), **options)
