"""The endpoints, as a FastAPI application over an engine."""
# Without postponed annotations: FastAPI reads those of the endpoints, whose types are imported inside functions.

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import resources
from typing import Any

import torch

from openblip.bootstrap.browse import Decisions
from openblip.core.errors import UserError, require
from openblip.core.text import rounded
from openblip.explain.cam import peak_of
from openblip.explain.overlay import overlay
from openblip.serving import schemas
from openblip.serving.body import Opener, Refused, schema_of
from openblip.serving.chat import add_chat
from openblip.serving.classify import ClassifyReply, ClassifyRequest
from openblip.serving.counting import Requests, exposition
from openblip.serving.decisions import add_decisions
from openblip.serving.engine import Engine
from openblip.serving.examples import draw_examples
from openblip.serving.failures import failure
from openblip.serving.guard import FAILED, Guard
from openblip.serving.hf import add_hf
from openblip.serving.limits import Limits
from openblip.serving.model import Explained, open_image
from openblip.serving.performing import Performing
from openblip.serving.thumbnails import SIDE, Thumbnails, jpeg

__all__ = ["Service"]

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/capfilt.js": ("capfilt.js", "text/javascript; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
}


class Service(Performing):
    """The application and what it keeps from request to request.

    Args:
        engine: computes.
        limits: of requests.
        decisions: of a CapFilt run, to browse.
        keys, origins, hosts: see `Guard`.
        opener: of images that are named by their addresses; None refuses these.

    Raises:
        MissingExtra: FastAPI is not installed.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits | None = None,
        *,
        decisions: Decisions | None = None,
        keys: Sequence[str] = (),
        origins: Collection[str] = (),
        hosts: Collection[str] | None = None,
        opener: Opener | None = None,
    ) -> None:
        for package in ("fastapi", "pydantic", "python_multipart"):
            require(package, "serving")
        super().__init__(engine, limits or Limits(), opener)
        self.requests, self.created = Requests(), int(time.time())
        self.thumbnails, self.decisions = Thumbnails(), decisions
        self.examples = draw_examples()
        app = self._create()
        paths = [route.path for route in app.routes]
        self.app = Guard(app, self.limits, self.requests, paths=paths, keys=keys, origins=origins, hosts=hosts)

    # The application --------------------------------------------------------------------------------------

    def _create(self) -> Any:
        from fastapi import FastAPI

        from openblip import __version__

        @asynccontextmanager
        async def life(app: Any) -> AsyncIterator[None]:
            yield
            await self.engine.close()

        app = FastAPI(title="OpenBLIP", version=__version__, docs_url=None, redoc_url=None, lifespan=life)
        app.router.redirect_slashes = False
        _answer_errors(app)
        self._add_work(app)
        add_chat(self, app)
        add_hf(self, app)
        self._add_models(app)
        self._add_images(app)
        if self.decisions is not None:
            add_decisions(self, app, self.decisions)
        self._add_state(app)
        _add_page(app)
        return app

    def _add_work(self, app: Any) -> None:
        """What the engine computes."""
        from fastapi import Request

        def post(
            kind: type[schemas.Request],
            reply: type,
            answer: Callable[[str, Any, Any], Awaitable[Any]] | None = None,
        ) -> None:
            """An endpoint; without `answer`, its reply is the model's id and what the engine gives."""
            name = kind.__name__.removesuffix("Request").lower()

            async def endpoint(request: Request) -> Any:
                model, asked, found = await self.perform(request, kind, name)
                return reply(model, rounded(found)) if answer is None else await answer(model, asked, found)

            schema = {"schema": schema_of(kind)}
            content = {"multipart/form-data": schema, "application/json": schema}
            app.add_api_route(
                f"/v1/{name}",
                endpoint,
                methods=["POST"],
                name=name,
                summary=(kind.__doc__ or "").rstrip("."),
                response_model=reply,
                responses={status: {"model": schemas.Failure} for status in (401, 408, 413, 422, 429, 503, 504)},
                openapi_extra={"requestBody": {"required": True, "content": content}},
            )

        post(schemas.CaptionRequest, schemas.CaptionReply)
        post(schemas.AnswerRequest, schemas.AnswerReply)
        post(schemas.MatchRequest, schemas.MatchReply)
        post(schemas.EmbedRequest, schemas.EmbedReply, _vectors)
        post(ClassifyRequest, ClassifyReply)
        post(schemas.ExplainRequest, schemas.ExplainReply, self._maps)
        post(schemas.SearchRequest, schemas.SearchReply, self._hits)

    def _add_models(self, app: Any) -> None:
        """What is served."""

        @app.get("/v1/models", response_model=schemas.ModelsReply)
        async def models() -> Any:
            served = [
                schemas.ServedModelInfo(one.id, one.family, list(one.can), one.image_size)
                for one in self.engine.models.values()
            ]
            examples = [
                schemas.Example(f"/examples/{number}.png", drawn.question, drawn.texts)
                for number, drawn in enumerate(self.examples)
            ]
            return schemas.ModelsReply(
                served,
                self.engine.searchable is not None,
                examples,
                asdict(self.limits),
                [schemas.ListedModel(one.id, self.created) for one in served],
                capfilt=self.decisions is not None,
            )

        @app.get("/v1/models/{name:path}", response_model=schemas.ListedModel)
        async def model(name: str) -> Any:
            if name not in self.engine.models:
                raise Refused(404, "there is no such model; /v1/models lists those there are")
            return schemas.ListedModel(name, self.created)

    def _add_images(self, app: Any) -> None:
        """Images that searches found, and examples."""
        from fastapi import Response

        @app.get("/v1/thumbnails/{name}", responses={200: {"content": {"image/jpeg": {}}}})
        async def thumbnail(name: str) -> Response:
            number = self.thumbnails.number_of(name)
            if number is None:
                raise Refused(404, "no search has given this image lately")
            try:
                image = await self.engine.found(number, SIDE)
            except UserError:  # its sentence names the path
                raise Refused(404, "this image is gone, or cannot be read any more") from None
            return Response(await asyncio.to_thread(jpeg, image), media_type="image/jpeg")

        @app.get("/examples/{number:int}.png", include_in_schema=False)
        async def example(number: int) -> Response:
            if not 0 <= number < len(self.examples):
                raise Refused(404, "there is no such example")
            return Response(self.examples[number].png, media_type="image/png")

    def _add_state(self, app: Any) -> None:
        """Health, readiness and metrics."""
        from fastapi import Response
        from fastapi.responses import JSONResponse

        @app.get("/healthz")
        async def alive() -> Any:
            return {"alive": True}

        @app.get("/readyz")
        async def ready() -> Response:
            return JSONResponse({"ready": not self.app.stopping}, 503 if self.app.stopping else 200)

        @app.get("/metrics", include_in_schema=False)
        async def metrics() -> Response:
            text = exposition(self.requests, self.engine.counts, ready=not self.app.stopping)
            return Response(text, media_type="text/plain; version=0.0.4")

    async def _maps(self, model: str, asked: schemas.ExplainRequest, found: Explained) -> Any:
        from fastapi import Response

        if asked.format == "json":
            words = [
                schemas.WordWeights(one.word, rounded(peak_of(one.weights)), _four_digits(one.weights.tolist()))
                for one in found.maps
            ]
            return schemas.ExplainReply(model, found.text, found.by, words)
        if asked.word is not None and not 0 <= asked.word < len(found.maps):
            raise Refused(422, f"word is {asked.word}; the text has the words 0 to {len(found.maps) - 1}")

        def draw() -> bytes:
            weights = torch.stack([one.weights for one in found.maps])
            chosen = weights.mean(0) if asked.word is None else weights[asked.word]
            buffer = io.BytesIO()
            overlay(open_image(asked.image, self.limits.pixels, 768), chosen).save(buffer, "PNG")
            return buffer.getvalue()

        return Response(await asyncio.to_thread(draw), media_type="image/png")

    async def _hits(self, model: str, asked: Any, found: Any) -> schemas.SearchReply:
        ids = [self.thumbnails.id_of(hit.id) for hit in found]
        return schemas.SearchReply(
            [
                schemas.FoundImage(
                    name, rounded(hit.score), rounded(hit.itm), hit.caption or None, f"/v1/thumbnails/{name}"
                )
                for name, hit in zip(ids, found, strict=True)
            ]
        )


