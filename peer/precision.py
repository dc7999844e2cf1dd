"""What this machine computes with: threads, device, and the arithmetic of forward and backward passes.

Importing this module costs nothing; torch is imported by the functions that need it.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dht.errors import ConfigError

if TYPE_CHECKING:
    import torch


def prepare_environment(local_peers: int = 1, threads: int | None = None) -> int:
    """Set up CPU threads and return their number, by default `max(1, cores // local_peers)`.

    Call it before torch is imported. OpenMP's threads spin while they wait, which on a shared machine takes the cores
    from the peers next door (measured: a training step of 63 ms became 742 ms); PASSIVE makes them sleep instead.
    """
    count = threads or max(1, _cores() // max(1, local_peers))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(count))
    # Tokenizers are used before a fork at times (datasets' workers) and would warn about it on every call.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return count


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Precision:
    """Device and arithmetic that were found to work here. Weights and updates are float32 in every case."""

    device: str  # "cpu", "cuda", "cuda:1"
    dtype: str  # "fp32" or "bf16" (autocast)

    @classmethod
    def resolve(cls, device: str, wanted: str) -> Precision:
        """`device` may be "auto"; `wanted` is "fp32" or "bf16". Raises ConfigError when the device is not there."""
        import torch

        if wanted not in ("fp32", "bf16"):
            raise ConfigError(f"precision {wanted!r} is not supported", remedy="use fp32 or bf16")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            found = torch.device(device)
        except RuntimeError:
            raise ConfigError(f"{device!r} is not a device", remedy="use auto, cpu, cuda or cuda:N") from None
        if found.type not in ("cpu", "cuda"):
            raise ConfigError(f"device {device!r} is not supported", remedy="use auto, cpu, cuda or cuda:N")
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found.type == "cuda" and (found.index or 0) >= present:
            raise ConfigError(f"there is no device {device!r} here: {present} CUDA devices", remedy="use --device auto")
        return cls(device, wanted)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context for forward passes: bf16 autocast, or nothing."""
        if self.dtype == "fp32":
            return nullcontext()
        import torch

        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)

    @property
    def torch_device(self) -> torch.device:
        """The device as torch's own type."""
        import torch

        return torch.device(self.device)
