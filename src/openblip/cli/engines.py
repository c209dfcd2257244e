"""What `openblip serve` computes with: models and an index in one process, or in replicas of Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from openblip.cli.results import open_predictor
from openblip.core.errors import UserError, require

if TYPE_CHECKING:
    from openblip.serving.ray_engine import Opened, RayEngine
    from openblip.tasks.predictor import Predictor

__all__ = ["EngineOptions", "Replicas", "open_local", "open_ray"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What the engine of one process is opened with; travels to replicas."""

    models: Mapping[str, str]
    """sources by the ids that clients call them by"""
    index: str | None
    """a folder, or the address of a PostgreSQL table"""
    tokenizer: str | None
    device: str
    dtype: str
    cuda_graphs: bool
    batch_size: int
    gather_ms: float
    cache_bytes: int
    max_pixels: int


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """The options of --engine ray as they are given; 0 is left out.

    Raises:
        UserError: they make no sense together, or without --engine ray.
        MissingExtra: Ray is not installed.
    """

    engine: Literal["local", "ray"]
    number: int
    least: int
    most: int
    address: str

    def __post_init__(self) -> None:
        if self.engine == "local" and (self.number or self.least or self.most or self.address):
            raise UserError("--replicas, --min-replicas, --max-replicas and --ray-address are for --engine ray")
        if self.number and (self.least or self.most):
            raise UserError("--replicas and --min-replicas with --max-replicas exclude each other; leave one out")
        if self.most and self.bounds[0] > self.most:
            raise UserError(f"there cannot be {self.least} to {self.most} replicas")
        if self.engine == "ray":
            require("ray", "ray")

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest number of replicas."""
        least = self.number or self.least or 1
        return least, max(least, self.most)


def open_local(options: EngineOptions) -> Opened:
    """The engine of this process, and what it computes with.

    Raises:
        UserError: a model or the index cannot be opened.
    """
    from openblip.serving.local import LocalEngine
    from openblip.serving.ray_engine import Opened

    how: dict[str, Any] = {"device": options.device, "dtype": options.dtype, "tokenizer": options.tokenizer}
    predictors = {
        name: open_predictor(source, batch_size=options.batch_size, cuda_graphs=options.cuda_graphs, **how)
        for name, source in options.models.items()
    }
    engine = LocalEngine(
        predictors,
        index=None if options.index is None else _open_index(options.index, predictors),
        batch_size=options.batch_size,
        gather_ms=options.gather_ms,
        cache_bytes=options.cache_bytes,
        max_pixels=options.max_pixels,
    )
    return Opened(engine, next((one.computing for one in predictors.values()), ""))


def open_ray(options: EngineOptions, replicas: Replicas, *, stop_seconds: float) -> RayEngine:
    """Replicas that open the same.

    Raises:
        UserError: a model or the index cannot be opened, or there is no cluster.
    """
    import dataclasses

    import torch

    from openblip.bootstrap.engines import default_threads
    from openblip.serving.ray_engine import RayEngine, RayOptions

    least, most = replicas.bounds
    models = {name: _whole(source) for name, source in options.models.items()}
    index = None if options.index is None else _whole(options.index)
    on_gpu = options.device in ("auto", "cuda") and torch.cuda.is_available()
    return RayEngine.start(
        partial(open_local, dataclasses.replace(options, models=models, index=index)),
        RayOptions(
            min_replicas=least,
            max_replicas=most,
            address=replicas.address,
            threads=default_threads(most),
            gpus=1 if on_gpu else 0,
            requests=4 * options.batch_size,
            stop_seconds=stop_seconds,
        ),
    )


def _whole(place: str) -> str:
    """The absolute path of what is on this machine, since a replica may have another working directory."""
    return str(Path(place).resolve()) if Path(place).exists() else place


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
