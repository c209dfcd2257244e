"""One request on its way: its body is read, a model chosen, the work computed within the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from openblip.core.errors import UserError, nearest
from openblip.data.sample import BrokenSample
from openblip.serving.body import Opener, Refused, parse, read_body
from openblip.serving.engine import Engine, ModelInfo
from openblip.serving.failures import HANG_UP
from openblip.serving.limits import Limits
from openblip.serving.schemas import Request

__all__ = ["Performing", "hung_up", "refusing"]

Result = TypeVar("Result")
_SEARCH = "search"


class Performing:
    """What endpoints share.

    Args:
        engine: computes.
        limits: of requests.
        opener: of images that are named by their addresses; None refuses these.
    """

    def __init__(self, engine: Engine, limits: Limits, opener: Opener | None = None) -> None:
        self.engine, self.limits, self.opener = engine, limits, opener

    async def perform(self, request: Any, kind: type[Request], endpoint: str) -> tuple[Any, Any, Any]:
        """Read a request and compute it: the model's id, the request, and what the engine gives.

        Raises:
            Refused: 408, 413 or 415 for the body, 404 where nothing serves the endpoint, 422 for a field, 413 or
                422 for the image, 504 after the time limit, `HANG_UP` where the client has gone.
        """
        body = await self.read(request)
        with refusing():
            asked = await self.within_time(request, parse(body, request.headers, kind, self.opener))
            model = self.choose(asked, endpoint)
            work = asked.work(model, self.limits)
            return model.id, asked, await self.within_time(request, self.engine.run(work))

    async def read(self, request: Any) -> bytes:
        """The body of a request.

        Raises:
            Refused: 408 or 413, or `HANG_UP`.
        """
        from starlette.requests import ClientDisconnect

        try:
            async with asyncio.timeout(self.limits.body_seconds):
                return await read_body(request.stream(), request.headers.get("content-length"), self.limits)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self.limits.body_seconds:g} seconds") from None
        except ClientDisconnect:
            raise Refused(HANG_UP, "") from None

    def seconds_left(self, scope: Any) -> float:
        """Until the time for a request is over."""
        return max(0.0, float(scope["state"]["began"] + self.limits.seconds - time.monotonic()))

    async def within_time(self, request: Any, work: Awaitable[Result]) -> Result:
        """What the work gives; it is dropped when the time is over or the client has gone.

        Raises:
            Refused: 504 or `HANG_UP`.
        """
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(hung_up(request.receive))]
        left = self.seconds_left(request.scope)
        try:
            done, _ = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0] in done:
                return await tasks[0]  # type: ignore[return-value]
            if done:
                raise Refused(HANG_UP, "")
            raise Refused(504, f"there was no answer within {self.limits.seconds:g} seconds; the work is dropped")
        finally:
            for task in tasks:
                task.cancel()

    def choose(self, asked: Request, endpoint: str) -> ModelInfo:
        """The model that a request names, or the first that serves it.

        Raises:
            UserError: there is no such model, or it does not serve the endpoint.
            Refused: 404 where none does.
        """
        name, models = asked.model, self.engine.models
        if endpoint == _SEARCH:
            if self.engine.searchable is None:
                raise Refused(404, "this service has no image index; start it with --index")
            if name not in (None, self.engine.searchable):
                raise UserError(f"the image index is read by the model {self.engine.searchable}")
            return models[self.engine.searchable]
        if name is not None:
            if name not in models:
                raise UserError(f'there is no model "{name[:60]}"{nearest(name, models)}')
            if endpoint not in models[name].can:
                raise UserError(f"the model {name} cannot {endpoint}; it can {', '.join(models[name].can)}")
            return models[name]
        able = [model for model in models.values() if endpoint in model.can]
        if not able:
            raise Refused(404, f"no model of this service can {endpoint}")
        return next((model for model in able if asked.needs in model.can), able[0])


@contextmanager
def refusing(status: int = 422) -> Iterator[None]:
    """What is wrong with a request becomes a refusal.

    Args:
        status: of a field or an image that cannot be used.

    Raises:
        Refused: with that status, or 413 for an image that is too large.
    """
    try:
        yield
    except UserError as error:
        raise Refused(status, str(error)) from error
    except BrokenSample as broken:
        large = broken.cause == "too-large"
        message = f"the image cannot be used ({broken.cause}): {broken.detail}"
        raise Refused(413 if large else status, message) from broken


async def hung_up(receive: Callable[[], Awaitable[Any]]) -> None:
    """Wait until the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
