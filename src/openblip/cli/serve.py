"""The command `serve`: models, and an image index, over HTTP with a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from tyro.conf import Positional, UseAppendAction, arg

from openblip.cli.arguments import CudaGraphs, Device, Dtype, Tokenizer, need
from openblip.cli.engines import EngineOptions, Replicas, open_local, open_ray
from openblip.cli.results import check_counts
from openblip.core.errors import UserError, require
from openblip.core.text import counted, read_list

if TYPE_CHECKING:
    from openblip.serving.engine import Engine

__all__ = ["KEYS", "serve"]

KEYS = "OPENBLIP_API_KEYS"
"""the variable that holds API keys, with commas between them"""


def serve(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[MODEL ...]", help_behavior_hint="")] = (),
    /,
    *,
    index: Annotated[str | None, arg(metavar="INDEX", help_behavior_hint="")] = None,
    capfilt: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None,
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, arg(metavar="PORT")] = 8000,
    tokenizer: Tokenizer = None,
    batch_size: int = 16,
    gather_ms: float = 4.0,
    cache_mb: int = 256,
    engine: Literal["local", "ray"] = "local",
    replicas: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    min_replicas: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    max_replicas: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    ray_address: Annotated[str, arg(metavar="ADDRESS", help_behavior_hint="")] = "",
    api_keys: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    cors_origin: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="ORIGIN", help_behavior_hint="(repeat it for more)")
    ] = (),
    allow_url_domain: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="DOMAIN", help_behavior_hint="(repeat it for more)")
    ] = (),
    max_body_mb: float = 16.0,
    max_pixels: int = 40_000_000,
    max_texts: int = 256,
    max_tokens: int = 128,
    max_queue: int = 128,
    max_seconds: float = 60.0,
    stop_seconds: float = 30.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    cuda_graphs: CudaGraphs = False,
) -> None:
    """Serve models over HTTP, with a page to try them: captions, answers, matching, embeddings, heat maps, search.

    Args:
        models: model folders, checkpoint files or names on the hub, each of which serves what it can.
        index: an image index to search, made by one of the models: a folder or an address in PostgreSQL.
        capfilt: a folder of openblip capfilt, whose decisions can be browsed; it needs no model.
        host: address to listen at; 127.0.0.1 is reached from this machine alone, 0.0.0.0 from everywhere.
        port: to listen at; 0 takes a free one.
        batch_size: requests that are computed together.
        gather_ms: milliseconds that a request waits for others of its kind.
        cache_mb: of image features that are kept for following requests about the same images.
        engine: this process, or replicas of Ray Serve.
        replicas: processes that compute, with --engine ray; left out, one.
        min_replicas: the least number, where Ray adds and removes replicas with the load.
        max_replicas: the largest number, likewise.
        ray_address: of a running Ray cluster ("auto": that of this machine); left out, Ray is started here.
        api_keys: a file of keys, one a line, of which a request must bring one (or OPENBLIP_API_KEYS=KEY,KEY).
        cors_origin: a site whose pages may ask, such as https://example.com.
        allow_url_domain: a host whose images requests may name by address, or *.example.com for all below one.
        max_body_mb: largest request, and largest image by address.
        max_pixels: largest image, width x height.
        max_texts: texts of one request.
        max_tokens: longest caption or answer.
        max_queue: requests in hand; one more is refused with 429.
        max_seconds: for one request; then it is refused with 504.
        stop_seconds: for the requests in hand when a signal stops the service.
    """
    if capfilt is None:
        need(models, "at least one model to serve")
    check_counts(batch_size=batch_size, max_pixels=max_pixels, max_texts=max_texts, max_tokens=max_tokens)
    check_counts(max_queue=max_queue)
    check_counts(0, gather_ms=gather_ms, cache_mb=cache_mb, stop_seconds=stop_seconds)
    check_counts(0.001, max_body_mb=max_body_mb, max_seconds=max_seconds)
    for package in ("fastapi", "uvicorn", "python_multipart"):
        require(package, "serving")
    numbers = {"replicas": replicas, "min_replicas": min_replicas, "max_replicas": max_replicas}
    check_counts(**{name: number for name, number in numbers.items() if number is not None})
    asked = Replicas(
        engine=engine, number=replicas or 0, least=min_replicas or 0, most=max_replicas or 0, address=ray_address
    )
    _check_origins(cors_origin)
    keys = _keys(api_keys)
    from openblip.bootstrap.browse import Decisions
    from openblip.serving.addresses import Addresses
    from openblip.serving.app import Service
    from openblip.serving.limits import Limits
    from openblip.serving.naming import name_models
    from openblip.serving.process import listen_at, loopback, run

    limits = Limits(
        body_bytes=round(max_body_mb * 2**20),
        pixels=max_pixels,
        texts=max_texts,
        tokens=max_tokens,
        queue=max_queue,
        seconds=max_seconds,
    )
    opener = Addresses(allow_url_domain, max_bytes=limits.body_bytes) if allow_url_domain else None
    bound = listen_at(host, port)
    decisions = None if capfilt is None else Decisions(capfilt)
    opening = EngineOptions(
        models=name_models(models),
        index=index,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        cuda_graphs=cuda_graphs,
        batch_size=batch_size,
        gather_ms=gather_ms,
        cache_bytes=cache_mb * 2**20,
        max_pixels=max_pixels,
    )
    computes, computing = _engine(opening, asked, stop_seconds)
    hosts = {"localhost", "127.0.0.1", "::1", host} if loopback(host) else None
    service = Service(
        computes, limits, decisions=decisions, keys=keys, origins=cors_origin, hosts=hosts, opener=opener
    )
    shown = f"[{host}]" if ":" in host else host
    where = f"http://{shown}:{bound.getsockname()[1]}"
    serving = [*computes.models, *([] if capfilt is None else [f"the decisions of {capfilt}"])]
    run(
        service,
        bound,
        stop_seconds=stop_seconds,
        banner=f"openblip: serving {', '.join(serving)} at {where}{computing}",
    )


def _engine(opening: EngineOptions, asked: Replicas, stop_seconds: float) -> tuple[Engine, str]:
    """The engine, and what it computes with, for the banner."""
    if asked.engine == "ray":
        started = open_ray(opening, asked, stop_seconds=stop_seconds)
        least, most = asked.bounds
        number = f"{least} to {counted(most, 'replica')}" if most > least else counted(least, "replica")
        return started, f" ({started.computing}; {number})"
    opened = open_local(opening)
    return opened.engine, f" ({opened.computing})" if opened.computing else ""


def _check_origins(origins: tuple[str, ...]) -> None:
    for origin in origins:
        parts = urlsplit(origin)
        if (
            parts.scheme not in ("http", "https")
            or origin != f"{parts.scheme}://{parts.netloc}"
            or not parts.netloc
        ):
            raise UserError(f'--cors-origin: "{origin}" is no site; write one such as https://example.com')


def _keys(file: Path | None) -> list[str]:
    """API keys; none lets everyone in."""
    if file is None:
        return [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
    if not file.is_file():
        raise UserError(f"there is no file {file} with API keys")
    keys = read_list(file)
    if not keys:
        raise UserError(f"{file} holds no API key")
    return keys
