"""Checks before the endpoints: who may send requests, how many at a time; and the headers of every answer.

Plain ASGI, so that the endpoints see that a client has closed its connection.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from openblip.serving.body import Refused
from openblip.serving.counting import Requests
from openblip.serving.failures import FAILED, HANG_UP, failure
from openblip.serving.limits import Limits

__all__ = ["FAILED", "HANG_UP", "Guard"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_LOG = logging.getLogger(__name__)


class Guard:
    """Counts requests, refuses those that are not allowed, and answers those that fail.

    Args:
        app: the endpoints.
        limits: of the service.
        requests: the counts.
        paths: endpoints that are told apart in the counts.
        keys: API keys; without any, everyone may ask.
        origins: of other sites whose pages may ask; none unless named.
        hosts: names that the service may be called by, without ports; None is any.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        requests: Requests,
        *,
        paths: Collection[str],
        keys: Sequence[str] = (),
        origins: Collection[str] = (),
        hosts: Collection[str] | None = None,
    ) -> None:
        self.app, self.limits, self.requests = app, limits, requests
        self.stopping = False
        self._paths, self._origins, self._hosts = frozenset(paths), frozenset(origins), hosts
        self._keys = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        scope.setdefault("state", {})["began"] = began
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        more = [*_HEADERS, *self._cors(headers)]

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        counted = False
        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS":
                raise Refused(204, "")
            if scope["method"] == "POST":
                self._take_in()
                counted = True
            await self.app(scope, receive, answer)
        except Refused as refused:
            if not status:
                await _refuse(answer, refused, scope["path"])
        except Exception:  # noqa: BLE001
            # What went wrong stands in the log, not in the answer.
            _LOG.exception("a request has failed")
            if not status:
                await _refuse(answer, Refused(500, FAILED), scope["path"])
        finally:
            self.requests.in_hand -= counted
            path = scope["path"] if scope["path"] in self._paths else "other"
            self.requests.count(path, status or HANG_UP, time.monotonic() - began)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        try:
            host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
            site = urlsplit(headers.get("origin", "")).netloc
        except ValueError:  # such as "[" alone
            raise Refused(400, "the header Host or Origin is no address") from None
        if self._hosts is not None and host not in self._hosts:
            raise Refused(421, "this service has another name; start it with --host to be called by that one")
        origin = headers.get("origin")
        foreign = origin is not None and site != headers.get("host")
        if foreign and origin not in self._origins:
            raise Refused(403, "pages of other sites may not ask; --cors-origin lets one in")
        if scope["method"] == "OPTIONS" and foreign:
            return  # browsers ask beforehand, and without the key
        if self._keys and (scope["path"].startswith("/v1/") or scope["path"] == "/metrics"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._knows(given.strip()):
                raise Refused(
                    401, "an API key is needed: Authorization: Bearer KEY", {"www-authenticate": "Bearer"}
                )

    def _knows(self, given: str) -> bool:
        """Whether it is one of the keys, in a time that depends neither on which nor on how much of it is right."""
        found, digest = False, _digest(given.encode("latin-1", "surrogateescape"))
        for key in self._keys:
            found |= hmac.compare_digest(key, digest)
        return found

    def _take_in(self) -> None:
        if self.stopping:
            raise Refused(503, "the service is stopping", {"retry-after": "10", "connection": "close"})
        if self.requests.in_hand >= self.limits.queue:
            raise Refused(
                429, "too many requests are waiting; try again", {"retry-after": str(self._retry_seconds())}
            )
        self.requests.in_hand += 1

    def _retry_seconds(self) -> int:
        """Whole seconds after which a request is likely to find room: those that one has taken on average."""
        done = sum(sum(counts) for path, counts in self.requests.histogram.items() if path.startswith("/v1/"))
        spent = sum(seconds for path, seconds in self.requests.seconds.items() if path.startswith("/v1/"))
        return max(1, min(30, math.ceil(spent / done))) if done else 1

    def _cors(self, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin is None or origin not in self._origins:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-allow-methods", b"GET, POST"),
            (b"vary", b"origin"),
        ]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def _refuse(send: Send, refused: Refused, path: str) -> None:
    told = failure(path, refused.status, refused.message)
    body = json.dumps(told, ensure_ascii=False).encode() if refused.message else b""
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
