"""Two processes of one command, as torchrun starts them, without the launcher's and their own imports."""

from __future__ import annotations

from pathlib import Path

from job_commands import CommandServer, Running
from torch.distributed import TCPStore


def launch(
    openblip: CommandServer, store: TCPStore, cwd: Path, *arguments: object, before: str = ""
) -> list[Running]:
    """Two processes of a command with torchrun's variables, and its store, which the test holds."""
    started = []
    for rank in range(2):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        arranged = f"import os; os.environ.update({environment}); RANK = {rank}\n{before}"
        started.append(openblip.start(*arguments, cwd=cwd, before=arranged))
    return started


def new_store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
