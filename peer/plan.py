"""`run-peer plan`: what a run will cost a peer, by its manifest alone: bytes, seconds on a given line, memory;
and how good a model its settings gave where they were measured.

The bytes are those of masked chunks, sums, copies and audits, which grow with the model. Signatures, rosters and votes
add some tens of kilobytes a round and peer, whatever the model (30 in rounds of five); they are not in the figures.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from averaging.layout import Layout
from averaging.packing import base, top_digit
from averaging.roster import cut
from peer.manifest import Manifest
from peer.measured import quality
from peer.run_params import run_params

ROUND_TRIPS = 10
"""Messages of a round that wait for each other: shares, receipts, certificate, unmasking, hashes, votes."""
_ROOMY = 0.1
"""The line is no burden while a round spends this part of its time on it, or less."""
_OVERLAP = "a little worse for as many tokens, better in as much time (docs/training.md)"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one peer and round, upload and download."""

    up: int
    down: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What `run-peer plan` says. Seconds are None where nothing tells them."""

    parameters: int
    trained: int
    peers: int
    cohorts: int
    fragments: int
    bits_per_element: float
    up: int
    down: int
    dense_ratio: float
    line_mbit: float
    line_seconds: float
    tokens_per_round: int
    train_seconds: float | None
    training_share: float | None
    memory: int
    quality: str
    advice: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def traffic(layout: Layout, manifest: Manifest, peers: int) -> Traffic:
    """Bytes of a peer with as large a share of the work as everybody, in a roster of so many peers.

    It sends its masked chunks to their reducers (but its own), its own sums to the others, a copy of its own chunks for
    each later member that keeps one, and what its auditors ask for; with several cohorts also sums to the heads, totals
    from them and on to the cohort. On average everybody receives as much as it sends.
    """
    parts = cut(peers, manifest.cohort.target, manifest.cohort.minimum)
    members = max(len(part) for part in parts)
    vector = sum(layout.chunk_bytes(chunk) for chunk in range(layout.total_chunks))
    others = (members - 1) / members
    sent = 2 * others * vector + manifest.cohort.reducer_copies * vector / members
    sent += manifest.cohort.audit_share * others * vector
    if len(parts) > 1:
        narrow = 0 if layout.pack > 1 and len(parts) * (base(layout.pack) - 1) < 256 else -1
        chunks = range(layout.total_chunks)
        totals = sum(layout.coordinates(c) * layout.wide_sizes(c)[narrow] for c in chunks)
        # Its cohort's sums go to a head instead of to the cohort; totals take their place there.
        sent += vector / members - others * vector + others * totals + totals / members
    return Traffic(round(sent), round(sent))


def plan(
    manifest: Manifest,
    parameters: int,
    trained: int,
    memory: int,
    *,
    peers: int,
    line_mbit: float,
    latency: float,
    tokens_per_second: float | None,
) -> Plan:
    """What this run will cost. `latency`: seconds of a round trip. `memory`: bytes, from `peer.estimate`."""
    layout = run_params(manifest, trained).layout
    bytes_ = traffic(layout, manifest, peers)
    cohorts = cut(peers, manifest.cohort.target, manifest.cohort.minimum)
    members = max(len(part) for part in cohorts)
    bits = 8 * layout.chunk_bytes(0) / layout.coordinates(0)
    dense = 2 * (members - 1) / members * 4 * trained * manifest.train.local_steps
    line = max(bytes_.up, bytes_.down) * 8e-6 / line_mbit + ROUND_TRIPS * latency
    tokens = manifest.train.tokens_per_round
    training = tokens / tokens_per_second if tokens_per_second else None
    return Plan(
        parameters=parameters,
        trained=trained,
        peers=peers,
        cohorts=len(cohorts),
        fragments=manifest.codec.fragments,
        bits_per_element=round(bits, 2),
        up=bytes_.up,
        down=bytes_.down,
        dense_ratio=round(dense / max(1, bytes_.up), 1),
        line_mbit=line_mbit,
        line_seconds=round(line, 2),
        tokens_per_round=tokens,
        train_seconds=None if training is None else round(training, 2),
        training_share=None if training is None else round(training / (training + line), 3),
        memory=memory,
        quality=quality(manifest.train.optimizer, manifest.train.local_steps, warm=not manifest.model.config),
        advice=tuple(_advice(manifest, layout, line, training, members)),
    )


def _advice(manifest: Manifest, layout: Layout, line: float, training: float | None, members: int) -> list[str]:
    said = []
    limits = manifest.cohort.deadlines
    if line > limits.upload + limits.sums:
        said.append(
            f"the transfers take {line:.0f} s, the manifest waits {limits.upload + limits.sums:.0f} s for them: raise "
            "cohort.deadlines upload and sums, or send fewer bits"
        )
    if training is None or line <= _ROOMY * (training + line):
        return said
    steps = math.ceil(manifest.train.local_steps * line * (1 - _ROOMY) / (_ROOMY * training))
    share = line / (training + line)
    said.append(f"{share:.0%} of a round is spent on the line; train.overlap would hide it: " + _OVERLAP)
    said.append(f"or train.local_steps = {steps} would make it {_ROOMY:.0%}; more local steps cost quality")
    if layout.pack == 1:
        finest = max((pack for pack in (7, 8, 10, 13) if top_digit(pack, members) >= 2), default=None)
        if finest is not None:
            said.append(f"or codec.ring_bits = 32 and codec.pack = {finest}: {32 / finest:.1f} bits an element")
    return said


def describe(found: Plan) -> str:
    """The plan in words, a line each."""
    each = f"{_size(found.up)} up and {_size(found.down)} down, {found.bits_per_element:g} bits an element"
    if found.fragments > 1:
        each += f", 1 of {found.fragments} fragments"
    rows = [
        ("model", f"{found.parameters:,} parameters, {found.trained:,} of them trained and sent"),
        ("peers", f"{found.peers} in {found.cohorts} cohort{'s' if found.cohorts > 1 else ''}"),
        ("each round", each),
        ("compared", f"1/{found.dense_ratio:g} of a float32 all-reduce of every inner step"),
        ("on the line", f"{found.line_seconds:g} s a round at {found.line_mbit:g} Mbit/s"),
        ("memory", f"{_size(found.memory)} and the batch's activations"),
    ]
    if found.train_seconds is not None:
        share = f"{found.training_share:.0%} of the time trains where rounds wait for the line"
        rows.append(("training", f"{found.tokens_per_round:,} tokens in {found.train_seconds:g} s; {share}"))
    if found.quality:
        rows.append(("quality", found.quality))
    lines = [f"{name:<12} {text}" for name, text in rows]
    return "\n".join([*lines, *(f"{'advice':<12} {text}" for text in found.advice)])


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
