"""The endpoint of CapFilt's decisions: what a run kept and dropped and why, a page of samples at a time."""

# Without postponed annotations: FastAPI reads those of the endpoints, whose types are imported inside functions.

import asyncio
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, ClassVar, Literal

from openblip.bootstrap.browse import Decisions, Filter, Judged
from openblip.bootstrap.policy import REASONS
from openblip.core.errors import UserError, nearest
from openblip.core.text import rounded
from openblip.data.sample import BrokenSample
from openblip.serving.body import Refused, parse, schema_of
from openblip.serving.limits import Limits
from openblip.serving.performing import Performing, refusing
from openblip.serving.schemas import Failure
from openblip.serving.thumbnails import SIDE, jpeg

__all__ = ["CapFiltReply", "CapFiltRequest", "CapFiltSummary", "add_decisions"]

_MOST = 96
"""samples of a page"""


@dataclass(frozen=True, kw_only=True)
class CapFiltRequest:
    """Browse CapFilt's decisions."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    verdict: Literal["kept", "dropped"] | None = None
    """of a text; left out, both"""
    origin: Literal["web", "synthetic"] | None = None
    """of a text; left out, both"""
    reason: str | None = None
    """why a text was kept or dropped; left out, any"""
    words: str = ""
    """which a text holds, all of them, in any order"""
    start: int = 0
    """`next` of the page before"""
    count: int = 24
    """samples of a page"""

    def filter(self, limits: Limits) -> Filter:
        """Which texts are wanted.

        Raises:
            UserError: a field is out of its range, or there is no such reason.
        """
        if self.reason is not None and self.reason not in REASONS:
            raise UserError(f'there is no reason "{self.reason[:40]}"{nearest(self.reason, REASONS)}')
        if len(self.words) > limits.characters:
            raise UserError(f"words has {len(self.words)} characters; the service takes {limits.characters}")
        if not 1 <= self.count <= _MOST or self.start < 0:
            raise UserError(f"count is 1 to {_MOST}, and start at least 0")
        kept = None if self.verdict is None else self.verdict == "kept"
        return Filter(kept=kept, origin=self.origin, reason=self.reason, words=self.words)


@dataclass(frozen=True)
class JudgedText:
    """A text of a sample, and what was decided."""

    text: str
    origin: Literal["web", "synthetic"]
    kept: bool
    reason: str
    itm: float | None
    """probability that it matches the image"""
    itc: float | None
    """cosine of the embeddings"""
    fits: bool
    """whether the request's filter wants it; a sample is found with all its texts"""


@dataclass(frozen=True)
class JudgedSample:
    """A sample with all its texts."""

    name: str
    """of its key in the source the last part; no path of the server"""
    status: str
    """"ok", or why the image could not be used"""
    image: str | None
    """address on this server; None where it could not be used"""
    texts: list[JudgedText]


@dataclass(frozen=True)
class CapFiltReply:
    """A page of samples, in the order of the run's table."""

    samples: list[JudgedSample]
    next: int | None
    """`start` of the next page, which may find nothing more where a filter is narrow; None at the end"""


@dataclass(frozen=True)
class DecisionCount:
    """How many texts share an origin, a decision and its reason."""

    origin: Literal["web", "synthetic"]
    kept: bool
    reason: str
    meaning: str
    """of the reason, a short sentence"""
    texts: int


@dataclass(frozen=True)
class CapFiltSummary:
    """What the run came to."""

    policy: str
    threshold: float
    """least ITM probability of a text that is kept"""
    samples: int
    unusable: int
    """of them, those whose image could not be used"""
    counts: list[DecisionCount]


def add_decisions(service: Performing, app: Any, decisions: Decisions) -> None:
    """Add the endpoints `/v1/capfilt`: GET sums up, POST browses; images of the run's source lie below it."""
    from fastapi import Request, Response

    limits = service.limits

    async def summary() -> CapFiltSummary:
        counts = [
            DecisionCount(one.origin, one.kept, one.reason, REASONS.get(one.reason, ""), one.texts)
            for one in decisions.counts
        ]
        policy = decisions.policy
        return CapFiltSummary(policy.name, policy.threshold, decisions.samples, decisions.unusable, counts)

    async def browse(request: Request) -> CapFiltReply:
        body = await service.read(request)
        with refusing():
            asked = await parse(body, request.headers, CapFiltRequest)
            wanted = asked.filter(limits)
        try:
            found = await asyncio.to_thread(decisions.find, wanted, start=asked.start, count=asked.count)
        except UserError:  # its sentence may name a path
            raise Refused(503, "the table of decisions has changed; start the service anew") from None
        return CapFiltReply([_sample(one) for one in found.samples], found.next)

    async def image(number: int) -> Response:
        def read() -> bytes:
            return jpeg(decisions.image(number, min_side=SIDE, max_pixels=limits.pixels))

        try:
            return Response(await asyncio.to_thread(read), media_type="image/jpeg")
        except (UserError, BrokenSample):  # likewise
            raise Refused(404, "this image is gone, or cannot be read any more") from None

    content = {kind: {"schema": schema_of(CapFiltRequest)} for kind in ("application/json", "multipart/form-data")}
    app.add_api_route("/v1/capfilt", summary, response_model=CapFiltSummary, summary="What a CapFilt run came to")
    app.add_api_route(
        "/v1/capfilt",
        browse,
        methods=["POST"],
        summary=(CapFiltRequest.__doc__ or "").rstrip("."),
        response_model=CapFiltReply,
        responses={status: {"model": Failure} for status in (401, 408, 413, 422, 429, 503)},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )
    app.add_api_route(
        "/v1/capfilt/images/{number:int}",
        image,
        response_class=Response,
        response_model=None,
        responses={200: {"content": {"image/jpeg": {}}}},
    )


def _sample(found: Judged) -> JudgedSample:
    row = found.row
    usable = row.status == "ok"
    return JudgedSample(
        PurePath(row.key).name,
        row.status,
        f"/v1/capfilt/images/{found.number}" if usable else None,
        [
            JudgedText(
                text.text,
                text.origin,
                text.kept,
                text.reason,
                _number(text.itm),
                _number(text.itc),
                fits,
            )
            for text, fits in zip(row.texts, found.fits, strict=True)
        ],
    )


def _number(value: float | None) -> float | None:
    """None for what is not a number, which JSON does not have."""
    return None if value is None or value != value else rounded(value)
