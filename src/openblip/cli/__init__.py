"""The `openblip` command: `entry` reads the command line, the other files hold the commands.

Each command imports what it needs when it runs, so that `--help` costs no torch.
"""

from openblip.cli.entry import main

__all__ = ["main"]
