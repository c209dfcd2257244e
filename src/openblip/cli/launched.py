"""Commands that torchrun has started several times: their processes share the work, the first reports for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from openblip.data.image_inputs import FoundImages

__all__ = ["find_shared_images", "first_to_tell", "is_first", "join", "processes", "shared"]

_Found = TypeVar("_Found")
_CONNECT = timedelta(seconds=20)


def processes() -> int:
    """How many processes a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this process prints, and writes what is written once."""
    return processes() == 1 or os.environ.get("RANK", "0") == "0"


def join(device: str) -> None:
    """Meet the other processes, if there are any; they leave each other's GPUs alone."""
    if processes() > 1:
        from openblip.training.launch import start

        start(device)


def shared(do: Callable[[], _Found]) -> _Found:
    """What the first process finds, or its mistake, for all that have joined.

    Such as what is on disk, before any of them changes it.
    """
    if processes() == 1:
        return do()
    from openblip.training.launch import on_main

    return on_main(do)


def find_shared_images(places: Iterable[Path | str], device: str) -> FoundImages:
    """`find_image_inputs`, by one process for all: a list on standard input is read once."""
    from openblip.data.image_inputs import find_image_inputs

    join(device)
    return shared(lambda: find_image_inputs(places))


def first_to_tell(message: str) -> bool:
    """Whether no other process of this launch has told a mistake: mostly all make the same one.

    They agree through torchrun's own store; without it each tells its mistake.
    """
    if processes() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore

    from openblip.core.fingerprint import short_hash

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_CONNECT)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        key = short_hash(message.encode(errors="surrogateescape"))
        return int(store.add(f"openblip/told/{attempt}/{key}", 1)) == 1
    except (KeyError, ValueError, RuntimeError):
        return True
