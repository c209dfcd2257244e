"""The command `serve`: models, and an image index, over HTTP with a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from openblip.cli.arguments import Device, Dtype, Tokenizer, need
from openblip.cli.results import check_counts, open_predictor
from openblip.core.errors import UserError, require
from openblip.core.text import read_list

if TYPE_CHECKING:
    from openblip.tasks.predictor import Predictor

__all__ = ["KEYS", "serve"]

KEYS = "OPENBLIP_API_KEYS"
"""the variable that holds API keys, with commas between them"""


def serve(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL ...", help_behavior_hint="")] = (),
    /,
    *,
    index: Annotated[str | None, arg(metavar="INDEX", help_behavior_hint="")] = None,
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, arg(metavar="PORT")] = 8000,
    tokenizer: Tokenizer = None,
    batch_size: int = 16,
    gather_ms: float = 4.0,
    cache_mb: int = 256,
    api_keys: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    cors_origin: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="ORIGIN", help_behavior_hint="(repeat it for more)")
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
) -> None:
    """Serve models over HTTP, with a page to try them: captions, answers, matching, embeddings, heat maps, search.

    Args:
        models: model folders, checkpoint files or names on the hub, each of which serves what it can.
        index: an image index to search, made by one of the models: a folder or an address in PostgreSQL.
        host: address to listen at; 127.0.0.1 is reached from this machine alone, 0.0.0.0 from everywhere.
        port: to listen at; 0 takes a free one.
        batch_size: requests that are computed together.
        gather_ms: milliseconds that a request waits for others of its kind.
        cache_mb: of image features that are kept for following requests about the same images.
        api_keys: a file of keys, one a line, of which a request must bring one (or OPENBLIP_API_KEYS=KEY,KEY).
        cors_origin: a site whose pages may ask, such as https://example.com.
        max_body_mb: largest request.
        max_pixels: largest image, width x height.
        max_texts: texts of one request.
        max_tokens: longest caption or answer.
        max_queue: requests in hand; one more is refused with 429.
        max_seconds: for one request; then it is refused with 504.
        stop_seconds: for the requests in hand when a signal stops the service.
    """
    need(models, "at least one model to serve")
    check_counts(batch_size=batch_size, max_pixels=max_pixels, max_texts=max_texts, max_tokens=max_tokens)
    check_counts(max_queue=max_queue)
    check_counts(0, gather_ms=gather_ms, cache_mb=cache_mb, stop_seconds=stop_seconds)
    check_counts(0.001, max_body_mb=max_body_mb, max_seconds=max_seconds)
    for package in ("fastapi", "uvicorn", "python_multipart"):
        require(package, "serving")
    keys = _keys(api_keys)
    from openblip.serving.app import Service
    from openblip.serving.limits import Limits
    from openblip.serving.local import LocalEngine
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
    bound = listen_at(host, port)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "batch_size": batch_size, "tokenizer": tokenizer}
    predictors = {name: open_predictor(model, **options) for name, model in name_models(models).items()}
    engine = LocalEngine(
        predictors,
        index=None if index is None else _open_index(index, predictors),
        batch_size=batch_size,
        gather_ms=gather_ms,
        cache_bytes=cache_mb * 2**20,
        max_pixels=max_pixels,
    )
    hosts = {"localhost", "127.0.0.1", "::1", host} if loopback(host) else None
    service = Service(engine, limits, keys=keys, origins=cors_origin, hosts=hosts)
    shown = f"[{host}]" if ":" in host else host
    where = f"http://{shown}:{bound.getsockname()[1]}"
    computing = next(iter(predictors.values())).computing
    run(
        service,
        bound,
        stop_seconds=stop_seconds,
        banner=f"openblip: serving {', '.join(predictors)} at {where} ({computing})",
    )


def _open_index(path: str, predictors: dict[str, Predictor]) -> tuple[Any, str]:
    """The image index, with the id of the model that made it."""
    from openblip.index import ImageIndex

    refused: UserError | None = None
    for name, predictor in predictors.items():
        if "embed" in predictor.can:
            try:
                return ImageIndex.open(path, model=predictor), name
            except UserError as error:
                refused = error
    raise refused or UserError("none of the models can search the index; name the one that made the index")


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
