"""What other packages import without need is left until it is used.

timm and torchvision, which timm imports, name torch's compiler in what they define: timm to keep it away from some
functions, torchvision to ask whether a device has one. This imports the compiler, eight hundred modules with sympy
among them: a third of what a command of this package takes to start, where few commands compile anything.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch

__all__ = ["without_compiler"]

_COMPILER = "torch._dynamo"
_ASKED = f"{_COMPILER}.utils"


class _Later(ModuleType):
    """In the place of the compiler's module: torchvision's question waits for a call, all else is the module's."""

    @staticmethod
    def is_compile_supported(*given: Any) -> Any:
        return _real().is_compile_supported(*given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for these and needs no answer
            raise AttributeError(name)
        return getattr(_real(), name)


def _real() -> ModuleType:
    if isinstance(sys.modules.get(_ASKED), _Later):
        del sys.modules[_ASKED]
    return importlib.import_module(_ASKED)


def _disable(function: Callable[..., Any] | None = None, recursive: bool = True, **options: Any) -> Any:
    """`torch.compiler.disable`, which is applied when something may compile; to a class it is applied at once.

    timm keeps it under a name of its own, also after the block.
    """
    if isinstance(function, type):
        return torch.compiler.disable(function, recursive, **options)
    if function is None:
        return functools.partial(_disable, recursive=recursive, **options)
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def run(*words: Any, **named: Any) -> Any:
        if _COMPILER not in sys.modules:
            return function(*words, **named)
        if not disabled:
            disabled.append(torch.compiler.disable(function, recursive, **options))
        return disabled[0](*words, **named)

    return run


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import timm or torchvision in this block, and torch's compiler is imported when something is compiled."""
    if _COMPILER in sys.modules or _ASKED in sys.modules:
        yield
        return
    sys.modules[_ASKED] = later = _Later(_ASKED)
    real = torch.compiler.disable
    torch.compiler.disable = cast(Any, _disable)
    try:
        yield
    finally:
        torch.compiler.disable = real
        if sys.modules.get(_ASKED) is later:
            del sys.modules[_ASKED]
