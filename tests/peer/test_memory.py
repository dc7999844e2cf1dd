"""What a machine says of its memory, and how running out of it is told from other errors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from peer.memory import CpuGauge, gauge, is_out_of_memory, too_little

GIB = 1 << 30


def machine(folder: Path, available: int, limit: str, used: int) -> CpuGauge:
    folder.mkdir()
    (folder / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {available // 1024} kB\n")
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(str(used))
    return CpuGauge(folder, folder)


def test_the_containers_limit_counts(tmp_path: Path):
    assert machine(tmp_path / "free", 8 * GIB, "max\n", GIB).free() == 8 * GIB
    assert machine(tmp_path / "limited", 8 * GIB, f"{4 * GIB}\n", GIB).free() == 3 * GIB
    assert machine(tmp_path / "over", 8 * GIB, f"{GIB}\n", 2 * GIB).free() == 0


def test_where_nobody_says_nothing_is_limited(tmp_path: Path):
    unknown = CpuGauge(tmp_path / "proc", tmp_path / "cgroup")
    unknown.start()
    assert (unknown.free(), unknown.grown()) == (math.inf, 0)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="not Linux")
def test_growth_is_seen_and_a_second_time_again():
    ours = gauge(torch.device("cpu"))
    for _ in range(2):
        ours.start()
        taken = np.ones(32 << 17)  # 32 MiB
        del taken
        assert 24 << 20 < ours.grown() < 256 << 20
    ours.start()
    assert ours.grown() < 24 << 20


def test_running_out_is_recognised_however_it_shows():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_the_remedy_names_what_takes_less():
    error = too_little("one sequence of 4096 tokens")
    assert "one sequence of 4096 tokens" in error.message
    for remedy in ("shorter sequences", "LoRA", "adamw8bit", "bf16"):
        assert remedy in error.remedy