def _answer_errors(app: Any) -> None:
    """Every error becomes a `schemas.Failure`."""
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return JSONResponse(failure(request.url.path, error.status, error.message), error.status, error.headers)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {404: "there is nothing here; /openapi.json lists what is", 405: "not by this method"}
        message = words.get(error.status_code, error.detail)
        return JSONResponse(failure(request.url.path, error.status_code, message), error.status_code)

    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse(failure(request.url.path, 500, FAILED), 500)  # `Guard` logs it

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(Exception, failed)
    app.add_exception_handler(404, unknown)
    app.add_exception_handler(405, unknown)


def _add_page(app: Any) -> None:
    from fastapi import Response

    def add(path: str, data: bytes, kind: str) -> None:
        async def file() -> Response:
            return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

        app.add_api_route(path, file, include_in_schema=False)

    folder = resources.files("openblip.serving") / "page"
    for path, (name, kind) in _PAGE.items():
        add(path, (folder / name).read_bytes(), kind)


async def _vectors(model: str, asked: Any, found: Any) -> schemas.EmbedReply:
    image, texts = (None if part is None else rounded(part.tolist()) for part in found)
    return schemas.EmbedReply(model, image, texts or [])


def _four_digits(rows: list[list[float]]) -> list[list[float]]:
    """Four significant digits: the scale of a map may be anything."""
    return [[float(f"{value:.4g}") for value in row] for row in rows]
