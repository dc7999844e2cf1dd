"""What memory training finds on this machine, how much it takes, and how running out of it shows.

Numbers are bytes. On a CPU they come from /proc: what the kernel would give without swapping (or the container's limit,
whichever is less), and the peak of this process. Where there is no /proc nothing is known, and nothing is limited.
"""

from __future__ import annotations

import gc
import math
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

from dht.errors import ConfigError

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_RESET_PEAK = "5"  # see proc(5), /proc/pid/clear_refs: VmHWM starts again from VmRSS
# What allocators say that raise no class of their own: torch's CPU allocator on Linux and elsewhere, CUDA and cuBLAS.
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
REMEDY = "shorter sequences, LoRA, the 8-bit optimizer (adamw8bit) or --precision bf16 take less; so do other programs"


class Gauge(Protocol):
    """Memory of the device that trains."""

    def free(self) -> float:
        """Bytes that this process can still get; infinite where nobody says."""
        ...

    def start(self) -> None:
        """Watch the peak from here on."""
        ...

    def grown(self) -> int:
        """Bytes that the peak since `start` was above what was in use then."""
        ...


class CpuGauge:
    """Main memory, by what Linux says."""

    def __init__(self, proc: Path = _PROC, cgroup: Path = _CGROUP) -> None:
        self._proc, self._cgroup = proc, cgroup
        self._before = 0

    def free(self) -> float:
        """The least of MemAvailable and what the container's limit leaves."""
        available = _field(self._proc / "meminfo", "MemAvailable")
        limit, used = _number(self._cgroup / "memory.max"), _number(self._cgroup / "memory.current")
        room = limit - used if limit is not None and used is not None else math.inf
        return min(math.inf if available is None else available, max(0.0, room))

    def start(self) -> None:
        """Begin a new peak; where that is not allowed, only growth beyond the old peak is seen."""
        gc.collect()
        with suppress(OSError):
            (self._proc / "self/clear_refs").write_text(_RESET_PEAK)
        self._before = _field(self._proc / "self/status", "VmHWM") or 0

    def grown(self) -> int:
        """Growth of the resident set's peak."""
        return max(0, (_field(self._proc / "self/status", "VmHWM") or 0) - self._before)


class CudaGauge:
    """Memory of one GPU. What torch holds in reserve counts as free."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def free(self) -> float:
        """The driver's free memory and torch's own."""
        idle = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return torch.cuda.mem_get_info(self._device)[0] + idle

    def start(self) -> None:
        """Begin a new peak."""
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def grown(self) -> int:
        """Growth of what tensors took."""
        return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)


def gauge(device: torch.device) -> Gauge:
    """The gauge of a device."""
    return CudaGauge(device) if device.type == "cuda" else CpuGauge()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how running out of memory shows: as a class of its own, or as a RuntimeError that says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)


def give_back(device: torch.device) -> None:
    """Return what a failed attempt left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def too_little(what: str) -> ConfigError:
    """The error of a machine on which even `what` does not fit."""
    return ConfigError(f"this machine has too little memory for {what}", remedy=REMEDY)


def _field(path: Path, name: str) -> int | None:
    """A line `Name:  123 kB` in bytes; None where there is none."""
    with suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _number(path: Path) -> int | None:
    """A file with one number; None where it says `max`, or is not there."""
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
