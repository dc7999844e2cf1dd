from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dht.errors import ConfigError
from peer.precision import Precision

ROOT = Path(__file__).parent.parent.parent


def prepared(*arguments: int, **environment: str) -> tuple[int, str, int]:
    """`prepare_environment` in a process of its own: (its result, OMP_WAIT_POLICY, torch's threads)."""
    code = (
        "import json, os, sys\nfrom peer.precision import prepare_environment\n"
        f"count = prepare_environment(*{arguments!r})\nassert 'torch' not in sys.modules\nimport torch\n"
        "print(json.dumps([count, os.environ['OMP_WAIT_POLICY'], torch.get_num_threads()]))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True
    )
    return tuple(json.loads(run.stdout))


def test_threads_are_shared_among_local_peers():
    cores = len(os.sched_getaffinity(0))
    assert prepared(1000) == (1, "PASSIVE", 1)
    assert prepared(1)[0] == cores


def test_what_the_user_set_is_kept():
    assert prepared(1, 1, OMP_WAIT_POLICY="ACTIVE") == (1, "ACTIVE", 1)


def test_devices():
    assert Precision.resolve("cpu", "fp32") == Precision("cpu", "fp32")
    assert Precision.resolve("auto", "bf16").device == ("cuda" if torch.cuda.is_available() else "cpu")
    for device in ("cuda:99", "tpu9", "meta"):
        with pytest.raises(ConfigError, match=device):
            Precision.resolve(device, "fp32")
    with pytest.raises(ConfigError, match="fp16"):
        Precision.resolve("cpu", "fp16")


def test_autocast_computes_in_the_dtype_asked_for():
    layer = torch.nn.Linear(4, 4)
    for dtype, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Precision("cpu", dtype).autocast():
            assert layer(torch.ones(1, 4)).dtype == expected
