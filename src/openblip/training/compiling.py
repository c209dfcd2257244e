"""torch.compile of a model's repeated blocks, each in place: names, checkpoints and the step around them stay.

All blocks of a kind share one compiled code: a model of 12 blocks takes no longer to compile than one of two.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import nn

__all__ = ["compile_blocks", "repeated_blocks", "uncompiled", "undo_compile"]

BACKEND = "inductor"
VARIANTS = 64
"""compiled codes of one kind of block: with and without memory, mask, gradient, and for texts of any length"""


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The members of lists of two or more modules of one class, outermost lists only."""
    found: list[nn.Module] = []
    for part in module.children():
        if isinstance(part, nn.ModuleList | nn.Sequential) and len(part) > 1 and len({type(m) for m in part}) == 1:
            found += part
        else:
            found += repeated_blocks(part)
    return found


def compile_blocks(module: nn.Module) -> None:
    """Compile each repeated block when it is first called."""
    cast(Any, torch._dynamo.config).recompile_limit = VARIANTS
    for block in repeated_blocks(module):
        block.compile(backend=BACKEND)


def undo_compile(module: nn.Module) -> None:
    """Let every block compute as it is written."""
    for part in module.modules():
        part.__dict__.pop("_compiled_call_impl", None)


def uncompiled(module: nn.Module) -> AbstractContextManager[Any]:
    """Within, nothing compiled is used: an evaluation writes texts that grow, and would compile time and again."""
    compiled = any(part._compiled_call_impl is not None for part in module.modules())
    # The compiler takes seconds to import, which a run that compiles nothing does not spend.
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
