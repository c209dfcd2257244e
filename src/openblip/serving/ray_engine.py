"""The engine over Ray Serve: replicas of the local engine, on this machine or over a cluster.

Each replica is a process that holds the models and gathers the requests it is given into batches, as the local
engine does: it is one. Ray places replicas, starts new ones for those that die, and adds and removes them with the
load. A request whose replica dies is given to another one, since computing it again gives the same.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from PIL import Image

from openblip.core.errors import UserError, first_line, require
from openblip.core.interrupt import starting_workers
from openblip.core.runtime import usable_cores
from openblip.core.text import lines_of
from openblip.data.sample import BrokenSample
from openblip.serving.engine import Counts, ModelInfo, Work
from openblip.serving.local import LocalEngine

__all__ = ["Opened", "RayEngine", "RayOptions", "Replica", "Served"]

_TRIES = 5
"""replicas that a request is given to, one after the other, when they die"""
_STARTS = 3
"""of Ray on this machine: where that is busy, the first may take longer than Ray waits"""
_HEALTH_SECONDS = 2.0
"""between two looks at a replica: so soon is a dead one replaced, at most"""


class Opened(NamedTuple):
    """What a replica opens."""

    engine: LocalEngine
    computing: str
    """device, dtype and threads, as a person reads them"""


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How many replicas there are, and where."""

    min_replicas: int = 1
    max_replicas: int = 1
    """more than `min_replicas`: Ray adds and removes replicas with the requests in hand"""
    address: str = ""
    """of a running cluster, "auto" for the one that this machine belongs to; "" starts one on this machine"""
    threads: int = 1
    """of each replica"""
    gpus: float = 0.0
    """of each replica; a fraction shares one"""
    requests: int = 64
    """that a replica has in hand at a time; the others wait in this process"""
    stop_seconds: float = 30.0
    """for the requests that a replica has in hand when it is stopped"""

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise UserError(
                f"there cannot be {self.min_replicas} to {self.max_replicas} replicas; "
                "the least number is at least 1, and the greatest not below it"
            )


@dataclass(frozen=True)
class Served:
    """What replicas say of themselves."""

    models: Mapping[str, ModelInfo]
    searchable: str | None
    computing: str


class Replica:
    """A process of Ray Serve's that holds a local engine.

    Args:
        opening: opens the engine.
        threads: that it computes with.
    """

    def __init__(self, opening: Callable[[], Opened], threads: int) -> None:
        torch.set_num_threads(threads)
        self._mistake = ""
        try:
            self._opened: Opened | None = opening()
        except UserError as error:  # Ray would start this replica again and again
            self._opened, self._mistake = None, str(error)

    async def describe(self) -> Served | str:
        """What is served, or the sentence of the mistake that it cannot be opened for."""
        if self._opened is None:
            return self._mistake
        engine = self._opened.engine
        return Served(dict(engine.models), engine.searchable, self._opened.computing)

    async def run(self, work: Work) -> tuple[Any, Exception | None, int, Counts]:
        """The result or the mistake in the work, with this process's number and what it has done so far."""
        return await self._outcome(self._engine.run(work))

    async def found(self, number: int, min_side: int) -> tuple[Any, Exception | None, int, Counts]:
        """Likewise, of an image of the index."""
        return await self._outcome(self._engine.found(number, min_side))

    @property
    def _engine(self) -> LocalEngine:
        assert self._opened is not None, "the service does not start then"
        return self._opened.engine

    async def _outcome(self, work: Any) -> tuple[Any, Exception | None, int, Counts]:
        # Mistakes in a request travel as values: raised, Ray would wrap them and log a failure.
        try:
            return await work, None, os.getpid(), self._engine.counts
        except (UserError, BrokenSample) as mistake:
            return None, mistake, os.getpid(), self._engine.counts


