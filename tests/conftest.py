"""One environment for every test: quiet libraries, no network hub, hypothesis tries the same examples each time."""

from __future__ import annotations

import os

# Before torch, tokenizers or hivemind are imported: threads that spin would starve the other test worker.
os.environ.update(
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
)

from hypothesis import HealthCheck, settings

# A slow machine is no reason to fail, so neither deadlines nor the health check on speed.
settings.register_profile("house", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("house"), derandomize=False, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))
