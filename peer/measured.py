"""What `python -m benchmarks.convergence` measured, as far as `run-peer plan` tells it: quality by local steps.

Copied from benchmarks/results/convergence.json; a test holds both together. Four peers, a model of 0.36 million
parameters, 2.1 million tokens, the same kind of text for all, outer rate 0.8 and momentum 0.6, a rate that decays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_NEAR = 4.0
"""Rows with more than so many times the local steps, or fewer than that part of them, say nothing."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of the table.

    `share`: tokens that one place with Muon needs for the same loss, over the tokens used. `under`: they are fewer, and
    one place's shortest run had so many. `warm`: trained on from a common start.
    """

    row: str
    optimizer: str
    local_steps: int
    share: float
    under: bool = False
    warm: bool = False


ROWS = (
    Measured("home line", "muon", 12, 0.764),
    Measured("home line, 4.6 bits", "muon", 18, 0.702),
    Measured("thin line", "muon", 64, 0.494),
    Measured("home line, AdamW", "adamw", 12, 0.40, under=True),
    Measured("home line, warm", "muon", 12, 0.814, warm=True),
    Measured("thin line, warm", "muon", 64, 0.585, warm=True),
)


def nearest(optimizer: str, local_steps: int, *, warm: bool) -> tuple[Measured, ...]:
    """The rows with this inner optimizer next below and above, or the one that fits; empty where none is near."""
    kind = optimizer.removesuffix("8bit")
    rows = sorted((row for row in ROWS if (row.optimizer, row.warm) == (kind, warm)), key=lambda row: row.local_steps)
    below = [row for row in rows if row.local_steps <= local_steps][-1:]
    above = [row for row in rows if row.local_steps >= local_steps][:1]
    near = dict.fromkeys(below + above)
    return tuple(row for row in near if abs(math.log(row.local_steps / local_steps)) <= math.log(_NEAR))


def quality(optimizer: str, local_steps: int, *, warm: bool) -> str:
    """What these settings were worth where they were measured, in words; empty if nothing near was."""
    rows = nearest(optimizer, local_steps, warm=warm)
    if not rows:
        return ""
    told = ", ".join(f"{_share(row)} at {row.local_steps} local steps" for row in rows)
    model = "a trained" if warm else "a new"
    return f"a token is worth {told}, of one in one place with Muon (measured with 4 peers, {model} model of 0.36M)"


def _share(row: Measured) -> str:
    return f"under {row.share:.0%}" if row.under else f"{row.share:.0%}"
