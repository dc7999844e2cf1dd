"""From runs to rows: token efficiency, traffic, and time on a thin line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from benchmarks.convergence_presets import ADAMW_REFERENCE, MUON_REFERENCE, Preset, reference_of

LINE = 20e6 / 8
"""Bytes per second of the peers' line."""
ROUND_TRIPS = 1.0
"""Seconds of a round that are neither training nor bulk: ten trips of 100 ms."""
STEP = 0.25
"""Seconds of an inner step that time efficiency assumes, of peers and of the data centre's four workers alike."""
_TARGET = 0.55
"""Time efficiency is taken at the loss that the centralized run has with this part of the tokens."""

Curve = Sequence[tuple[int, float]]


def tokens_for(loss: float, curve: Curve) -> float | None:
    """Tokens that a centralized run needs for a loss: linear in log tokens between runs. None beyond both ends.

    `curve`: (tokens, loss) of runs of different lengths, by tokens.
    """
    for (few, high), (many, low) in pairwise(curve):
        if low <= loss <= high:
            share = (high - loss) / (high - low) if high > low else 0.0
            return math.exp(math.log(few) + share * (math.log(many) - math.log(few)))
    return None


def efficiency(loss: float, tokens: int, curve: Curve) -> tuple[float | None, str]:
    """Tokens needed over tokens used, and "", or "at least" where the longest centralized run is worse still.

    None, and why, where even the shortest one is better.
    """
    needed = tokens_for(loss, curve)
    if needed is not None:
        return round(needed / tokens, 3), ""
    if not curve or loss != loss:
        return None, "unknown"
    if loss < curve[-1][1]:  # at least as many tokens as the longest run had: a bound that is safe to state
        return round(curve[-1][0] / tokens, 3), "at least"
    return None, f"under {curve[0][0] / tokens:.2f}"


def seconds_to(loss: float, row: dict[str, Any], bytes_sent: float, rounds: int) -> float | None:
    """Seconds until a run first has this held-out loss, on the peers' line, training and sending by turns."""
    whole = row["steps"] * STEP + bytes_sent / LINE + rounds * ROUND_TRIPS
    before = (0.0, math.inf)
    for share, found in row["curve"]:
        if found <= loss:
            low, high = found, before[1]
            part = 1.0 if math.isinf(high) else (high - loss) / max(high - low, 1e-9)
            return float(whole * (before[0] + part * (share - before[0])))
        before = (share, found)
    return None


def rows_of(
    presets: Sequence[Preset], found: dict[str, list[dict[str, Any]]], curves: dict[str, Curve]
) -> list[dict[str, Any]]:
    """The rows of the table, in order of the presets; those without a run are left out."""
    return [_row(preset, found, curves) for preset in presets if preset.name in found]


def _row(preset: Preset, found: dict[str, list[dict[str, Any]]], curves: dict[str, Curve]) -> dict[str, Any]:
    runs = found[preset.name]
    first, losses = runs[0], [row["loss"] for row in runs]
    loss = sum(losses) / len(losses)
    own = reference_of(preset.spec)
    curve = _shifted(curves.get(own, ()), found.get(own, ()))
    adamw = ADAMW_REFERENCE if own == MUON_REFERENCE else ""
    standard = _shifted(curves.get(adamw, ()), found.get(adamw, ()))
    share, bound = efficiency(loss, first["tokens"], standard)
    same, same_bound = efficiency(loss, first["tokens"], curve)
    if first["method"] == "alone":  # it saw a quarter of the tokens: no efficiency of a run of four
        (share, bound), (same, same_bound) = (None, ""), (None, "")
    dense = found[own][0]["bytes_per_peer"] if own in found else 0
    made = {
        "preset": preset.name,
        "why": preset.why,
        **{key: first[key] for key in ("split", "start", "size", "parameters", "tokens", "rate", "batch")},
        **{key: first[key] for key in ("optimizer", "local_steps", "pack", "ring_bits", "rounds", "method")},
        **{key: first[key] for key in ("outer_rate", "outer_momentum")},
        "loss": round(loss, 4),
        "spread": round(max(losses) - min(losses), 4),
        "seeds": len(losses),
        "efficiency": share,
        "efficiency_bound": bound,
        "efficiency_muon": same,
        "efficiency_muon_bound": same_bound,
        "bytes_ratio": round(dense / first["bytes_per_peer"], 1) if first["bytes_per_peer"] else None,
        "kilobytes": round(first["bytes_per_peer"] / 1e3),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in runs), 1),
    }
    return made | _timed(first, found.get(own, [first])[0], curve)


def _shifted(curve: Curve, runs: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """The first seed's curve, moved to where the mean of all seeds ends."""
    if not runs:
        return list(curve)
    move = sum(row["loss"] for row in runs) / len(runs) - runs[0]["loss"]
    return [(tokens, loss + move) for tokens, loss in curve]


def _timed(row: dict[str, Any], central: dict[str, Any], curve: Curve) -> dict[str, Any]:
    """Seconds to the target loss on the peers' line, and in a data centre over them. Of a centralized row: of its
    all-reduce of every step over that line."""
    target = next((found for tokens, found in curve if tokens >= _TARGET * row["tokens"]), None)
    if target is None:
        return {"seconds": None, "time_efficiency": None}
    ideal = seconds_to(target, central, 0.0, 0)
    seconds = seconds_to(target, row, row["bytes_per_peer"], row["rounds"])
    return {
        "target": round(target, 4),
        "seconds": None if seconds is None else round(seconds),
        "time_efficiency": None if seconds is None or ideal is None else round(ideal / seconds, 3),
    }
