"""`openblip serve` as a process: it says where it is, answers, refuses what is wrong, and ends well."""

from __future__ import annotations

import concurrent.futures
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_commands import CommandServer, Running
from job_world import World

pytestmark = pytest.mark.slow

# A model that takes its time, so that a signal finds work in hand.
SLOWLY = """
import time
from openblip.serving.model import ServedModel
compute = ServedModel.compute
ServedModel.compute = lambda self, batch: (time.sleep({seconds}), compute(self, batch))[1]
"""


def address(running: Running, seconds: float = 200) -> str:
    """Where it listens, once it says so."""
    end = time.monotonic() + seconds
    while not (running.err.exists() and (found := re.search(r"at (http://\S+)", running.err.read_text()))):
        assert time.monotonic() < end, "it does not start"
        time.sleep(0.02)
    return found[1]


def caption(where: str, image: str, **fields: Any) -> httpx.Response:
    with httpx.Client(base_url=where, timeout=200, trust_env=False) as client:
        return client.post("/v1/caption", files={"image": Path(image).read_bytes()}, data=fields)


def get(where: str, path: str) -> httpx.Response:
    return httpx.get(where + path, trust_env=False)


def test_it_serves_what_the_commands_give(openblip: CommandServer, world: World, model: Path) -> None:
    running = openblip.start("serve", model, "--port", 0, "--dtype", "float32", "--max-body-mb", 0.1)
    where = address(running)
    assert where.startswith("http://127.0.0.1:")
    assert get(where, "/readyz").status_code == 200
    told = get(where, "/v1/models").json()
    assert [one["id"] for one in told["models"]] == ["first"]
    answer = caption(where, world.images[0], beams=3)
    command = openblip("caption", world.images[0], "--model", model, "--dtype", "float32")
    assert answer.json()["captions"][0]["text"] == command.records[0]["captions"][0]["text"]
    with httpx.Client(base_url=where, timeout=60, trust_env=False) as client:
        large = client.post("/v1/caption", files={"image": b"x" * 5_000_000})
        assert large.status_code == 413
        assert "larger than 104,858 bytes" in large.json()["error"]
        assert client.get("/readyz").status_code == 200
    running.signal(signal.SIGTERM)
    done = running.wait(60)
    assert (done.code, done.out) == (0, "")
    assert done.err.endswith("openblip: a signal stops the service\n")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_hand(
    openblip: CommandServer, world: World, model: Path, signum: signal.Signals
) -> None:
    running = openblip.start("serve", model, "--port", 0, before=SLOWLY.format(seconds=2.0))
    where = address(running)
    with concurrent.futures.ThreadPoolExecutor(3) as pool, httpx.Client(base_url=where, trust_env=False) as client:
        held = [pool.submit(caption, where, image) for image in world.images[:3]]
        while "openblip_requests_in_hand 3" not in client.get("/metrics").text:
            time.sleep(0.02)
        running.signal(signum)
        while (ready := client.get("/readyz")).status_code == 200:
            time.sleep(0.01)
        assert ready.json() == {"ready": False}
        assert [one.result().status_code for one in held] == [200] * 3
    done = running.wait(60)
    assert done.code == 0
    assert "openblip: a signal stops the service after 3 requests in hand, in at most 30 s\n" in done.err


def test_the_end_is_bounded(openblip: CommandServer, world: World, model: Path) -> None:
    """Work that would take a minute is given up after --stop-seconds."""
    running = openblip.start(
        "serve", model, "--port", 0, "--stop-seconds", 0.5, before=SLOWLY.format(seconds=0.0) + ENDLESS
    )
    where = address(running)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(caption, where, world.images[0])
        while "openblip_batches_total 1" not in get(where, "/metrics").text:
            time.sleep(0.02)
        running.signal(signal.SIGTERM)
        done = running.wait(60)
        assert done.code == 0, done.err
        with pytest.raises(httpx.HTTPError):
            held.result().raise_for_status()


# Each layer takes half a second: computing is dropped between two of them.
ENDLESS = """
import torch
forward = torch.nn.LayerNorm.forward
torch.nn.LayerNorm.forward = lambda self, hidden: (time.sleep(0.5), forward(self, hidden))[1]
"""


def test_a_client_that_hangs_up_leaves_no_work(openblip: CommandServer, world: World, model: Path) -> None:
    """Its caption would take minutes, and is given up between two layers."""
    running = openblip.start("serve", model, "--port", 0, before="import time" + ENDLESS)
    where = address(running)
    request = httpx.Request("POST", where + "/v1/caption", files={"image": Path(world.images[0]).read_bytes()})
    body = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((request.url.host, request.url.port or 80)) as client:
        client.sendall(f"POST /v1/caption HTTP/1.1\r\n{head}\r\n".encode() + body)
        while "openblip_batches_total 1" not in get(where, "/metrics").text:
            time.sleep(0.02)
    end = time.monotonic() + 100
    while "openblip_dropped_total 1" not in get(where, "/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.05)
    running.signal(signal.SIGTERM)
    assert running.wait(60).code == 0


def test_mistakes_at_the_start_are_sentences(openblip: CommandServer, model: Path, tmp_path: Path) -> None:
    assert "name at least one model" in openblip.refuse("serve")
    assert "there is no model at" in openblip.refuse("serve", tmp_path / "none.pth")
    assert "is named twice" in openblip.refuse("serve", model, model)
    assert "there is no file" in openblip.refuse("serve", model, "--api-keys", tmp_path / "keys.txt")
    assert "--max-seconds must be at least 0.001, not 0" in openblip.refuse("serve", model, "--max-seconds", 0)
    told = openblip.refuse("serve", model, "--allow-url-domain", "https://example.com")
    assert '"https://example.com" is no domain whose images can be opened' in told
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = openblip.refuse("serve", model, "--port", port)
    assert f"cannot listen at 127.0.0.1, port {port}" in sentence
    missing = "import sys; sys.modules['fastapi'] = None"
    told = openblip.refuse("serve", model, before=missing)
    assert told == 'fastapi is not installed; run: pip install "openblip[serving]"'


def test_keys_come_from_a_file(openblip: CommandServer, model: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("one\ntwo\n")
    running = openblip.start("serve", model, "--port", 0, "--api-keys", tmp_path / "keys.txt")
    where = address(running)
    assert get(where, "/v1/models").status_code == 401
    told = httpx.get(where + "/v1/models", headers={"authorization": "Bearer two"}, trust_env=False)
    assert told.status_code == 200
    running.signal(signal.SIGTERM)
    assert running.wait(60).code == 0
