"""CPU time of the kernels of a round, one thread: `python -m benchmarks.kernels [--parameters 10M] [--runs 5]`.

A row is one member's work for one round. "encode + mask" is clip, stochastic rounding and all masks; rotation,
unmasking of the share of chunks that a member reduces, and decoding have rows of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from averaging.encoding import Decoder, Encoder, quantise
from averaging.layout import Layout
from averaging.masking import Masker, unmask
from averaging.rotation import Rotation
from benchmarks.report import report


def milliseconds(work: Callable[[], object], runs: int) -> float:
    """Median CPU milliseconds of `runs` runs, after one to warm up."""
    work()
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times) * 1e3


def rows(parameters: int, members: int, ring_bits: int, runs: int) -> list[dict[str, Any]]:
    """One row per kernel."""
    layout = Layout(parameters, ring_bits)
    chunks = range(layout.chunks)
    rng = np.random.default_rng(1)
    update = rng.standard_normal(parameters, dtype=np.float32)
    scales = np.full(layout.blocks, 6.0, np.float32)
    seed, key = os.urandom(32), os.urandom(16)
    encoder, decoder = Encoder(layout, members, scales, seed), Decoder(layout, members, scales, seed)
    rotation = Rotation(seed)
    pair_keys = {j: os.urandom(16) for j in range(members) if j != members // 2}
    masker = Masker(seed, members // 2, key, pair_keys)
    rings = [layout.zeros(c) for c in chunks]
    padded = np.zeros(layout.elements, np.float32)
    padded[:parameters] = update

    def quantise_and_mask(*, masked: bool) -> None:
        scratch = np.empty(layout.chunk_elements, np.float32)
        factors = encoder.levels / scales.astype(np.float64)
        for c in chunks:
            part = layout.slice(c)
            x = scratch[: part.stop - part.start]
            x[:] = padded[part]
            quantise(x, factors[layout.block_slice(c)], encoder.levels, key, c, rings[c])
            if masked:
                masker.apply(c, rings[c])

    def rotate() -> None:
        for c in chunks:
            rotation.rotate(padded[layout.slice(c)].copy(), layout.block_slice(c).start)

    def encode() -> None:
        for c in chunks:
            encoder.encode_chunk(c, update, 1.0, key, rings[c])

    def dequantise() -> None:
        for c in chunks:
            encoder.dequantise_chunk(c, rings[c], 1.0)

    def unmask_share() -> None:
        for c in chunks[: -(-len(chunks) // members)]:
            unmask(c, rings[c], [key] * members, [])

    def decode() -> None:
        for c in chunks:
            decoder.decode_chunk(c, rings[c], float(members))

    def energies() -> None:
        for c in chunks:
            decoder.block_energies(c, rings[c])

    kernels: dict[str, Callable[[], object]] = {
        "quantise + mask": partial(quantise_and_mask, masked=True),
        "quantise": partial(quantise_and_mask, masked=False),
        "rotate": rotate,
        "rotate + quantise": encode,
        "dequantise own": dequantise,
        "unmask 1/n of chunks": unmask_share,
        "decode": decode,
        "block energies": energies,
    }
    for ring in rings:
        ring[:] = rng.integers(0, 100, ring.size)
    shared = {"parameters": parameters, "members": members, "ring_bits": ring_bits}
    return [{"kernel": name, **shared, "cpu_ms": milliseconds(work, runs)} for name, work in kernels.items()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    table: list[dict[str, Any]] = []
    for members, ring_bits in ((8, 16), (16, 16), (8, 8), (8, 32), (16, 32)):
        table += rows(arguments.parameters, members, ring_bits, arguments.runs)
    report("kernels", table, title="CPU milliseconds per member and round, one thread")


if __name__ == "__main__":
    main()
