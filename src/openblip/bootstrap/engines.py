"""Engines map a worker over chunks: processes on this machine, or actors of a Ray cluster.

What a chunk gives does not depend on the engine: random numbers belong to a sample's key, batches to its chunk.
(Sums differ in their last bit with the number of threads, so tables are equal bit for bit where that is equal.)
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any

import torch

from openblip.bootstrap.job import CapFiltConfig, Chunk, Done, Worker
from openblip.core.compute import choose_dtype
from openblip.core.config import from_dict, to_dict
from openblip.core.errors import UserError, require
from openblip.core.interrupt import end_with_parent, starting_workers
from openblip.core.memory import gpu_lacks_memory, host_lacks_memory
from openblip.core.places import check_device
from openblip.core.runtime import choose_device, usable_cores

__all__ = [
    "ENGINES",
    "MakeWorker",
    "connected_to_ray",
    "default_threads",
    "ready_on_ray",
    "run_local",
    "run_ray",
    "settled_here",
    "settled_on_ray",
]

MakeWorker = Callable[[CapFiltConfig], Worker]
"""Makes a worker for settings in which the device is filled in; travels to other processes."""

_AHEAD = 2
"""chunks that wait for each process"""


def default_threads(workers: int) -> int:
    """Threads for each of so many processes: OMP_NUM_THREADS, or an equal share of the cores."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdecimal() and int(named) else max(1, usable_cores() // workers)


def settled_here(config: CapFiltConfig, workers: int) -> tuple[CapFiltConfig, int]:
    """The settings with their dtype, and the number of processes, by this machine's devices.

    Raises:
        UserError: the device is not here.
    """
    device = choose_device(config.device)
    config = replace(config, dtype=_dtype_name(config.dtype, str(device)))
    return config, workers or max(1, torch.cuda.device_count() if device.type == "cuda" else 1)


def _dtype_name(name: str, device: str) -> str:
    """The dtype that `name` is where this is called."""
    return str(choose_dtype(name, choose_device(device))).removeprefix("torch.")


def devices_for(config: CapFiltConfig, workers: int) -> list[str]:
    """A device for each process: the one that is named, or this machine's GPUs in turn."""
    if config.device in ("auto", "cuda") and torch.cuda.is_available():
        return [f"cuda:{number % torch.cuda.device_count()}" for number in range(workers)]
    return [str(choose_device(config.device))] * workers


def run_local(
    make_worker: MakeWorker, config: CapFiltConfig, chunks: Iterable[Chunk], *, workers: int, threads: int
) -> Generator[Done]:
    """Map over chunks with processes of this machine; one works right here.

    Raises:
        UserError: a process was killed.
    """
    devices = devices_for(config, workers)
    if workers == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield from map(make_worker(replace(config, device=devices[0])), chunks)
        finally:
            torch.set_num_threads(before)
        return
    context = _context()
    queue = context.SimpleQueue()
    for device in devices:
        queue.put(device)
    pool = ProcessPoolExecutor(workers, context, _begin, (make_worker, config, queue, threads))
    waiting = iter(chunks)
    running: set[Future[Done]] = set()
    try:
        while True:
            ready = list(islice(waiting, _AHEAD * workers - len(running)))
            with starting_workers():  # the first of them starts all
                running.update(pool.submit(_process, chunk) for chunk in ready)
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the run was killed, mostly for lack of memory; run the same command again to resume "
            "(with a smaller --batch-size or fewer --workers)"
        ) from error
    finally:
        _stop(pool)


def _context() -> BaseContext:
    """How workers start: where the system can, forked from a server that has imported the libraries once."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _stop(pool: ProcessPoolExecutor) -> None:
    """End a pool at once: whatever its processes are at leaves no trace."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(cancel_futures=True)  # waits until its threads have released their semaphores


_worker: Worker | None = None


def _begin(make_worker: MakeWorker, config: CapFiltConfig, devices: Any, threads: int) -> None:
    global _worker
    end_with_parent()
    torch.set_num_threads(threads)
    _worker = make_worker(replace(config, device=devices.get()))


def _process(chunk: Chunk) -> Done:
    assert _worker is not None
    return _worker(chunk)


@contextmanager
def connected_to_ray(address: str) -> Iterator[Any]:
    """Within, Ray is there: a cluster that is connected to or started here, and left at the end, or one as it was.

    Args:
        address: as in `run_ray`.

    Raises:
        MissingExtra: Ray is not installed.
        UserError: there is no cluster at the address.
    """
    ray = require("ray", "ray")
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(
                address=address or "local", log_to_driver=False, include_dashboard=False, logging_level="error"
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f'there is no Ray cluster at "{address}": {error}') from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


@contextmanager
def ready_on_ray(config: CapFiltConfig, workers: int, address: str) -> Iterator[tuple[CapFiltConfig, int]]:
    """`settled_on_ray`, and within, Ray as it was asked.

    Where there is nothing to ask and no cluster is named, it is not started: a run that finds all chunks done needs
    none.

    Raises:
        MissingExtra: Ray is not installed.
        UserError: there is no cluster at the address, or it has no such device.
    """
    require("ray", "ray")
    if not address and config.device == "cpu" and config.dtype != "auto":
        yield config, max(1, workers)
        return
    with connected_to_ray(address) as ray:
        yield settled_on_ray(ray, config, workers)


