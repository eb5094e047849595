"""Memory of this process: how much it may take, how much it took, and whether an error means that it ran out."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

from tunesmith.models.memory import free_bytes, status_bytes

#: Left to the operating system and to what can't be foreseen, by device: at least so much, or this share.
_RESERVE_BYTES, _RESERVE_SHARE = 256 << 20, 0.05
#: What torch says when the CPU's or a library's memory is gone; only CUDA has an error class of its own.
_OUT_OF_MEMORY = ("not enough memory", "DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

#: glibc's numbers for `mallopt`: from which size on blocks get pages of their own, and how much free memory may stay.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, where it is glibc.

    Each step needs as much as the one before. Memory that was given back in between comes again page by page, each
    filled with zeros, which was measured to take a twelfth of a step. The peak stays what it is.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def give_freed_memory_back() -> None:
    """Give what is free back to the operating system now, where the C library is glibc."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def room_bytes(device: torch.device) -> int:
    """Return what this process may hold in all: what it holds now and what is free, less a reserve.

    On a GPU: the GPU's memory. On a CPU: the main memory, within the limits of its control group.
    """
    free = free_bytes(device)
    held = torch.cuda.memory_reserved(device) if device.type == "cuda" else status_bytes("VmRSS") or 0
    return held + free - max(_RESERVE_BYTES, int(_RESERVE_SHARE * free))


def memory_limit_bytes(asked: int | str, device: torch.device) -> int:
    """Return what this process may hold in all, where `asked` is `limits.memory_bytes`."""
    return room_bytes(device) if isinstance(asked, str) else asked


class PeakMemory:
    """The highest memory of this process, over stretches of work and over all of them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._earlier = 0

    def restart(self) -> None:
        """Begin a new stretch. Where the operating system keeps no such mark, the old stretch goes on."""
        self._earlier = self.highest()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            except OSError:  # some containers forbid it
                return

    def bytes(self) -> int:
        """Return the highest memory since the stretch began."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return status_bytes("VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)

    def highest(self) -> int:
        """Return the highest memory over all stretches."""
        return max(self._earlier, self.bytes())
