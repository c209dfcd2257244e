"""Runs a service: its socket, its signals, its end.

SIGTERM and SIGINT turn readiness off; what is in hand is finished, within a bound, and the process ends with code
0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys

from openblip.core.errors import UserError, require
from openblip.core.text import counted
from openblip.serving.app import Service

__all__ = ["listen_at", "loopback", "run"]

_POLL = 0.02
_SAME_SECONDS = 1.0
"""a signal that comes again so soon is the same one: launchers send it to a process and to its group"""


def loopback(host: str) -> bool:
    """Whether only programs of this machine reach it."""
    return host in ("localhost", "::1") or host.startswith("127.")


def listen_at(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet.

    Raises:
        UserError: the address cannot be had.
    """
    if not 0 <= port < 2**16:  # the system would take the lowest 16 bits
        raise UserError(f"--port is from 0 to 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot listen at {host}, port {port}: {reason}; choose another --host or --port"
        ) from error
    return bound


def run(service: Service, bound: socket.socket, *, stop_seconds: float = 30.0, banner: str = "") -> None:
    """Serve until a signal comes.

    Args:
        bound: from `listen_at`.
        stop_seconds: what is in hand at a signal has so long to be finished.
        banner: printed to standard error when requests are taken.
    """
    asyncio.run(_run(service, bound, stop_seconds, banner))


async def _run(service: Service, bound: socket.socket, stop_seconds: float, banner: str) -> None:
    require("uvicorn", "serving")
    import uvicorn

    config = uvicorn.Config(
        service.app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        lifespan="on",
        ws="none",
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    signalled, first = asyncio.Event(), 0.0
    loop = asyncio.get_running_loop()

    def stop(signum: int) -> None:
        nonlocal first
        if not signalled.is_set():
            first = loop.time()
        elif loop.time() - first > _SAME_SECONDS:
            os._exit(128 + signum)
        service.app.stopping = True
        signalled.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop, signum)
    serving = loop.create_task(server.serve(sockets=[bound]))
    while not server.started and not serving.done():
        await asyncio.sleep(_POLL)
    if banner:
        print(banner, file=sys.stderr, flush=True)
    waiting = loop.create_task(signalled.wait())
    await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
    if signalled.is_set():
        number = service.requests.in_hand
        after = f" after {counted(number, 'request')} in hand, in at most {stop_seconds:g} s" if number else ""
        print(f"openblip: a signal stops the service{after}", file=sys.stderr, flush=True)
    end = loop.time() + stop_seconds
    while service.requests.in_hand and loop.time() < end:
        await asyncio.sleep(_POLL)
    server.should_exit = True
    waiting.cancel()
    await serving
