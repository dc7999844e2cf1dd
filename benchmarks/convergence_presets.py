"""The rows of the convergence table: which methods are compared, and what is tuned for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.convergence_run import Spec

MUON, ADAMW = (7e-3, 1e-2, 1.4e-2), (7.5e-4, 1.5e-3, 3e-3)
BEST, NEAR = (1e-2,), (7e-3, 1e-2)
"""Rows that are the home line but for one thing take its rate, or are tuned near it where the method is another."""


@dataclass(frozen=True)
class Preset:
    """A row: what is run, at which inner learning rates, with which seeds (the best rate of the first seed)."""

    spec: Spec
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = (1,)
    why: str = ""

    @property
    def name(self) -> str:
        """As it is called in the table."""
        return self.spec.preset


def _row(name: str, why: str, rates: tuple[float, ...] = BEST, seeds: tuple[int, ...] = (1,), **facts: Any) -> Preset:
    return Preset(Spec(preset=name, **facts), rates, seeds, why)


# 3.2 bits for every element after 12 local steps: a hundredth of a per-step all-reduce in float32, copies counted.
_FINE: dict[str, Any] = {"local_steps": 12, "pack": 10, "outer_rate": 0.8, "outer_momentum": 0.6}
_FAR = _FINE | {"local_steps": 64}
_PART = _FINE | {"ring_bits": 8, "pack": 1, "local_steps": 4}
_SEEDS = (1, 2, 3)

CENTRAL = (
    _row("central, Muon", "one place, best of both optimizers", (5e-3, *MUON), _SEEDS, method="central"),
    _row("central, AdamW", "one place", ADAMW, _SEEDS, method="central", optimizer="adamw"),
)
MUON_REFERENCE, ADAMW_REFERENCE = "central, Muon", "central, AdamW"
CURVES = {MUON_REFERENCE: (0.4, 0.55, 0.7, 0.85), ADAMW_REFERENCE: (0.7, 1.5, 2.5)}
"""Central runs with other numbers of tokens, by which losses are turned into tokens; each is a whole run."""

MAIN = (
    _row("home line", "Muon, 12 local steps, 3.2 bits", MUON, _SEEDS, **_FINE),
    _row("thin line", "as before, 64 local steps", (5e-3, 7e-3, 1e-2), _SEEDS, **_FAR),
    _row(
        "home line, 4.6 bits",
        "18 local steps, for cohorts of up to eleven: as run-peer init writes it",
        NEAR,
        **_FINE | {"local_steps": 18, "pack": 7},
    ),
    _row("home line, AdamW", "the same with AdamW inside", (4e-4, *ADAMW), **_FINE, optimizer="adamw"),
    _row("home line, by kind", "each peer has another kind of text", NEAR, **_FINE, split="kinds"),
    _row("thin line, by kind", "the same on the thin line", (7e-3,), **_FAR, split="kinds"),
)
ABLATIONS = (
    _row("alone", "one of the four peers by itself", method="alone"),
    _row("32-bit sums", "no rounding: what the codec costs", **_FINE | {"pack": 1}),
    _row("3 local steps", "four times the rounds and bytes", **_FINE | {"local_steps": 3}),
    _row("every step, 4.6 bits", "masked sums of gradients", NEAR, method="gradients", pack=7),
    _row("residual beside the model", "each round begins at the certified weights", **_FINE, restart=True),
    _row("plain averaging", "outer rate 1, no momentum", NEAR, **_FINE | {"outer_rate": 1.0, "outer_momentum": 0.0}),
    _row("outer momentum 0.9", "DiLoCo's 0.7 and 0.9", NEAR, **_FINE | {"outer_rate": 0.7, "outer_momentum": 0.9}),
    _row("8-bit ring", "30 local steps, 6 of 8 bits used", **_FINE | {"local_steps": 30, "ring_bits": 8, "pack": 1}),
    _row("4 bits", "15 local steps, 8 elements in a word", **_FINE | {"local_steps": 15, "pack": 8}),
    _row("random tenth", "shared random part, the rest beside the model", method="random-k",
         **_PART, part=0.1, restart=True),
    _row("random tenth, kept", "the rest in each peer's model", NEAR, method="random-k", **_PART, part=0.1),
    _row("rank 8", "factors of rank 8, 8 bits", NEAR, method="low-rank", **_PART, rank=8),
    _row("four fragments", "3 local steps, a quarter of the model: the same bytes, smaller rounds",
         **_FINE | {"local_steps": 3}, fragments=4),
    _row("large steps", "16 sequences a peer and step, 3 local steps", NEAR, **_FINE | {"local_steps": 3}, batch=16),
    _row("overlap, 3 steps late", "rounds last a quarter of their training", BEST, _SEEDS, method="overlapped",
         **_FINE, late=3),
    _row("overlap, 6 steps late", "rounds last half of their training", method="overlapped", **_FINE, late=6),
    _row("overlap, 12 steps late", "rounds last as long as their training", method="overlapped", **_FINE, late=12),
)  # fmt: skip
WARM = (
    _row("central, Muon, warm", "from a common start", (5e-3, 1e-2), _SEEDS, method="central", start="warm"),
    _row("home line, warm", "from a common start", (5e-3, 1e-2), _SEEDS, **_FINE, start="warm"),
    _row("thin line, warm", "from a common start", (7e-3,), **_FAR, start="warm"),
    _row("overlap, 3 steps late, warm", "rounds last a quarter of their training", method="overlapped",
         **_FINE, late=3, start="warm"),
)  # fmt: skip
WARM_CURVE = {"central, Muon, warm": (0.5, 0.7, 0.85)}


def _sized(size: str, rates: tuple[float, ...]) -> tuple[Preset, ...]:
    return (
        _row(f"central, {size}", "another size of model", rates, method="central", size=size),
        _row(f"home line, {size}", "another size of model", rates, **_FINE, size=size),
    )


SIZES = (*_sized("0.12M", (7e-3, 1e-2)), *_sized("1.1M", BEST))
SIZE_CURVES = {"central, 0.12M": (0.7, 0.85), "central, 1.1M": (0.7, 0.85)}

REFERENCES = CURVES | WARM_CURVE | SIZE_CURVES
FULL = (*CENTRAL, *MAIN, *WARM, *ABLATIONS, *SIZES)


def reference_of(spec: Spec) -> str:
    """The central row that a row is measured against: the same size and start, the best optimizer."""
    if spec.start == "warm":
        return "central, Muon, warm"
    return "central, Muon" if spec.size == "0.36M" else f"central, {spec.size}"


def _named(name: str) -> Preset:
    return next(row for row in FULL if row.name == name)


def quick() -> tuple[Preset, ...]:
    """A few rows of an eighth of the tokens and a third of the parameters, at one rate: whether all still works."""
    small: dict[str, Any] = {"size": "0.12M", "tokens": 262_144}
    rows = (SIZES[0], *MAIN[:2], _named("residual beside the model"))
    return tuple(replace(row, spec=replace(row.spec, **small), rates=(1e-2,), seeds=(1,)) for row in rows)


def at_rates(preset: Preset) -> Iterator[Spec]:
    """The runs that tune a row."""
    return (replace(preset.spec, rate=rate) for rate in preset.rates)