class RayEngine:
    """Computes in replicas; used in one event loop. `start` makes one.

    Args:
        handle: of the deployment.
        served: what its replicas say.
        stop: removes the replicas.
    """

    def __init__(self, handle: Any, served: Served, stop: Callable[[], None]) -> None:
        self._handle, self._served, self._stop = handle, served, stop
        self._done: dict[int, Counts] = {}
        self._in_hand = self._dropped = 0
        self.retried = 0
        """requests that were given to another replica, each time that it happened"""

    @classmethod
    def start(cls, opening: Callable[[], Opened], options: RayOptions) -> RayEngine:
        """Start replicas, and wait until the first can compute.

        Args:
            opening: called in each replica; travels there by its name, so its module must be installed on every
                machine, and what it opens be reachable from there.

        Raises:
            MissingExtra: Ray is not installed.
            UserError: there is no cluster at the address, or the models cannot be opened.
        """
        ray = require("ray", "ray")
        serve = require("ray.serve", "ray")
        own_cluster = not ray.is_initialized() and not options.address
        connected = not ray.is_initialized()
        if connected:
            _connect(ray, options)
        name = f"openblip-{uuid.uuid4().hex[:8]}"

        def stop() -> None:
            serve.delete(name)
            if own_cluster:
                serve.shutdown()
            if connected:
                ray.shutdown()

        try:
            serve.start(proxy_location="Disabled", logging_config=_quiet())
            deployment = serve.deployment(Replica).options(**_settings(options))
            application = deployment.bind(opening, options.threads)
            try:
                handle = serve.run(application, name=name, route_prefix=None, logging_config=_quiet())
            except RuntimeError as error:
                raise UserError(f"the replicas could not be started: {_reason(serve, name) or error}") from error
            served = handle.describe.remote().result()
            if isinstance(served, str):
                raise UserError(served)
        except BaseException:
            stop()
            raise
        return cls(handle, served, stop)

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """By their ids."""
        return self._served.models

    @property
    def searchable(self) -> str | None:
        """As `Engine.searchable`."""
        return self._served.searchable

    @property
    def computing(self) -> str:
        """Device, dtype and threads of a replica."""
        return self._served.computing

    @property
    def replicas(self) -> list[int]:
        """Numbers of the processes that have answered so far."""
        return list(self._done)

    @property
    def counts(self) -> Counts:
        """As `Engine.counts`: the sums over replicas, as of their last answers."""
        total: Counter[str] = Counter()
        for done in self._done.values():
            total.update(asdict(done))
        counts = Counts(**{field.name: total[field.name] for field in fields(Counts)})
        counts.dropped, counts.waiting = self._dropped, self._in_hand
        return counts

    async def run(self, work: Work) -> Any:
        """As `Engine.run`."""
        return await self._call("run", work)

    async def found(self, number: int, min_side: int) -> Image.Image:
        """As `Engine.found`."""
        image = await self._call("found", number, min_side)
        assert isinstance(image, Image.Image)
        return image

    async def close(self) -> None:
        """As `Engine.close`."""
        await asyncio.to_thread(self._stop)

    async def _call(self, method: str, *arguments: Any) -> Any:
        self._in_hand += 1
        try:
            result, mistake, process, counts = await self._try(method, arguments)
        except asyncio.CancelledError:
            self._dropped += 1
            raise
        finally:
            self._in_hand -= 1
        known = self._done.get(process)
        if known is None or known.batched <= counts.batched:  # answers may come in another order
            self._done[process] = counts
        if mistake is not None:
            raise mistake
        return result

    async def _try(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """What a replica gives; another one is called where it dies."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import ReplicaUnavailableError

        for left in reversed(range(_TRIES)):
            response = getattr(self._handle, method).remote(*arguments)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except (RayActorError, ReplicaUnavailableError):
                if not left:
                    raise
                self.retried += 1
        raise AssertionError("the last try returns or raises")


def _connect(ray: Any, options: RayOptions) -> None:
    here: dict[str, Any] = {}
    if not options.address:
        # Ray waits for ever for CPUs that are not there; here it counts those that are wanted, as shared out.
        here["num_cpus"] = max(usable_cores(), options.threads * options.max_replicas)
    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "error"}
    for left in reversed(range(1 if options.address else _STARTS)):
        try:
            with starting_workers():  # Ray's processes outlive a signal to the group, until they are shut down
                ray.init(address=options.address or "local", **quiet, **here)
            return
        except Exception as error:
            # What Ray raises, without a class of its own, where its processes do not start within 30 seconds.
            ray.shutdown()
            if left and type(error) is Exception:
                continue
            where = f'there is no Ray cluster at "{options.address}"'
            what = where if options.address else "Ray could not be started on this machine"
            raise UserError(f"{what}: {first_line(error)}") from error


def _reason(serve: Any, name: str) -> str:
    """Why an application failed: the last line of what Ray knows, mostly an exception."""
    applications = serve.status().applications
    deployments = applications[name].deployments.values() if name in applications else ()
    lines = [line.strip() for one in deployments for line in lines_of(one.message) if line.strip()]
    return lines[-1] if lines else ""


def _settings(options: RayOptions) -> dict[str, Any]:
    """Of the deployment."""
    number: dict[str, Any] = {"num_replicas": options.min_replicas}
    if options.max_replicas > options.min_replicas:
        number = {
            "autoscaling_config": {
                "min_replicas": options.min_replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": max(1, options.requests // 2),
            }
        }
    return {
        **number,
        "ray_actor_options": {"num_cpus": options.threads, "num_gpus": options.gpus},
        "max_ongoing_requests": options.requests,
        "health_check_period_s": _HEALTH_SECONDS,
        "graceful_shutdown_timeout_s": options.stop_seconds,
        "graceful_shutdown_wait_loop_s": 0.1,
    }


def _quiet() -> dict[str, Any]:
    """Logging of Serve: failures alone, and no line for each request."""
    return {"log_level": "ERROR", "enable_access_log": False}
