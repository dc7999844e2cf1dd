"""What a round must lead to: the formulas of encoding, outer step, clips and root, written down once more."""

from __future__ import annotations

import math
from fractions import Fraction
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from averaging.chain import Chain
from averaging.record import Record
from dht.wire import digest
from peer.learner import Learner
from peer.manifest import Manifest
from peer.state import CanonicalState

BLOCK = 4096


def oracle_signs(sid: bytes, block: int) -> np.ndarray:
    """+1 or -1 per element: 512 bytes of AES-256-CTR per block, element 128 k + j is bit k of word j."""
    cipher = Cipher(algorithms.AES(digest("signs", sid)), modes.CTR((32 * block).to_bytes(16, "big"))).encryptor()
    words = [int.from_bytes(cipher.update(bytes(4)), "little") for _ in range(128)]
    return np.array([-1 if words[i % 128] >> (i // 128) & 1 else 1 for i in range(BLOCK)], np.int64)


def oracle_hadamard(values: np.ndarray) -> np.ndarray:
    out = values.astype(np.int64)
    stride = 1
    while stride < BLOCK:
        pairs = out.reshape(-1, 2, stride)
        out = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1).reshape(-1)
        stride *= 2
    return out


def oracle_levels(members: int) -> int:
    bits = 16 - math.ceil(math.log2(members))
    return 2 ** (bits - 1) - 1


def oracle_mean(
    sums: dict[int, np.ndarray], scales: np.ndarray, sid: bytes, members: int, weights: float
) -> np.ndarray:
    """The weighted mean update out of integer sums, one Hadamard block a chunk."""
    blocks = []
    for block, summed in sorted(sums.items()):
        integers = oracle_signs(sid, block) * oracle_hadamard(summed)
        factor = float(scales[block]) / (64.0 * oracle_levels(members) * weights)
        blocks.append((integers.astype(np.float64) * factor).astype(np.float32))
    return np.concatenate(blocks)


def oracle_weight(tokens: int, manifest: Manifest) -> float:
    """The root of the part of the cap that a survivor without a data domain brings; a quarter at least, if it did a
    step. Rounded down to 2^-40."""
    part = Fraction(min(tokens, manifest.train.tokens_per_round), manifest.train.tokens_per_round)
    if tokens < manifest.data.sequence_length:
        return math.floor(part * 2**40) / 2**40
    root = math.isqrt(math.floor(part * 2**80))
    return max(root, 2**38) / 2**40


def oracle_step(state: Any, gradient: np.ndarray, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and momentum after Nesterov's outer step, one rounding per operation."""
    rate, decay = np.float32(manifest.outer.learning_rate), np.float32(manifest.outer.momentum)
    gradient = gradient[: len(state.parameters)]
    momentum = state.momentum * decay + gradient
    step = momentum * decay + gradient if manifest.outer.nesterov else momentum
    return state.parameters - rate * step, momentum


def oracle_scales(
    sums: dict[int, np.ndarray], scales: np.ndarray, members: int, survivors: int, norm: int, shift: int = 0
) -> np.ndarray:
    """kappa * rho * max(rms of the block, rms of all / 16), within [1/2, 4] of the old clip. `norm`: trailer word 4.
    `shift`: bits of a sum that its energy leaves out."""
    unit = [float(scale) / (oracle_levels(members) * survivors) for scale in scales]
    squares = [
        float(sum((int(v) >> shift) ** 2 for v in sums[b]) << 2 * shift) * (unit[b] * unit[b]) / BLOCK
        for b in range(len(scales))
    ]
    over_all = math.sqrt(math.fsum(squares) / len(squares))
    reference = BLOCK * math.fsum(float(scale) * float(scale) for scale in scales)
    individual = norm / (2.0**22 * survivors) * reference
    rho = min(max(math.sqrt(individual / (BLOCK * math.fsum(squares))), 1.0), 2.0 * math.sqrt(survivors))
    target = [8.0 * rho * max(math.sqrt(square), over_all / 16) for square in squares]
    wide = [float(scale) for scale in scales]
    return np.array([min(max(t, w * 0.5), w * 4.0) for t, w in zip(target, wide, strict=True)], np.float32)


def oracle_root(header: bytes, parameters: np.ndarray, momentum: np.ndarray, scales: np.ndarray) -> bytes:
    """RFC 6962 over 256 KiB pieces of each section."""

    def tree(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        half = 1 << (len(leaves) - 1).bit_length() - 1
        return sha256(b"\x01" + tree(leaves[:half]) + tree(leaves[half:])).digest()

    size = 256 * 1024
    sections = [header, *(array.astype("<f4").tobytes() for array in (parameters, momentum, scales))]
    pieces = [section[start : start + size] for section in sections for start in range(0, len(section), size)]
    return tree([sha256(b"\x00" + piece).digest() for piece in pieces])


def signed(ring: np.ndarray) -> np.ndarray:
    return ring.view(f"<i{ring.itemsize}").astype(np.int64)


def oracle_state(
    before: Any, rings: list[dict[int, np.ndarray]], record: Record, members: int, manifest: Manifest, shift: int = 0
):
    """(parameters, momentum, scales) after a round in which these survivors encoded these rings."""
    chunks = range(len(before.scales))
    lost = record.lost_chunks
    sums = {c: sum(signed(ring[c]) for ring in rings) if c not in lost else np.zeros(BLOCK, np.int64) for c in chunks}
    weights = sum(oracle_weight(survivor.tokens, manifest) for survivor in record.survivors)
    gradient = oracle_mean(sums, before.scales, record.sid, members, weights)
    trailer = sum(ring[len(before.scales)].astype(np.int64) for ring in rings)
    scales = oracle_scales(sums, before.scales, members, len(rings), int(trailer[4]), shift)
    return (*oracle_step(before, gradient, manifest), scales)


def frozen(state: CanonicalState) -> Any:
    """A copy of what a state holds, with its root."""
    arrays = {name: getattr(state, name).copy() for name in ("parameters", "momentum", "scales")}
    return SimpleNamespace(**arrays, schema=state.schema, root=state.root())


def remember_states(learner: Learner) -> list[Any]:
    """The state that a learner holds now, and from now on each one that it adopts, frozen as it does."""
    states, adopted = [frozen(learner.state)], learner._adopted

    def remember(record: Record, chain: Chain) -> None:
        states.append(frozen(learner.state))
        adopted(record, chain)

    learner._adopted = remember  # type: ignore[method-assign]
    return states


def check_state(state: Any, expected: tuple[np.ndarray, ...], record: Record) -> None:
    """A state holds these (parameters, momentum, scales) bit for bit, and it is the one that the record names."""
    for name, array in zip(("parameters", "momentum", "scales"), expected, strict=True):
        assert getattr(state, name).tobytes() == array.tobytes(), f"{name} of round {record.round}"
    assert record.state_root == state.root == oracle_root(state.schema.header, *expected)
