"""Memory of this process: how much it has held, keeping what tensors free, and errors of a GPU that has too little.

glibc gives large blocks back to the system at every `free`, and each page of a new one is a page fault: a training
step on a CPU takes half as long again (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
import sys

from openblip.core.text import read_text

__all__ = ["gpu_lacks_memory", "host_lacks_memory", "keep_freed_memory", "peak_mb"]

_GPU_TOO_SMALL = (
    *("error: out of memory", "MPS backend out of memory", "_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED"),
    "BLAS_STATUS_NOT_INITIALIZED",
)
"""what CUDA and HIP, Apple's allocator, cuBLAS and cuSOLVER, cuDNN, and cuBLAS without room for its handle say"""
_HOST_TOO_SMALL = "can't allocate memory"
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed; False where there is no glibc or OPENBLIP_MALLOC=system."""
    if not sys.platform.startswith("linux") or os.environ.get("OPENBLIP_MALLOC") == "system":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_TOP_PAD, 64 << 20))


def gpu_lacks_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU has not enough memory, in the words of torch or of the libraries below it.

    Those allocate beside torch's allocator, and what they lack is no `OutOfMemoryError`.
    """
    # By name: torch need not be imported for an error that is not torch's.
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _GPU_TOO_SMALL)


def host_lacks_memory(error: BaseException) -> bool:
    """Whether an error says that this machine has not enough memory, as Python, NumPy or torch say it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _HOST_TOO_SMALL in str(error))


def peak_mb() -> float:
    """Most memory that this process has held, in MB of 2**20 bytes."""
    try:
        # getrusage would give the parent's peak where that is larger: exec does not reset it.
        status = read_text("/proc/self/status")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except OSError:
        import resource  # not on every system

        # Bytes on macOS, kilobytes elsewhere.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
