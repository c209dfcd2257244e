"""What stands before the endpoints: limits of all requests together, keys, origins; and what is dropped."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from serving_small import StandIn, ask, png

from openblip.core.errors import UserError
from openblip.serving.app import Service
from openblip.serving.body import Refused, read_body
from openblip.serving.guard import HANG_UP
from openblip.serving.limits import Limits
from openblip.serving.process import listen_at

IMAGE = {"image": png()}
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/caption",
    "raw_path": b"/v1/caption",
    "query_string": b"",
    "scheme": "http",
    "server": ("localhost", 80),
    "root_path": "",
}
"""of a request as ASGI has it"""


def caption(client: httpx.AsyncClient, **options: Any) -> Any:
    return client.post("/v1/caption", files=IMAGE, **options)


async def until_held(made: StandIn, count: int) -> None:
    """Wait until `count` requests have come to the engine."""
    while len(made.asked) < count:
        await asyncio.sleep(0.001)


def test_a_full_queue_is_refused_with_the_time_to_wait() -> None:
    made = StandIn(hold=True)
    service = Service(made, Limits(queue=3))

    async def asking(client: httpx.AsyncClient) -> tuple[Any, list[Any], Any]:
        held = [asyncio.create_task(caption(client)) for _ in range(3)]
        await until_held(made, 3)
        full = await caption(client)
        alive = await client.get("/healthz")
        made.hold = False
        answers = await asyncio.gather(*held)
        assert alive.status_code == 200
        return full, answers, await caption(client)

    full, answers, after = ask(service, asking)
    assert full.status_code == 429
    assert 1 <= int(full.headers["retry-after"]) <= 30
    assert "too many requests" in full.json()["error"]
    assert [answer.status_code for answer in (*answers, after)] == [200] * 4
    assert len(made.asked) == 4, "what was refused has not come to the engine"
    assert service.requests.in_hand == 0


def test_a_request_that_takes_too_long_gets_504_and_is_dropped() -> None:
    made = StandIn(hold=True)
    answer = ask(Service(made, Limits(seconds=0.05)), caption)
    assert answer.status_code == 504
    assert answer.json() == {"error": "there was no answer within 0.05 seconds; the work is dropped"}
    assert made.dropped == 1


def test_the_work_of_a_client_that_hangs_up_is_dropped() -> None:
    made = StandIn(hold=True)
    service = Service(made)
    request = httpx.Request("POST", "http://localhost/v1/caption", files=IMAGE)
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    scope = {**SCOPE, "headers": headers}
    body = request.read()
    sent: list[Any] = []

    async def go() -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await until_held(made, 1)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await service.app(scope, receive, send)
        while not made.dropped:
            await asyncio.sleep(0.001)

    asyncio.run(go())
    assert made.dropped == 1
    assert service.requests.in_hand == 0
    assert service.requests.answered["/v1/caption", HANG_UP] == 1


def test_a_client_that_goes_while_it_sends_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    made = StandIn()
    service = Service(made)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {**SCOPE, "headers": headers}
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def go() -> None:
        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            pass

        await service.app(scope, receive, send)

    asyncio.run(go())
    assert not made.asked
    assert service.requests.in_hand == 0
    assert "failed" not in caplog.text, "that is no mistake of ours"


def test_a_body_that_comes_too_slowly_gets_408() -> None:
    made = StandIn()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    headers = {"content-type": "application/json"}
    service = Service(made, Limits(body_seconds=0.05))
    answer = ask(service, lambda client: client.post("/v1/caption", content=slow(), headers=headers))
    assert answer.status_code == 408
    assert answer.json() == {"error": "the body did not come within 0.05 seconds"}
    assert not made.asked


def test_a_body_that_is_too_large_is_refused_before_and_while_it_comes() -> None:
    limits = Limits(body_bytes=1000)
    taken: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            taken.append(300)
            yield b"x" * 300

    for length, pieces in (("1001", 0), (None, 4), ("1000", 4)):
        taken.clear()
        with pytest.raises(Refused) as refused:
            asyncio.run(read_body(endless(), length, limits))
        assert refused.value.status == 413
        assert len(taken) == pieces

    async def asking(client: httpx.AsyncClient) -> list[int]:
        sizes = (1000, 1001)
        headers = {"content-type": "application/json"}
        return [(await client.post("/v1/caption", content=b" " * n, headers=headers)).status_code for n in sizes]

    assert ask(Service(StandIn(), limits), asking) == [422, 413]


def test_keys_are_needed_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))

    async def asking(client: httpx.AsyncClient) -> dict[str, int]:
        found = {}
        for given in (
            "",
            "Bearer second",
            "bearer  second",
            "Bearer secon",
            "Bearer secönd",
            "Basic second",
            "second",
        ):
            headers = {"authorization": given.encode("latin-1")} if given else {}
            compared.clear()
            found[given] = (await caption(client, headers=headers)).status_code
            # All keys are looked at, whichever is right, and by digests of one length.
            assert len(compared) in (0, 3)
            assert {len(part) for pair in compared for part in pair} <= {32}
        for path in ("/v1/models", "/metrics", "/v1/thumbnails/a", "/healthz", "/readyz", "/", "/page.js"):
            found[path] = (await client.get(path)).status_code
        return found

    found = ask(Service(StandIn(), keys=("first", "second", "third")), asking)
    right = {"Bearer second", "bearer  second", "/healthz", "/readyz", "/", "/page.js"}
    assert {given for given, status in found.items() if status == 200} == right
    assert {status for given, status in found.items() if given not in right} == {401}


def test_pages_of_other_sites_may_not_ask_unless_named() -> None:
    mine, theirs = "https://mine.example", "https://theirs.example"

    async def asking(client: httpx.AsyncClient) -> dict[str, httpx.Response]:
        preflight = {"access-control-request-method": "POST"}
        return {
            "own": await caption(client, headers={"origin": "http://localhost"}),
            "mine": await caption(client, headers={"origin": mine}),
            "theirs": await caption(client, headers={"origin": theirs}),
            "asks mine": await client.options("/v1/caption", headers={"origin": mine, **preflight}),
            "asks theirs": await client.options("/v1/caption", headers={"origin": theirs, **preflight}),
        }

    off = ask(Service(StandIn()), asking)
    assert {name for name, answer in off.items() if answer.is_success} == {"own"}
    assert not any("access-control-allow-origin" in answer.headers for answer in off.values())
    on = ask(Service(StandIn(), origins=(mine,)), asking)
    assert {name for name, answer in on.items() if answer.is_success} == {"own", "mine", "asks mine"}
    assert on["mine"].headers["access-control-allow-origin"] == mine
    assert "authorization" in on["asks mine"].headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in on["theirs"].headers


def test_a_local_service_is_called_by_its_own_names_alone() -> None:
    """A page whose name was made to lead to 127.0.0.1 reads nothing."""
    service = Service(StandIn(), hosts={"localhost", "127.0.0.1"})

    async def asking(client: httpx.AsyncClient) -> list[int]:
        names = ("localhost:8000", "127.0.0.1", "evil.example", "")
        return [(await client.get("/v1/models", headers={"host": name})).status_code for name in names]

    assert ask(service, asking) == [200, 200, 421, 421]


def test_readiness_ends_before_work_does() -> None:
    made = StandIn(hold=True)
    service = Service(made)

    async def asking(client: httpx.AsyncClient) -> tuple[int, int, Any, int, Any]:
        before = (await client.get("/readyz")).status_code
        held = asyncio.create_task(caption(client))
        await until_held(made, 1)
        service.app.stopping = True
        after = (await client.get("/readyz")).status_code
        new = await caption(client)
        alive = (await client.get("/healthz")).status_code
        made.hold = False
        return before, after, new, alive, await held

    before, after, new, alive, held = ask(service, asking)
    assert (before, after, alive) == (200, 503, 200)
    assert new.status_code == 503
    assert "retry-after" in new.headers
    assert held.status_code == 200, "what was in hand is finished"


def test_every_answer_is_guarded() -> None:
    async def asking(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get("/"), await client.get("/nothing"), await caption(client)]

    for answer in ask(Service(StandIn()), asking):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_metrics_count_what_was_answered() -> None:
    async def asking(client: httpx.AsyncClient) -> str:
        await caption(client)
        await caption(client)
        await client.post("/v1/caption", json={})
        await client.get("/made/up/path")
        return (await client.get("/metrics")).text

    told = ask(Service(StandIn()), asking).splitlines()
    assert 'openblip_requests_total{path="/v1/caption",status="200"} 2' in told
    assert 'openblip_requests_total{path="/v1/caption",status="422"} 1' in told
    assert 'openblip_requests_total{path="other",status="404"} 1' in told
    assert 'openblip_request_seconds_count{path="/v1/caption"} 3' in told
    assert 'openblip_request_seconds_bucket{path="/v1/caption",le="+Inf"} 3' in told
    assert "openblip_ready 1" in told
    assert "openblip_requests_in_hand 0" in told
    assert not any("made/up" in line for line in told), "clients must not make up series"


def test_headers_that_are_no_addresses() -> None:
    async def asking(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.get("/healthz", headers={"host": "[abc"}),
            await client.get("/healthz", headers={"origin": "http://["}),
        ]

    for answer in ask(Service(StandIn()), asking):
        assert answer.status_code == 400
        assert answer.json() == {"error": "the header Host or Origin is no address"}


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_there_is_not(port: int) -> None:
    with pytest.raises(UserError, match=f"--port is from 0 to 65535, not {port}"):
        listen_at("127.0.0.1", port)