def settled_on_ray(ray: Any, config: CapFiltConfig, workers: int) -> tuple[CapFiltConfig, int]:
    """The settings with device and dtype, and the number of actors, by what the cluster has: the machine that this
    runs on may have no GPU.

    Raises:
        UserError: the device is none of a cluster's, or the cluster has none of its kind.
    """
    resources = ray.cluster_resources()
    config = replace(config, device=device_on_ray(config.device, resources))
    workers = workers or max(1, _gpus(config.device, resources))
    if config.dtype == "auto":
        # One for the whole run, chosen where an actor would run.
        remote = ray.remote(num_cpus=1, num_gpus=_gpu_share(config.device, resources, workers))(_dtype_name)
        try:
            config = replace(config, dtype=ray.get(remote.remote("auto", config.device)))
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, UserError):
                raise
            raise error.cause from error  # Ray's own has the traceback as its message
    return config, workers


def device_on_ray(device: str, resources: Mapping[str, float]) -> str:
    """The device of actors: "cuda" is the GPU that Ray gives each of them.

    Raises:
        UserError: see `settled_on_ray`.
    """
    check_device(device)
    if device.startswith("cuda:"):
        raise UserError(
            f'device "{device}" is the GPU of one machine, and Ray chooses a GPU of the cluster for each actor; '
            "use --device cuda with --engine ray"
        )
    has_gpu = int(resources.get("GPU", 0)) > 0
    if device == "cuda" and not has_gpu:
        raise UserError('device "cuda" is not available: the Ray cluster has no GPU; use --device cpu')
    return "cuda" if device == "auto" and has_gpu else device


def _gpus(device: str, resources: Mapping[str, float]) -> int:
    return int(resources.get("GPU", 0)) if device == "cuda" else 0


def _gpu_share(device: str, resources: Mapping[str, float], workers: int) -> float:
    """Of a GPU, for each actor: all of one, or as much that no actor waits for ever."""
    gpus = _gpus(device, resources)
    return 1 / math.ceil(workers / gpus) if gpus else 0


def run_ray(
    make_worker: MakeWorker,
    config: CapFiltConfig,
    chunks: Iterable[Chunk],
    *,
    workers: int,
    threads: int,
    address: str = "",
) -> Generator[Done]:
    """Map over chunks with Ray Data and a pool of actors; blocks, back-pressure and retries are Ray's.

    Args:
        address: of a cluster, "auto" for the one that this machine belongs to; "" starts one here. The target must
            lie where all its machines can write.

    Raises:
        MissingExtra: Ray is not installed.
        UserError: there is no cluster at the address, or it has no such device; or an actor raises it.
        torch.OutOfMemoryError, MemoryError: an actor has too little memory.
        OSError: an actor cannot read or write a file.
    """
    rows = [{**asdict(chunk), "part": to_dict(chunk.part)} for chunk in chunks]
    if not rows:
        return
    data = require("ray.data", "ray")
    with connected_to_ray(address) as ray:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        resources = ray.cluster_resources()
        config = replace(config, device=device_on_ray(config.device, resources))
        results = data.from_items(rows, override_num_blocks=min(len(rows), 4096)).map(
            _Actor,
            fn_constructor_args=(make_worker, to_dict(config), threads),
            compute=data.ActorPoolStrategy(size=workers),
            num_cpus=threads,
            num_gpus=_gpu_share(config.device, resources, workers),
        )
        for row in results.iter_rows():
            failed, sent = json.loads(row["sent"])
            if failed:
                raise _FAILURES[failed](*sent)
            yield Done(**sent)


class _Actor:
    """A process of Ray's that holds the models; maps one chunk at a time.

    Errors that are told in a sentence are sent as results are: what an actor raises arrives as an error of Ray's,
    without what it was made from, and after what Ray logs about it.
    """

    def __init__(self, make_worker: MakeWorker, config: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._make_worker = functools.cache(lambda: make_worker(from_dict(CapFiltConfig, config)))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = {name: value for name, value in row["part"].items() if value is not None}
        chunk = from_dict(Chunk, {**row, "part": part})
        sent: tuple[str, Any]
        try:
            sent = "", asdict(self._make_worker()(chunk))
        except Exception as error:
            if (failed := _failure(error)) is None:
                raise
            sent = failed
        return {"sent": json.dumps(sent)}


_FAILURES: dict[str, type[Exception]] = {
    "mistake": UserError,
    "gpu": torch.OutOfMemoryError,
    "memory": MemoryError,
    "file": OSError,
}
"""errors that are told in a sentence, by what an actor calls them"""


def _failure(error: Exception) -> tuple[str, list[Any]] | None:
    """Which of `_FAILURES` an error is, and what that is made from; None for any other."""
    if isinstance(error, OSError) and error.filename is not None:
        return "file", [error.errno, error.strerror, str(error.filename)]
    if isinstance(error, UserError):
        return "mistake", [str(error)]
    if gpu_lacks_memory(error):
        return "gpu", [str(error)]
    return ("memory", [str(error)]) if host_lacks_memory(error) else None


ENGINES = ("local", "ray")
