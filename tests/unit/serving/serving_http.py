"""A service behind a real port of this machine, for real clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from openblip.serving.app import Service
from openblip.serving.process import listen_at

__all__ = ["serving_at"]


@contextmanager
def serving_at(service: Service) -> Iterator[str]:
    """The address of a service that runs in a thread meanwhile; its engine is closed afterwards."""
    bound = listen_at("127.0.0.1", 0)
    config = uvicorn.Config(
        service.app, log_level="warning", access_log=False, ws="none", lifespan="on", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service has not started"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        bound.close()
    assert not thread.is_alive(), "the service has not stopped"
